"""Which tests go to one worker of pytest-xdist, in what order, and which start other processes.

What tests share and is dear to make (a mesh, a database, a loaded model) is made by each worker
that needs it, so the tests that share it are one group. All others are free. Groups and single
tests go out longest first, by tests/durations.json: no worker gets the longest one at the end.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from tests.effort import patient

HERE = Path(__file__).parent
SHARED = ("mesh", "s3", "postgres")
"""Fixtures of the whole run; a test belongs to the first one that it uses."""
TIMED = {
    "mesh/test_autoscaling.py",
    "mesh/test_degradation.py",
    "mesh/test_log_outage.py",
    "scenarios/test_alert_scenarios.py",
    "services/gateway/shards/test_hedging.py",
    "services/gateway/shards/test_shard_search.py",
}
"""Modules that freeze things and look at how long others take: never two at a time."""
STARTERS = {"start_mesh", "index_processes", "s3", "postgres"}
PROGRAMS = (
    "mesh/", "scenarios/", "docs/", "images/", "node/", "benchmarks/", "packaging/test_wheel.py",
    "mmesh/cli/test_up.py", "mmesh/local/test_fork_server.py", "mmesh/local/test_local_mesh.py",
    "mmesh/local/test_readiness.py", "mmesh/models/test_hub.py",
    "mmesh/training/test_train_command.py",
    "services/index/test_log_concurrency.py",
    "services/index/test_log_schema.py::test_several_processes",
    "services/index/test_verify.py::test_the_command",
)  # fmt: skip
"""Tests that use one of these fixtures, or are in one of these places, start processes."""
DATABASES = {"postgres", "postgresql"}
"""Values of parameters for which a test takes the fixture `postgres` while it runs."""


def module_of(item: pytest.Item) -> str:
    return item.path.relative_to(HERE).as_posix()


def fixtures_of(item: pytest.Item) -> dict[str, pytest.FixtureDef[Any]]:
    """Return the fixtures that a test uses, those that its parameters name, too."""
    callspec = getattr(item, "callspec", None)
    values = [v for v in (callspec.params.values() if callspec else ()) if isinstance(v, str)]
    names = [*getattr(item, "fixturenames", ()), *values]
    names += ["postgres"] if DATABASES & set(values) else []
    found: dict[str, pytest.FixtureDef[Any]] = {}
    while names:
        name = names.pop()
        known = item.session._fixturemanager.getfixturedefs(name, item)
        if known and name not in found:  # of several with a name, the nearest hides the others
            found[name] = known[-1]
            names += known[-1].argnames
    return found


def shares_in_module(item: pytest.Item) -> bool:
    """Tell whether a test uses a fixture that is made once for the tests of its module."""
    own = item.nodeid.split("::")[0]
    used = fixtures_of(item).values()
    return any(one.scope != "function" and one.baseid == own for one in used)


def starts_processes(item: pytest.Item) -> bool:
    """Tell whether a test starts services, databases or programs."""
    place = item.nodeid.removeprefix(f"{HERE.name}/")
    return bool(STARTERS & fixtures_of(item).keys()) or place.startswith(PROGRAMS)


def group_of(item: pytest.Item) -> str | None:
    """Return the group of a test, or None when it may run anywhere."""
    module = module_of(item)
    if item.get_closest_marker("vllm"):
        return "vllm"  # one engine at a time has the memory and the time that it needs
    if module in TIMED:
        return "timed"
    shared = [name for name in SHARED if name in fixtures_of(item)]
    return shared[0] if shared else module if shares_in_module(item) else None


def known_seconds() -> dict[str, float]:
    """Return how long groups and slow tests took when they were last measured."""
    path = HERE / "durations.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    return table.get("groups", {}) | table.get("slowest", {})


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers and sent to workers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    groups = {item: group_of(item) for item in items}
    for item, group in groups.items():
        item.user_properties.append(("group", group or ""))
        own = item.get_closest_marker("timeout")
        limit_s = float(own.args[0] if own else config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(patient(limit_s)), append=False)
        if starts_processes(item):
            item.add_marker(pytest.mark.processes)
    worker = getattr(config, "workerinput", None)
    if worker is not None:  # the order of a run without workers is that of the files
        seconds = known_seconds()
        items.sort(key=lambda item: -seconds.get(groups[item] or item.nodeid, 0.0))
    if worker is not None and worker["workerid"] == "gw0":
        told = {item.nodeid: group for item, group in groups.items() if group}
        Path(worker["groups"]).write_text(json.dumps(told))


class Workers:
    """What the process that starts the workers does: hands out groups, and names failures.

    xdist's own groups are of no use: it writes them into `Item._nodeid`, which pytest 9.1 and later
    does not read. So a worker tells them in a file, before it says which tests it has found.
    """

    def __init__(self, folder: Path, plugins: pytest.PytestPluginManager) -> None:
        self._path = folder / "groups.json"
        self._plugins = plugins

    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["groups"] = str(self._path)

    def pytest_testnodedown(self, node: WorkerController, error: object) -> None:
        """Say by which code or signal a worker that crashed has ended."""
        if error:
            process = node.gateway._io.popen
            with suppress(subprocess.TimeoutExpired):  # closed its pipe, and is still there
                process.wait(patient(5))
            self._say(f"worker {node.gateway.id} ended with code {process.returncode}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Name a failed test when it fails, for those who see no summary since a run was ended."""
        if report.failed:
            self._say(f"FAILED {report.nodeid} ({report.when})")

    def _say(self, line: str) -> None:
        terminal = self._plugins.getplugin("terminalreporter")
        if terminal is not None and terminal.verbosity <= 0:
            terminal.ensure_newline()
            terminal.write_line(line, red=True)

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadScopeScheduling:
        config.option.loadscopereorder = False
        return Groups(self._path, config, log)


class Groups(LoadScopeScheduling):
    """Gives a group to one worker; a test without one is alone in its group."""

    def __init__(self, path: Path, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        self._path = path
        self._known: dict[str, str] = {}

    def _split_scope(self, nodeid: str) -> str:
        self._known = self._known or json.loads(self._path.read_text()) or {"": ""}
        return self._known.get(nodeid, nodeid)

    def remove_node(self, node: WorkerController) -> str | None:
        """Take the groups of a worker that ended back, but those that it finished.

        xdist hands these out again, and a worker that gets one has nothing to report and waits for
        ever: a run whose worker crashed never came to its end.
        """
        assigned = self.assigned_work[node]
        for name in [name for name, tests in assigned.items() if all(tests.values())]:
            del assigned[name]
        return super().remove_node(node)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("dist", "no") == "loadgroup":
        folder = tempfile.TemporaryDirectory(prefix="mmesh-groups-")
        config.add_cleanup(folder.cleanup)
        config.pluginmanager.register(Workers(Path(folder.name), config.pluginmanager))
