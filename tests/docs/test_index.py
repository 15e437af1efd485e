"""The index of the documentation and that of the decisions are whole."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs/runbooks"
DECISIONS = {path.name: path for path in sorted((ROOT / "docs/adr").glob("0*.md"))}
LINK = re.compile(r"\]\(([^()\s]+)\)")


def status_of(name: str) -> str:
    (status,) = re.findall(r"^Status: (.+)$", DECISIONS[name].read_text("utf-8"), re.MULTILINE)
    return status


def test_the_index_leads_to_every_page():
    indexes = ROOT / "docs/README.md", RUNBOOKS / "README.md"
    linked = {
        (index.parent / target).resolve()
        for index in indexes
        for target in LINK.findall(index.read_text("utf-8"))
    }
    pages = {p for p in (ROOT / "docs").rglob("*.md") if p not in DECISIONS.values()}
    assert pages - linked == {ROOT / "docs/README.md"}


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_and_what_took_its_place_name_each_other(name):
    status = status_of(name)
    assert status.startswith(("accepted", "superseded"))
    for other in LINK.findall(status):
        assert f"]({name})" in status_of(other), f"{other} does not name {name}"
