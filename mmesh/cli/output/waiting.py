"""What a start waits for: a line that changes on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.status import Status

FIRST_LINE_S, LONGEST_PAUSE_S = 5.0, 30.0


class WaitingLine:
    """Says on stderr what is waited for, between other lines."""

    def __init__(self, *, first_line_s: float = FIRST_LINE_S) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._status: Status | None = None
        self._pause_s = first_line_s
        self._due_at = time.monotonic() + first_line_s

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self._status is None:
            click.echo(line, err=True)
        else:
            self._status.console.print(line, markup=False, soft_wrap=True)

    def show(self, awaited: str) -> None:
        """Show who is waited for; "" ends that."""
        if self._is_terminal:
            self._show_status(awaited)
        elif awaited and time.monotonic() >= self._due_at:
            click.echo(f"waiting for {awaited}", err=True)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._due_at = time.monotonic() + self._pause_s

    def _show_status(self, awaited: str) -> None:
        from rich.markup import escape

        from mmesh.cli.output.tables import errors

        text = f"waiting for {escape(awaited)}"
        if not awaited and self._status is not None:
            self._status.stop()
            self._status = None
        elif awaited and self._status is None:
            self._status = errors().status(text)
            self._status.start()
        elif self._status is not None:
            self._status.update(text)
