"""The `mmesh` command: its groups, its errors and its exit codes."""

from __future__ import annotations

import sys

import click

from mmesh.cli.commands.alias import alias
from mmesh.cli.commands.candidates import delete, show
from mmesh.cli.commands.check import encode, rerank
from mmesh.cli.commands.collection import collection
from mmesh.cli.commands.evaluate import evaluate
from mmesh.cli.commands.index import index
from mmesh.cli.commands.ingest import ingest
from mmesh.cli.commands.migrate import migrate
from mmesh.cli.commands.scale import scale
from mmesh.cli.commands.search import search
from mmesh.cli.commands.status import status
from mmesh.cli.commands.transfer import export, import_
from mmesh.cli.commands.up import up
from mmesh.errors import MmeshError, Unavailable

_HELP = """Find texts, pictures and illustrated texts with words, pictures or both.

\b
mmesh up                                   start a mesh on this machine
mmesh ingest photos ~/Pictures             put a folder of pictures in
mmesh search photos "a cat on a sofa"      find
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MMESH"},
    help=_HELP,
)
@click.version_option(package_name="mmesh")
def cli() -> None:
    """Hold the commands."""


COMMANDS = (
    up, scale, collection, alias, ingest, search, delete, show, export, import_, migrate, index,
    status, encode, rerank, evaluate,
)  # fmt: skip
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line; failures of the mesh are one line on stderr and exit code 1."""
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
    except MmeshError as error:
        click.echo(f"error: {error.message} [{error.reason}]", err=True)
        if isinstance(error, Unavailable):
            click.echo("Is the mesh up? `mmesh up` starts one; `mmesh status` looks.", err=True)
        sys.exit(1)
