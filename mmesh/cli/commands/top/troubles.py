"""What somebody should look at: the alerts that one look at gauges can tell."""

from __future__ import annotations

from collections.abc import Iterator

from mmesh.cli.commands.top.window import Window

STALE_S, SNAPSHOT_S, DISK_FREE, PARITY = 120.0, 6 * 3600.0, 0.1, 0.02
"""From where on alerts say so, too: MmeshIndexStale, MmeshSnapshotOld, MmeshDiskAlmostFull,
MmeshParityDrift."""
_REFUSALS = {
    "MEMORY_FULL": "which would not fit into memory",
    "CORRUPT_DATA": "whose rows in the log are damaged",
}


def troubles_of(window: Window) -> Iterator[str]:
    """Yield a line for each."""
    if window.gauges("mmesh_gateway_shard_sets") and not window.gauge("mmesh_gateway_shard_sets"):
        yield "no set of shards is whole: searches fail"
    for name, scrape in window.after.items():
        if scrape.problem:
            yield f"{name} does not answer: {scrape.problem}"
        own = window.of(name)
        yield from (f"{name} {trouble}" for trouble in _of_process(own))
        yield from (f"{name} {trouble}" for trouble in _of_index(own))


def _of_process(window: Window) -> Iterator[str]:
    for labels, values in window.gauges("mmesh_task_unwell").items():
        if any(values):
            yield f"is out of service: its task {dict(labels)['task']} cannot go on"
    for service in ("encoder", "reranker"):
        if window.gauge(f"mmesh_{service}_parity_max_abs_diff", max) > PARITY:
            yield "computes other numbers than it should"


def _of_index(window: Window) -> Iterator[str]:
    if (behind := window.gauge("mmesh_index_staleness_seconds", max)) > STALE_S:
        yield f"is {behind:.0f} s behind the log"
    if (age := window.gauge("mmesh_index_snapshot_age_seconds", max)) > SNAPSHOT_S:
        yield f"has stored no snapshot of what was written for {age / 3600:.0f} h"
    yield from _refusals(window)
    for (free, size), folders in _disks(window).items():
        if free < DISK_FREE * size:
            yield f"has {free / 2**30:.1f} GiB free on the disk of its {', '.join(sorted(folders))}"


def _refusals(window: Window) -> Iterator[str]:
    refused = window.gauges("mmesh_index_refused_collections")
    counts = {dict(labels).get("reason", ""): sum(values) for labels, values in refused.items()}
    for reason, count in sorted(counts.items()):
        if count:
            collections = "1 collection" if count == 1 else f"{count:.0f} collections"
            why = _REFUSALS.get(reason, "of which its log says why")
            yield f"did not load {collections}, {why}"


def _disks(window: Window) -> dict[tuple[float, float], list[str]]:
    """Return folders by bytes free and in all: those of one disk have these in common."""
    found: dict[tuple[float, float], list[str]] = {}
    for labels in window.gauges("mmesh_index_disk_size_bytes"):
        folder = dict(labels)["folder"]
        free, size = (
            window.gauge(f"mmesh_index_disk_{what}_bytes", folder=folder)
            for what in ("free", "size")
        )
        found.setdefault((free, size), []).append(folder)
    return found
