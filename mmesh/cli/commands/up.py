"""`mmesh up`: a whole mesh on this machine."""

from __future__ import annotations

import asyncio
import shlex
import signal
from contextlib import nullcontext, suppress
from pathlib import Path

import click

from mmesh.cli.output.waiting import WaitingLine
from mmesh.local.mesh import LocalMesh
from mmesh.local.observers import Observers
from mmesh.local.plan import DEFAULT_PORT, LocalSettings, MeshFailed
from mmesh.local.scaling import carry_out_orders

DEFAULT_DATA = Path(".mmesh")


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_DATA,
    show_default=True,
    help="Folder for everything that is kept.",
)
@click.option(
    "--shards",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Index shards; may change from start to start.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="Port of the gateway on 127.0.0.1; 0 takes a free one.",
)
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    default=("lite",),
    show_default=True,
    metavar="MODEL[,SETTING=VALUE]...",
    help="A model that the mesh serves, with settings of its encoder, such as "
    "/models/clip,device=cuda; give the option once for each model. New collections are "
    "for the first.",
)
@click.option(
    "--reranker",
    default="maxsim",
    show_default=True,
    metavar="JUDGE",
    help="Who judges the first hits: maxsim, none, vllm:MODEL or vllm+http://HOST:PORT; "
    "its other settings are taken from the environment.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Index processes that hold each shard.",
)
@click.option(
    "--log-url",
    default="",
    metavar="URL",
    help="SQLAlchemy address of the log, such as postgresql+psycopg://user@host/mmesh; "
    "by default SQLite in the data folder. One with a password is better given as "
    "MMESH_UP_LOG_URL, since everybody on the machine can read options.",
)
@click.option(
    "--blobs-url",
    default="",
    metavar="URL",
    help="Where pictures and snapshots are: a folder, or s3://bucket/prefix; by default "
    "the data folder.",
)
@click.option(
    "--start-timeout",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a service may show no progress, in its log or in CPU time, before its "
    "start counts as failed.",
)
@click.option(
    "--log-mib",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    metavar="MIB",
    help="Size from which on the log of a service begins anew; the one before is kept.",
)
@click.option(
    "--observe",
    is_flag=True,
    help="Start Prometheus and Alertmanager, too, where they are installed, with the "
    "alerts of docs/runbooks, on free ports of 127.0.0.1.",
)
def up(
    data: Path,
    shards: int,
    port: int,
    encoders: tuple[str, ...],
    reranker: str,
    replicas: int,
    log_url: str,
    blobs_url: str,
    start_timeout: float,
    log_mib: int,
    observe: bool,
) -> None:
    """Start encoders, index, reranker and gateway, and keep them running.

    Prints "ready 127.0.0.1:PORT" once the mesh answers, and until then what it waits for: a large
    model may take minutes. A service that dies is restarted. Ctrl-C or SIGTERM lets running calls
    finish and stops everything.
    """
    if reranker not in ("maxsim", "none") and not reranker.startswith(("vllm:", "vllm+")):
        known = "maxsim, none, vllm:MODEL or vllm+http://HOST:PORT"
        raise click.BadParameter(f"use {known}", param_hint="--reranker")
    try:
        settings = LocalSettings(
            data,
            shards,
            port,
            reranker,
            encoders,
            replicas=replicas,
            log_url=log_url,
            blobs_url=blobs_url,
            start_timeout_s=start_timeout,
            log_bytes=log_mib << 20,
        )
        asyncio.run(_run(settings, observe=observe))
    except MeshFailed as failure:
        raise click.ClickException(str(failure)) from None


async def _run(settings: LocalSettings, *, observe: bool) -> None:
    """Run a mesh until a signal; one that comes while it starts ends the start at once."""
    # Whoever ignores it passes that on, and never learns how children have ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stop = asyncio.Event()
    starting = asyncio.current_task()

    def interrupt() -> None:
        stop.set()
        if starting is not None:
            starting.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, interrupt)
    waiting = WaitingLine()
    try:
        async with LocalMesh(settings, waiting.say, waiting.show) as mesh:
            starting = None
            await _serve(mesh, stop, observe=observe)
    except asyncio.CancelledError:
        raise click.Abort from None


async def _serve(mesh: LocalMesh, stop: asyncio.Event, *, observe: bool = False) -> None:
    with suppress(OSError):  # whoever reads this may be gone, the mesh goes on
        click.echo(f"ready {mesh.address}")
    if mesh.settings.data != DEFAULT_DATA:
        needs = f"--data {shlex.quote(str(mesh.settings.data))}"
        mesh.say(f"`mmesh index`, `scale` and `check` need {needs}")
    orders = asyncio.create_task(carry_out_orders(mesh))
    async with Observers(mesh.settings.data, mesh.say) if observe else nullcontext():
        await stop.wait()
        mesh.say("draining")
    orders.cancel()
    await asyncio.gather(orders, return_exceptions=True)
