"""Options of commands, without a mesh."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mmesh.cli.collection_settings import given, settings_rows
from mmesh.cli.main import cli
from mmesh.cli.options import ReplacedPath
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
        (["ingest", "c", ".", "--encoding", "hex"], "is no encoding"),
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


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["ingest", "c"], []),
        (["ingest", "c", "."], []),
        (["ingest", "c", ".", "--vectors"], []),
        (["search", "c", "--queries"], []),
        (["negatives", "c", "--out", "n.parquet", "--queries"], []),
        (["import", "c"], []),
        (["evaluate", "compare"], ["."]),
        (["evaluate", ".", "--baseline"], []),
    ],
    ids=" ".join,
)
def test_what_gives_its_rows_only_once_is_wrong_usage(invoke, tmp_path, before, after):
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    result = invoke(*before, str(pipe), *after)
    assert result.exit_code == 2
    assert "is a pipe; write it to a file first" in " ".join(result.output.split())


WRITERS = [
    ["ingest", "c", ".", "--report"],
    ["import", "c", "pyproject.toml", "--report"],
    ["migrate", "c", "--model", "m", "--report"],
    ["search", "c", "cats", "--html"],
    ["encode", "check", "--address", "127.0.0.1:1", "--save"],
    ["rerank", "check", "--address", "127.0.0.1:1", "--save"],
]
REPLACERS = [["export", "c"], ["negatives", "c", "--queries", ".", "--out"]]


@pytest.mark.parametrize("arguments", WRITERS + REPLACERS, ids=" ".join)
def test_a_file_that_cannot_be_written_is_told_before_the_work(invoke, tmp_path, arguments):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere" / "out")
    for path in (tmp_path / "nowhere" / "out", link):
        result = invoke(*arguments, str(path))
        assert result.exit_code == 2
        assert "nowhere is no folder" in result.output.replace("\n", "")


@pytest.mark.parametrize("arguments", REPLACERS, ids=" ".join)
def test_a_file_takes_the_place_of_nothing_but_files(invoke, tmp_path, arguments):
    os.mkfifo(tmp_path / "pipe")
    result = invoke(*arguments, str(tmp_path / "pipe"))
    assert result.exit_code == 2
    assert "is no file" in result.output


def test_a_file_takes_the_place_of_what_a_link_leads_to(tmp_path):
    (tmp_path / "link").symlink_to("target")
    assert ReplacedPath().convert(tmp_path / "link", None, None) == tmp_path / "target"
    (tmp_path / "target").touch()
    assert ReplacedPath().convert(tmp_path / "link", None, None) == tmp_path / "target"
    assert ReplacedPath().convert("new", None, None) == Path("new")
