"""Schema migration: `python -m services.index.commands.migrate` brings the log to this release.

Works beside running processes, which do the same when they start. It may run again, and several
times at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmesh.errors import MmeshError
from services.index.config import IndexSettings
from services.index.log.databases.database import Database
from services.index.log.databases.engines import open_database
from services.index.log.databases.schema import VERSION, Outlook, ensure_schema, outlook
from services.index.log.recount import recount


def main(arguments: Sequence[str] | None = None) -> int:
    """Migrate, print what is done, and return the exit code.

    Takes what it is not told from the variables of the index service.
    """
    options = _parser().parse_args(arguments)
    given = {name: value for name, value in vars(options).items() if value}
    dry_run, counts = bool(given.pop("dry_run", False)), bool(given.pop("recount", False))
    settings = IndexSettings(**given)
    is_meant = not dry_run and "data_dir" not in given  # a folder may be mistyped
    if not is_meant and settings.log_file is not None and not settings.log_file.exists():
        print(f"there is no log at {settings.log_file}", file=sys.stderr)
        return 1
    try:
        database = open_database(settings.url)
        try:
            _migrate(database, dry_run=dry_run)
            if counts and not dry_run:
                _recount(database)
        finally:
            database.close()
    except MmeshError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _migrate(database: Database, *, dry_run: bool) -> None:
    before = outlook(database)
    for line in _words(before):
        print(line, flush=True)
    if dry_run or not before.steps:
        print("nothing was changed")
        return
    begun = time.monotonic()
    ensure_schema(database)
    print(f"done in {time.monotonic() - begun:.1f} s: the log is of version {VERSION}")


def _recount(database: Database) -> None:
    names = recount(database)
    of_which = f" of {', '.join(names)}" if names else ""
    print(f"attributes were counted anew: {len(names)} collections had wrong counts{of_which}")


def _words(before: Outlook) -> list[str]:
    if not before.steps:
        return [f"the log is of version {before.version}; this release knows {VERSION}"]
    is_one = f"is of version {before.version}" if before.version else "is empty"
    beside = "may go on meanwhile, and after" if before.suits_running else "must be stopped first"
    return [
        f"the log {is_one}; this release brings it to {VERSION}:",
        *(f"  {step.version}  {step.title}" for step in before.steps),
        *([f"processes that use it now {beside}"] if before.version else []),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.index.commands.migrate",
        description="Bring the tables of the log to this release's version.",
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the log")
    parser.add_argument("--log-url", help="address of the log, if it is elsewhere")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument(
        "--recount",
        action="store_true",
        help="count attributes anew, once no process from before version 0004 writes any more",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
