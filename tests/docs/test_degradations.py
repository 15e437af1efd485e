"""The operator's page names exactly the degradations that the API and the gateway know."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/degradations.md").read_text("utf-8")
REASON = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")


def reasons_of_the_api() -> set[str]:
    """Return what the protos say of `Degradation.reason`, in its comment or in an enum for it."""
    protos = "\n".join(path.read_text() for path in (ROOT / "protos").rglob("*.proto"))
    if enum := re.search(r"^enum DegradationReason \{(.*?)^\}", protos, re.DOTALL | re.MULTILINE):
        values = re.findall(r"^  DEGRADATION_REASON_([A-Z_]+) =", enum[1], re.MULTILINE)
        return set(values) - {"UNSPECIFIED"}
    (message,) = re.findall(r"^message Degradation \{(.*?) reason = ", protos, re.DOTALL | re.M)
    return set(REASON.findall(message)) - {"UPPER_SNAKE"}


def reasons_of_the_gateway() -> set[str]:
    sources = [path.read_text() for path in (ROOT / "services/gateway").rglob("*.py")]
    calls = r"\b(?:degrade|Degradation)\(\s*\"([A-Z_]+)\""
    return {reason for source in sources for reason in re.findall(calls, source)}


def test_each_degradation_has_a_section_and_a_line_of_the_table():
    reasons = reasons_of_the_api()
    assert len(reasons) >= 5
    assert set(re.findall(r"^## ([A-Z_]+)$", PAGE, re.MULTILINE)) == reasons
    assert set(re.findall(r"^\| \[`([A-Z_]+)`\]", PAGE, re.MULTILINE)) == reasons


def test_the_gateway_gives_no_reason_that_the_api_does_not_name():
    assert reasons_of_the_gateway() == reasons_of_the_api()


def test_each_metric_of_the_page_exists():
    known = (ROOT / "docs/reference/metrics.md").read_text("utf-8")
    named = set(re.findall(r"`(mmesh_(?:gateway|index|reranker|encoder|errors)_\w+)", PAGE))
    assert named
    assert {name for name in named if f"`{name}`" not in known} == set()
