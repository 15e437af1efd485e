"""Commands that pages name exist, with the options that they are given."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from mmesh.cli.main import cli
from tests.docs.test_links import ROOT, pages

FENCE = re.compile(r"^```[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
PARTS = re.compile(r"\s(?:&&|\|\|?|;|>|#)\s|\s(?:&|#.*)$")
MODULE = re.compile(
    r"python3? -m ((?:mmesh|services|tools|tests|benchmarks)(?:\.[a-z_]+)*)(?![\w.])"
)
DEFAULTS = {"migrate": "start", "evaluate": "run"}
"""What a group takes for the subcommand where a word is none."""
OURS = [
    name for name in pages() if not name.startswith(("docs/adr/", "docs/reference/", "CHANGELOG"))
]
RUNBOOKS = [name for name in OURS if name.startswith("docs/runbooks/")]


def code_of(page: Path) -> list[str]:
    """Return the lines of code of a page, and what it has as code within a sentence."""
    text = page.read_text("utf-8")
    lines = [
        line for block in FENCE.findall(text) for line in block.replace("\\\n", "").splitlines()
    ]
    return lines + INLINE.findall(FENCE.sub("", text))


def commands_of(page: Path) -> Iterator[list[str]]:
    """Yield the words after `mmesh`, also where kubectl runs it in a pod."""
    for code in code_of(page):
        for part in PARTS.split(code):
            found = re.search(r"(?:^|\$ |-- )mmesh (?=[a-z-])(.*)", part.strip())
            if found:
                yield _words(found[1])


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def check(words: list[str]) -> None:
    """Raise where a command or an option of it does not exist."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        default = DEFAULTS.get(str(command.name))
        if default and command.get_command(click.Context(command), words[0]) is None:
            words = [default, *words]
        _, found, words = command.resolve_command(click.Context(command), words)
        assert found is not None
        command = found
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    given = {word.partition("=")[0] for word in words if re.match(r"--\w", word)}
    assert given <= {"--help", *known}


@pytest.mark.parametrize("name", OURS)
def test_every_command_that_a_page_names_exists(name):
    for words in commands_of(ROOT / name):
        try:
            check(list(words))
        except (AssertionError, click.UsageError) as error:
            pytest.fail(f"mmesh {' '.join(words)}: {error}")


@pytest.mark.parametrize("name", OURS)
def test_every_module_that_a_page_runs_exists(name):
    for module in MODULE.findall("\n".join(code_of(ROOT / name))):
        try:
            assert find_spec(module) is not None, module
        except ModuleNotFoundError:
            pytest.fail(module)


@pytest.mark.parametrize("name", RUNBOOKS)
def test_a_runbook_says_how_its_commands_reach_a_cluster(name):
    """Network policies let nobody but gateways call index processes, and no folder is there."""
    text = (ROOT / name).read_text()
    if "`mmesh " in text and not name.endswith("README.md"):
        assert "(README.md#in-a-cluster)" in text
