"""Links within the repository lead to a file and a heading, and paths that pages name exist."""

import glob
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:)([^()\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
PATH = re.compile(r"`((?:benchmarks|docs|examples|mmesh|protos|services|tests|tools)/[^`\s]*)`")


def pages() -> list[str]:
    """Return what is committed or may soon be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    return [name for name in sorted(listed) if (ROOT / name).exists()]


@cache
def text_of(page: Path) -> str:
    return FENCED.sub("", page.read_text("utf-8"))


@cache
def anchors_of(page: Path) -> set[str]:
    """Return what GitHub makes of the headings."""
    names = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text_of(page))]
    return {name.replace(" ", "-") for name in names}


@pytest.mark.parametrize("name", pages())
def test_every_link_leads_somewhere(name):
    page = ROOT / name
    for target in LINK.findall(text_of(page)):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors_of(found), target


@pytest.mark.parametrize("name", [name for name in pages() if not name.startswith("docs/adr/")])
def test_every_path_that_a_page_names_exists(name):
    """Decisions are left out: they say what was there when they were made."""
    for path in PATH.findall(text_of(ROOT / name)):
        for one in _expanded(path):
            assert glob.glob(one, root_dir=ROOT), path


def _expanded(path: str) -> list[str]:
    """Return the paths that braces stand for, as in a shell."""
    before, brace, rest = path.partition("{")
    if not brace:
        return [path]
    choices, _, after = rest.partition("}")
    return [one for choice in choices.split(",") for one in _expanded(before + choice + after)]
