"""Marked places of pages that are filled in from elsewhere, so that they cannot go stale.

`<!-- figure NAME -->6.8<!-- end -->` is a measured figure (see tools/figures.py),
`<!-- table NAME -->...<!-- end -->` a table of what was measured,
`<!-- coefficient NAME -->0.61<!-- end -->` one that plans are made of (tools/coefficients.py),
`<!-- plans growth -->...<!-- end -->` a table of such plans (tools/plans.py), and
`<!-- source PATH PART -->...<!-- end -->` a part of a source file, between the comments `[PART]`
and `[end]`.
"""

import pathlib
import re

from tools import coefficients, failures, plans
from tools.figures import figures

MARK = re.compile(
    r"(<!-- (figure|coefficient|plans|source|table) ([^>]+?) -->)(.*?)(<!-- end -->)", re.DOTALL
)
OPENING = re.compile(r"<!-- (?:figure|coefficient|plans|source|table) ")
TABLES = {"failures": failures.table}
LANGUAGES = {".mjs": "js", ".py": "python", ".go": "go"}


def marked_pages() -> list[pathlib.Path]:
    """Return the pages that have such places."""
    pages = [pathlib.Path("README.md"), *sorted(pathlib.Path("docs").rglob("*.md"))]
    return [page for page in pages if OPENING.search(page.read_text("utf-8"))]


def fill(text: str) -> str:
    """Return a page with its marked places filled in.

    Raises:
        ValueError: a place has no end, or names what there is not.
    """
    known = figures()

    def filled(mark: re.Match[str]) -> str:
        opening, kind, what, inside, end = mark.groups()
        if OPENING.search(inside):
            raise ValueError(f"{opening} has no end")
        if kind == "source":
            return f"{opening}\n{_source(*what.split())}{end}"
        if kind == "table":
            if what not in TABLES:
                raise ValueError(f"no table is named {what!r} in tools/marks.py")
            return f"{opening}\n{TABLES[what]()}{end}"
        if kind == "plans":
            if what not in plans.TABLES:
                raise ValueError(f"no table of plans is named {what!r} in tools/plans.py")
            return f"{opening}\n\n{plans.TABLES[what]()}\n{end}"
        if kind == "coefficient":
            return f"{opening}{coefficients.shown(what)}{end}"
        if what not in known:
            raise ValueError(f"no figure is named {what!r} in docs/figures.toml")
        return f"{opening}{known[what].shown}{end}"

    return MARK.sub(filled, text)


def cited_figures(text: str) -> set[str]:
    """Return the names of the figures that a page cites."""
    return {mark[3] for mark in MARK.finditer(text) if mark[2] == "figure"}


def _source(path: str, part: str) -> str:
    """Return a part of a source file as a fenced block."""
    source = pathlib.Path(path).read_text("utf-8")
    comment = r"^(?://|#) "
    begins, ends = rf"{comment}\[{re.escape(part)}\]\n", rf"{comment}\[end\]$"
    found = re.search(f"{begins}(.*?){ends}", source, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"{path} has no part [{part}]")
    return f"```{LANGUAGES[pathlib.Path(path).suffix]}\n{found[1]}```\n"
