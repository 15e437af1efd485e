"""Garbage collection: `python -m services.index.commands.sweep` removes pictures that none names.

Works beside a running mesh, whose processes do the same now and then (`upkeep.sweeps`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mmesh.errors import MmeshError
from services.index.config import IndexSettings
from services.index.log.log import Log
from services.index.store.garbage import Garbage, Swept, Tally
from services.index.store.objects import open_objects
from services.index.store.snapshot import Snapshots
from services.index.upkeep.sweeps import drop_orphans


def sweep(settings: IndexSettings, *, dry_run: bool, adopt: bool = False) -> Swept:
    """Sweep the store of a mesh; with `dry_run` nothing is noted or removed.

    Raises:
        FailedPrecondition: the store belongs to another log, and this one does not `adopt` it.
    """
    objects = open_objects(settings.blobs)
    garbage = Garbage(objects, settings.gc_grace_s)
    log = Log(settings.url)
    try:
        if not dry_run:
            garbage.claim(log.identity(), adopt=adopt)
            drop_orphans(log, Snapshots(objects), settings.gc_grace_s)
        return garbage.sweep(log.pictures, dry_run=dry_run)
    finally:
        log.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep, print, and return the exit code.

    Takes what it is not told from the variables of the index service.
    """
    options = _parser().parse_args(arguments)
    given = {name: value for name, value in vars(options).items() if value}
    dry_run, as_json = bool(given.pop("dry_run", False)), given.pop("json", False)
    adopt = bool(given.pop("adopt", False))
    settings = IndexSettings(**given)
    if settings.log_file is not None and not settings.log_file.exists():
        print(f"there is no log at {settings.log_file}", file=sys.stderr)
        return 1
    try:
        swept = sweep(settings, dry_run=dry_run, adopt=adopt)
    except (MmeshError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(swept)) if as_json else _words(swept, settings.gc_grace_s, dry_run))
    return 0


def _words(swept: Swept, grace_s: float, dry_run: bool) -> str:
    removed = "would be removed" if dry_run else "removed"
    return "\n".join(
        [
            f"{_tally(swept.named)} of candidates",
            f"{_tally(swept.waiting)} of none, for less than {grace_s / 3600:.1f} hours so far",
            f"{_tally(swept.removed)} of none for longer: {removed}",
        ]
    )


def _tally(tally: Tally) -> str:
    return f"{tally.objects} pictures ({tally.size / 1e6:.1f} MB)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.index.commands.sweep",
        description="Remove pictures from the store that no candidate has any more.",
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the log and the blobs")
    parser.add_argument("--log-url", help="address of the log, if it is elsewhere")
    parser.add_argument("--blobs-url", help="where the pictures are, if that is elsewhere")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument(
        "--adopt", action="store_true", help="the store was another log's; now it is this one's"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
