"""What an evaluation tells of its progress."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Somebody who waits for an evaluation."""

    def say(self, line: str) -> None:
        """Take a line for people."""

    def stage(self, name: str, total: int, done: int) -> None:
        """Take note that a stage begins, with so many steps of which some are done."""

    def advance(self, done: int) -> None:
        """Take note how many steps of the stage are done."""


class Silent:
    """A watcher that looks away."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def stage(self, name: str, total: int, done: int) -> None:
        """Do nothing."""

    def advance(self, done: int) -> None:
        """Do nothing."""
