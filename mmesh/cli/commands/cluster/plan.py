"""`mmesh plan`: shards, memory, disks, pods and GPUs for what a mesh shall do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mmesh.cli.options import json_option
from mmesh.cli.output.amounts import bytes_text, count_of, duration_text, shares_of
from mmesh.cli.output.tables import console, table

_COUNT: dict[str, Any] = {"metavar": "COUNT", "callback": lambda _c, _o, text: count_of(text)}


_HELP = """Say what a mesh takes: shards, memory, disks, pods and GPUs.

All is reckoned from what the benchmarks measured; the last table names each figure with its
benchmark, and what goes beyond the measurements is said. Hold it against a test of your own.

\b
mmesh plan --rows 100M --modalities text=0.7,image=0.3 --qps 500 --rerank 20 --gpu h200
"""


@click.command(help=_HELP)
@click.option("--rows", required=True, **_COUNT, help="Candidates, such as 100M or 1B.")
@click.option("--dim", type=int, default=1024, show_default=True, help="Width of their vectors.")
@click.option(
    "--modalities",
    metavar="NAME=SHARE,...",
    default="text=1",
    show_default=True,
    callback=lambda _c, _o, text: shares_of(text),
    help="Share of candidates that are text, image or image-text.",
)
@click.option("--qps", type=float, default=10.0, show_default=True, help="Searches a second.")
@click.option(
    "--rerank",
    type=int,
    default=0,
    show_default=True,
    help="Candidates that a model judges in each search.",
)
@click.option(
    "--replicas",
    type=int,
    default=2,
    show_default=True,
    help="Pods that hold each shard, at least.",
)
@click.option(
    "--gpu",
    type=click.Choice(["none", "h100", "h200"]),
    default="none",
    show_default=True,
    help="What encoders and judges run on.",
)
@click.option(
    "--vectors",
    type=click.Choice(["float16", "float32", "int8", "flat"]),
    default="float16",
    show_default=True,
    help="How segments hold vectors.",
)
@click.option(
    "--text-bytes",
    default="500",
    show_default=True,
    **_COUNT,
    help="Length of a candidate's text and attributes.",
)
@click.option(
    "--picture-kb",
    type=float,
    default=100.0,
    show_default=True,
    help="Length of a candidate's picture.",
)
@click.option(
    "--pod-memory",
    type=float,
    default=64.0,
    show_default=True,
    metavar="GIB",
    help="Memory that an index pod may request, at most.",
)
@click.option(
    "--pod-cores",
    type=int,
    default=8,
    show_default=True,
    help="Cores that an index pod may request, at most.",
)
@click.option(
    "--kustomize",
    "overlay",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write an overlay for Kubernetes into a new folder.",
)
@click.option(
    "--k8s",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The project's folder k8s, by default one above DIR.",
)
@json_option
def plan(overlay: Path | None, k8s: Path | None, as_json: bool, **asked: Any) -> None:
    """Print a capacity plan."""
    from mmesh import capacity

    try:
        found = capacity.plan(_wish_of(**asked))
    except capacity.ImpossibleWish as impossible:
        raise click.UsageError(str(impossible)) from None
    if as_json:
        kept = asdict(found) | {"gpus": found.gpus, "cores": found.cores}
        click.echo(json.dumps(kept, default=lambda member: member.value))
    else:
        _show(found)
    if overlay is not None:
        _write(found, overlay, k8s)


def _wish_of(**asked: Any) -> Any:
    from mmesh import capacity

    return capacity.Wish(
        rows=asked["rows"],
        dim=asked["dim"],
        modalities=asked["modalities"],
        qps=asked["qps"],
        reranked=asked["rerank"],
        replicas=asked["replicas"],
        gpu=capacity.Gpu(asked["gpu"]),
        vectors=capacity.VectorKind(asked["vectors"]),
        text_bytes=asked["text_bytes"],
        picture_kb=asked["picture_kb"],
        pod_memory_gib=asked["pod_memory"],
        pod_cores=asked["pod_cores"],
    )


def _show(found: Any) -> None:
    index = found.index
    out = console()
    out.print(table(
        ["pods", "count", "cores", "memory", "GPUs", "scratch", "because of"],
        [[p.name, p.count, p.cores, bytes_text(p.memory_bytes), p.gpus or "",
          bytes_text(p.scratch_bytes) if p.scratch_bytes else "", p.reason] for p in found.pods],
        f"{found.cores:,} cores, {bytes_text(found.memory_bytes)} of memory, {found.gpus} GPUs",
    ))  # fmt: skip
    click.echo(
        f"An index process uses {bytes_text(index.used_bytes)}; the rest of its memory is for "
        "loading and merging.\n"
    )
    disks = [[one.name, bytes_text(one.bytes), one.reason] for one in found.disks]
    out.print(table(["disk", "size", ""], disks))
    times = [[one.name, duration_text(one.seconds)] for one in found.durations]
    click.echo()
    out.print(table(["it takes", "about"], times))
    click.echo("\n" + "\n".join(f"- {note}" for note in found.notes) + "\n")
    rows = [
        [one.name, f"{one.value:,.4g}", one.unit, one.measured_by] for one in found.coefficients
    ]
    out.print(table(["reckoned with", "value", "unit", "measured by"], rows))


def _write(found: Any, overlay: Path, k8s: Path | None) -> None:
    from mmesh.kubernetes.overlay import OverlayFailed, find_k8s, write_overlay

    try:
        write_overlay(found, overlay, k8s or find_k8s(overlay))
    except OverlayFailed as failure:
        raise click.ClickException(str(failure)) from None
    click.echo(
        f"wrote {overlay}; set images, tag and MMESH_INDEX_BLOBS_URL in its kustomization.yaml, "
        f"then: kubectl diff -k {overlay}",
        err=True,
    )
