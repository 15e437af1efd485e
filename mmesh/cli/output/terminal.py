"""Terminal escaping: characters that would steer a terminal are printed as what they are called.

Texts, ids and messages come from anybody. On a terminal, control characters (C0, C1) move the
cursor, set its title or its clipboard, and those that override the direction of writing make one
text look like another. All that commands print goes through here, JSON too, where the escapes mean
the characters themselves.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

_LINES = "\t\n"
_PIPE_WIDTH = 10_000
"""Columns where nobody looks: a row of a table stays on its line."""
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f\ud800-\udfff]"
)


def shown(text: str) -> str:
    r"""Return the text with each character that steers a terminal as \uXXXX; lines stay lines."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shown_in_line(text: str) -> str:
    """Return the text as one line, which no other can be taken for."""
    for character in _LINES:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return shown(text)


class ShownStream:
    """A text stream that is written to by way of `shown`."""

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner
        self.encoding = getattr(inner, "encoding", "utf-8")
        self.errors = getattr(inner, "errors", None)

    def write(self, text: str) -> int:
        """Write the text, and return its length."""
        self.inner.write(shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write all of them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush."""
        self.inner.flush()

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return self.inner.isatty()

    def fileno(self) -> int:
        """Return its descriptor."""
        return self.inner.fileno()


@contextmanager
def shown_output() -> Iterator[None]:
    """Let all that is printed meanwhile go through `shown`; `open_console` has its own way."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = ShownStream(sys.stdout), ShownStream(sys.stderr)  # type: ignore[assignment]  # all that printing needs
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def open_console(*, stderr: bool = False) -> Console:
    """Return a console of rich's, whose own control sequences are the only ones that it writes.

    Nor is anything that it is given taken for markup.

    A pipe or a file is as wide as what is written, unless COLUMNS says how wide it is.
    """
    from rich.console import Console

    class ShownConsole(Console):
        @property
        def file(self) -> Any:
            stream = super().file
            return stream.inner if isinstance(stream, ShownStream) else stream

        @file.setter
        def file(self, new_file: Any) -> None:
            self._file = new_file

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                yield segment if control else type(segment)(shown(text), style, control)

    made = ShownConsole(stderr=stderr, highlight=False, markup=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _PIPE_WIDTH
    return made
