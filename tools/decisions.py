"""The index of decisions: number, title and status of each page in docs/adr."""

import pathlib
import re

FOLDER = pathlib.Path("docs/adr")
_HEAD = re.compile(r"# (\d{4}): (.+)\n\nStatus: (.+)\n")


def page() -> str:
    """Return the index.

    Raises:
        ValueError: a page does not begin with number, title and status.
    """
    head = (
        "# Decisions\n\nWhat was decided, why, and what was measured for it: one page each, as of\n"
        "the day. A page is not edited later, but for its status: what took its place is named\n"
        "in both.\n\n| | decision | status |\n|---|---|---|\n"
    )
    return head + "".join(map(_line, sorted(FOLDER.glob("0*.md"))))


def _line(path: pathlib.Path) -> str:
    found = _HEAD.match(path.read_text("utf-8"))
    if found is None or not path.name.startswith(found[1]):
        raise ValueError(f"{path} does not begin with `# NNNN: title` and `Status: ...`")
    number, title, status = found.groups()
    return f"| {number} | [{title}]({path.name}) | {status} |\n"
