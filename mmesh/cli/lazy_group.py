"""Lazy loading of commands: a group imports the module of a command when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a command is, and the short help that its group lists it with."""

    place: str
    """module:attribute"""
    short_help: str

    def load(self) -> click.Command:
        """Import the module and return the command."""
        module, _, attribute = self.place.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


class LazyGroup(click.Group):
    """A group whose listing imports none of its commands."""

    def __init__(self, *, lazy: Mapping[str, LazyCommand], **settings: Any) -> None:
        # Stand-ins, by which click lists commands and finds similar names.
        listed = {name: click.Command(name, help=one.short_help) for name, one in lazy.items()}
        super().__init__(commands=listed, **settings)
        self._lazy = lazy

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command itself; None where there is none of this name."""
        return self._lazy[cmd_name].load() if cmd_name in self._lazy else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the stand-ins as a group lists its commands."""
        click.Group(commands=self.commands).format_commands(ctx, formatter)
