"""What the command line imports: as little as the command at hand needs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mmesh
import mmesh.wire
from mmesh.cli.main import COMMANDS

LIGHT = {"click", "mmesh"}
"""Packages, besides Python's own, that listing the commands may import."""
NOWHERE = ["--target-address", "127.0.0.1:1", "--timeout", "1"]
PROGRAM = """
import sys
before = set(sys.modules)
from mmesh.cli import main
try:
    main()
except SystemExit:
    pass
import json
print(json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr)
"""


def imports(*arguments):
    """Return the modules that a command imports, apart from those of every Python program."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_the_list_of_commands_imports_click_and_no_command():
    loaded = imports("--help")
    packages = {name.partition(".")[0] for name in loaded}
    assert packages - sys.stdlib_module_names <= LIGHT
    assert "asyncio" not in packages
    assert not {name for name in loaded if name.startswith("mmesh.cli.commands.")}


def test_a_search_that_fails_loads_no_tables_and_nothing_of_other_calls():
    loaded = imports("search", "c", "words", *NOWHERE)
    assert "grpc" in loaded
    assert not loaded & {"rich", "numpy", "mmesh.collections", "mmesh.filters", "mmesh.mesh_status"}


def test_a_probe_loads_grpc_and_no_messages():
    loaded = imports("probe", "127.0.0.1:1")
    assert "grpc" in loaded
    assert not {name for name in loaded if name.startswith("mmesh.api")}
    assert not loaded & {"rich", "numpy", "google.protobuf"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_by_its_own_help(name):
    command = COMMANDS[name].load()
    assert command.name == name
    assert command.get_short_help_str(1000) == COMMANDS[name].short_help


@pytest.mark.parametrize("package", [mmesh, mmesh.wire], ids=lambda package: package.__name__)
def test_names_are_loaded_from_where_type_checkers_find_them(package):
    tree = ast.parse(Path(package.__file__).read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and "not" not in ast.unparse(node.test)
    )
    homes = {alias.name: one.module for one in block.body for alias in one.names}
    assert sorted(homes) == sorted(package.__all__)
    assert homes == {
        name: f"{package.__name__}.{module}"
        for module, names in package._MODULES.items()
        for name in names.split()
    }


def test_modules_of_the_sdk_are_attributes_and_others_are_not():
    assert mmesh.errors.MmeshError is mmesh.MmeshError
    with pytest.raises(AttributeError, match="nothing"):
        _ = mmesh.nothing
