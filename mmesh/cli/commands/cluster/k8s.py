"""`mmesh k8s`: changes of a mesh that runs on Kubernetes, by its overlay."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
from click.core import ParameterSource

from mmesh.cli.calls.clients import open_client
from mmesh.cli.options import address_option
from mmesh.kubernetes.overlay import OverlayFailed
from mmesh.kubernetes.scaling import Overlay, Switch, run
from mmesh.kubernetes.shard_set import AUTOSCALERS, MOST_SHARDS
from mmesh.mesh_status import MeshStatus

ASK_S = 10.0
_SCALE_HELP = """Change the number of shards while searches and ingests go on.

A new set is written beside the old one. Applied, it loads; when it is whole, all gateways search
it, which --apply and --wait wait for. --finish then removes the old one, and refuses while a
gateway still searches it.

\b
mmesh k8s scale --overlay k8s/overlays/production --shards 8 --replicas 2 --apply
mmesh k8s scale --overlay k8s/overlays/production --shards 8 --finish --apply
"""


@click.group()
def k8s() -> None:
    """Change a mesh that runs on Kubernetes, by its overlay."""


@k8s.command(help=_SCALE_HELP)
@click.option(
    "--overlay",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder such as k8s/overlays/production.",
)
@click.option(
    "--shards", type=click.IntRange(1, MOST_SHARDS), required=True, help="Index shards from now on."
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 16),
    show_default="as before",
    help="Pods that hold each shard; with an autoscaler, at least.",
)
@click.option(
    "--autoscaler",
    type=click.Choice(AUTOSCALERS),
    show_default="as before",
    help="What changes the number of replicas.",
)
@click.option("--apply", "applies", is_flag=True, help="Run kubectl, instead of saying how.")
@click.option(
    "--wait", "waits", is_flag=True, help="Wait for the switch, when you have applied it yourself."
)
@click.option("--finish", is_flag=True, help="Remove the other sets, once they are not searched.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=1),
    default=3600.0,
    show_default=True,
    help="Seconds to wait for the switch, at most.",
)
@address_option
def scale(
    overlay: Path, shards: int, replicas: int | None, autoscaler: str | None, applies: bool,
    waits: bool, finish: bool, timeout_s: float, address: str,
) -> None:  # fmt: skip
    """Write, apply, wait, finish."""
    try:
        chosen = Overlay(overlay)
        if finish:
            steps = _finish(chosen, shards, address, applies=applies)
        else:
            steps = _begin(chosen, shards, replicas, autoscaler, applies=applies)
        for line in steps:
            click.echo(line)
        if not finish and (applies or waits):
            wanted = chosen.set_of(shards).replicas
            for line in Switch(shards, wanted, address, _ask).wait(timeout_s):
                click.echo(line)
        if not finish:
            then = "--finish" if applies or waits else "--wait"
            options = ["--overlay", str(overlay), "--shards", str(shards), *_given_address(), then]
            click.echo(f"then: {shlex.join(['mmesh', 'k8s', 'scale', *options])}")
    except OverlayFailed as failure:
        raise click.ClickException(str(failure)) from None


def _begin(
    overlay: Overlay, shards: int, replicas: int | None, autoscaler: str | None, *, applies: bool
) -> Iterator[str]:
    sizes = overlay.sizes
    wanted = overlay.wanted(shards, replicas, autoscaler)
    before = overlay.set_of(shards) if shards in sizes else None
    if before and before.autoscaler not in ("none", wanted.autoscaler):
        # Deleted first: two autoscalers never act on the same pods, and a retry does it again.
        yield from _told(overlay.delete_autoscaler_command(before), applies=applies)
    if before != wanted:
        overlay.add(wanted)
    others = ", ".join(str(size) for size in sizes if size != shards) or "none"
    done = "has already" if before == wanted else "wrote"
    yield (
        f"{overlay.path}: {done} a set of {shards} shards, {wanted.replicas} pods each; "
        f"beside sets of: {others}"
    )
    yield from _told(overlay.apply_command(), applies=applies)


def _given_address() -> list[str]:
    """Return the option that says which gateway to ask, if it was given."""
    context = click.get_current_context()
    given = context.get_parameter_source("address") is ParameterSource.COMMANDLINE
    return ["--target-address", context.params["address"]] if given else []


def _finish(overlay: Overlay, shards: int, address: str, *, applies: bool) -> Iterator[str]:
    if shards not in overlay.sizes:
        raise OverlayFailed(f"{overlay.path} has no set of {shards} shards to keep")
    gone = [overlay.set_of(size) for size in overlay.sizes if size != shards]
    if not gone:
        yield f"{overlay.path} has no other set"
        return
    switch = Switch(shards, 1, address, _ask)
    if not switch.is_done:
        lack = next(f"{one}: {lack}" for one, lack in switch.seen.items() if lack)
        raise OverlayFailed(f"the set of {shards} is not what is searched yet; {lack}")
    for one in gone:  # dropped last: a set that the overlay lacks is never deleted again
        yield from _told(overlay.delete_command(one), applies=applies)
        overlay.drop(one.shards)
        yield f"{overlay.path}: removed the set of {one.shards} shards"


def _told(command: list[str], *, applies: bool) -> Iterator[str]:
    yield f"{'running' if applies else 'next'}: {shlex.join(command)}"
    if applies:
        run(command)


def _ask(address: str) -> MeshStatus:
    with open_client(address) as client:
        return client.get_status(timeout=ASK_S)
