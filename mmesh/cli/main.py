"""The `mmesh` command: its groups, its errors and its exit codes."""

from __future__ import annotations

import gc
import sys
import traceback

import click

from mmesh.cli.lazy_group import LazyCommand, LazyGroup
from mmesh.cli.output.terminal import shown_output
from mmesh.errors import MmeshError, Unavailable

_HELP = """Find texts, pictures and illustrated texts with words, pictures or both.

\b
mmesh up                                   start a mesh on this machine
mmesh ingest photos ~/Pictures             put a folder of pictures in
mmesh search photos "a cat on a sofa"      find
"""
_COMMANDS = {
    "up": ("up:up", "Start encoders, index, reranker and gateway, and keep them running."),
    "scale": (
        "scale:scale",
        "Change the number of shards and replicas of the mesh that `mmesh up` runs on this "
        "machine.",
    ),
    "plan": (
        "cluster.plan:plan",
        "Say what a mesh takes: shards, memory, disks, pods and GPUs.",
    ),
    "k8s": (
        "cluster.k8s:k8s",
        "Change a mesh that runs on Kubernetes, by its overlay.",
    ),
    "collection": (
        "collection:collection",
        "Create, change, list, show, copy and delete collections.",
    ),
    "alias": (
        "alias:alias",
        "Give collections other names, and switch these from one to the next at once.",
    ),
    "ingest": (
        "ingest:ingest",
        "Put every SOURCE into COLLECTION, which is created if need be.",
    ),
    "search": ("search:search", "Search COLLECTION with TEXT, a picture, or both."),
    "delete": (
        "candidates:delete",
        "Delete candidates from COLLECTION by ID, or by filter; unknown ids are not an error.",
    ),
    "show": (
        "candidates:show",
        "Show candidates of COLLECTION: those with ID, or the first ones.",
    ),
    "export": (
        "transfer:export",
        "Write COLLECTION to a Parquet FILE, which appears when it is complete.",
    ),
    "import": (
        "transfer:import_",
        "Put what `mmesh export` wrote into COLLECTION, which is created if need be.",
    ),
    "migrate": (
        "migrate:migrate",
        "Move an alias to a collection of another model, while it is searched and written.",
    ),
    "index": (
        "index:index",
        "Look into the index processes, and have them merge, store and verify what they hold.",
    ),
    "status": (
        "status:status",
        "Show every process of the mesh; exit code 1 when one cannot be used.",
    ),
    "top": (
        "top.command:top",
        "Watch rates, latencies, queues, coverage and shards of a mesh, live.",
    ),
    "logs": (
        "logs.command:logs",
        "Show what the processes of a mesh on this machine logged, put together by time.",
    ),
    "probe": (
        "probe:probe",
        "Ask the process at HOST:PORT for its health; exit code 1 unless it serves.",
    ),
    "encode": ("check:encode", "Look at the encoder."),
    "rerank": ("check:rerank", "Look at the reranker."),
    "evaluate": ("evaluate:evaluate", "Measure the mesh on a data set, or compare two runs."),
    "train": ("train:train", "Train a model by the recipe CONFIG.toml."),
    "negatives": ("negatives:negatives", "Mine hard negatives for training from COLLECTION."),
}
COMMANDS = {
    name: LazyCommand(f"mmesh.cli.commands.{place}", short_help)
    for name, (place, short_help) in _COMMANDS.items()
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MMESH"},
    help=_HELP,
)
@click.version_option(package_name="mmesh")
def cli() -> None:
    """Hold the commands."""


def main() -> None:
    """Run the command line; failures of the mesh are one line on stderr and exit code 1."""
    gc.set_threshold(50_000)  # most of what is made at the start stays: looking for garbage is vain
    with shown_output():
        try:
            _main()
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        finally:
            gc.freeze()  # nor need what ends with the process be looked through once more


def _main() -> None:
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        if error.filename is None:
            raise
        click.echo(f"error: {error.strerror}: {error.filename}", err=True)  # a full disk, say
        sys.exit(1)
    except MmeshError as error:
        click.echo(f"error: {error.message} [{error.reason}]", err=True)
        if isinstance(error, Unavailable):
            click.echo("Is the mesh up? `mmesh up` starts one; `mmesh status` looks.", err=True)
        sys.exit(1)
