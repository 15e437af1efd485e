"""Options of commands, without a mesh."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from mmesh.cli.commands.settings import given, settings_rows
from mmesh.cli.main import cli
from mmesh.collections import CollectionLimits, CollectionSettings, with_changes


@pytest.fixture
def invoke():
    return lambda *arguments: CliRunner().invoke(cli, arguments, env={"COLUMNS": "100"})


CONTEXT = click.Context(cli)


def commands(command, path=()):
    yield path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(CONTEXT):
            yield from commands(command.get_command(CONTEXT, name), (*path, name))


FOUND = dict(commands(cli))


@pytest.mark.parametrize("path", list(FOUND), ids=" ".join)
def test_every_command_explains_itself_and_its_options(invoke, path):
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert "\\b" not in result.output
    command = FOUND[path]
    assert command.help
    options = [p for p in command.params if p.param_type_name == "option"]
    assert all(option.help for option in options)


def test_only_the_settings_that_are_given_change():
    before = CollectionSettings("Flat", 0.9, CollectionLimits(1, 2, 3, 4, 5))
    nothing = dict.fromkeys(
        ["index_factory", "recall_target", "max_candidates", "max_candidate_bytes",
         "max_attributes", "max_filter_depth", "max_limit"]
    )  # fmt: skip
    assert with_changes(before, given(nothing)) == before
    changed = with_changes(before, given(nothing | {"index_factory": "", "max_limit": 0}))
    assert changed == CollectionSettings("", 0.9, CollectionLimits(1, 2, 3, 4, 0))


def test_settings_are_shown_in_words_where_they_are_the_defaults():
    rows = dict(settings_rows(CollectionSettings()))
    assert rows["index factory"] == "by size"
    assert rows["max candidates"] == "any number"
    assert rows["max limit"] == "1000"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["delete", "c"], "either IDs or --filter"),
        (["delete", "c", "a", "--filter", "x = 1"], "either IDs or --filter"),
        (["collection", "set", "c"], "at least one setting"),
        (["collection", "create", "c", "--max-limit", "many"], "not a valid integer"),
        (["import", "c", "nowhere.parquet"], "does not exist"),
        (["index", "segments", "--data", "nowhere"], "--index-address"),
    ],
)
def test_wrong_usage_is_said_in_one_line(invoke, arguments, said):
    result = invoke(*arguments)
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_model_without_vectors_is_wrong_usage(invoke, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "a", "text": "b"}))
    result = invoke("ingest", "c", str(rows), "--model-fingerprint", "m")
    assert result.exit_code == 2
    assert "--vectors" in result.output
