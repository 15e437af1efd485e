"""Forked services: like processes of their own, and gone with those that started them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path

import pytest

from mmesh.local.plan import PRELOAD, TRUNK
from mmesh.local.processes import CannotFork, ForkTree, Launcher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")

TELL = """
import json
print(json.dumps([sys.argv[1:], sorted(os.environ), os.getppid(), os.getsid(0), os.getpid()]))
assert sys.stdin.read() == ""
sys.exit(7)
"""
SLEEP = "time.sleep(600)"
THREADS = "import os; {}; print(len(os.listdir('/proc/self/task')))"
SERVICES = ("encoder", "gateway", "index", "reranker")
PARENT = """
import asyncio, os, sys
from pathlib import Path
from mmesh.local.plan import Service
from mmesh.local.plan import PRELOAD
from mmesh.local.processes import Launcher
async def run():
    launcher = Launcher(Path(sys.argv[1]), print)
    process = await launcher.start(Service("sleeper", 1, "", ()))
    print(process.pid, launcher._trees[0].trunk.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(run())
"""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for does not."""
    with suppress(OSError):  # it has ended, or does while it is read
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_gone(pid: int) -> None:
    until = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
async def tree(tmp_path, make_service):
    """A tree with two branches that has imported nothing."""
    planted = await ForkTree.plant(["one", "other"], os.environ, tmp_path / "tree.log", ())
    yield planted
    await planted.fell()


@pytest.fixture
def server(tree):
    return tree.branches["one"]


async def test_a_fork_is_like_a_process_of_its_own(tree, server, make_service, tmp_path):
    service = make_service("teller", TELL, "--flag", "a value")
    log = tmp_path / "teller.log"
    log.write_text("before\n")
    process = await server.fork(service, {"ONLY": "this"}, log)
    assert await process.wait() == process.returncode == 7
    before, line = log.read_text().splitlines()
    arguments, variables, parent, session, pid = json.loads(line)
    assert before == "before"
    assert arguments == ["--flag", "a value"]
    assert variables == ["ONLY"]
    assert (session, pid) == (process.pid, process.pid)
    assert parent == tree.trunk.pid


async def test_a_signal_ends_a_fork_and_its_end_is_reported(server, make_service, tmp_path):
    service = make_service("sleeper", SLEEP)
    first, second = [await server.fork(service, os.environ, tmp_path / "log") for _ in range(2)]
    first.send_signal(signal.SIGKILL)
    assert await first.wait() == -signal.SIGKILL
    assert second.returncode is None
    with pytest.raises(ProcessLookupError):
        first.send_signal(signal.SIGTERM)
    second.send_signal(signal.SIGTERM)
    assert await second.wait() == -signal.SIGTERM


async def test_what_a_module_cannot_import_is_in_the_log_of_the_fork(
    server, make_service, tmp_path
):
    service = make_service("broken", SLEEP, top="print('noise'); import no_such_module")
    process = await server.fork(service, os.environ, tmp_path / "log")
    assert await process.wait() == 1
    assert "no_such_module" in (tmp_path / "log").read_text()


async def test_all_services_end_with_the_trunk(tree, make_service, tmp_path):
    service = make_service("sleeper", SLEEP)
    forked = [await b.fork(service, os.environ, tmp_path / "log") for b in tree.branches.values()]
    tree.trunk.kill()
    for process, branch in zip(forked, tree.branches.values(), strict=True):
        assert await process.wait() == -signal.SIGTERM
        assert not is_running(process.pid)
        with pytest.raises(CannotFork):
            await branch.fork(service, os.environ, tmp_path / "log")


async def test_a_branch_that_dies_takes_its_own_services_only(tree, make_service, tmp_path):
    service = make_service("sleeper", SLEEP)
    one, other = [
        await branch.fork(service, os.environ, tmp_path / "log")
        for branch in tree.branches.values()
    ]
    os.kill(parent_of(other.pid), signal.SIGKILL)
    assert await other.wait() == -signal.SIGTERM
    assert one.returncode is None
    assert (await tree.branches["one"].fork(service, os.environ, tmp_path / "log")).pid


async def test_an_order_that_is_cancelled_leaves_no_child(server, make_service, tmp_path):
    body = f"print(os.getpid(), flush=True)\n{SLEEP}"
    service, log = make_service("sleeper", body), tmp_path / "log"
    ordering = asyncio.create_task(server.fork(service, os.environ, log))
    await asyncio.sleep(0)
    ordering.cancel()
    after = await server.fork(service, os.environ, tmp_path / "other.log")  # orders have an order
    after.send_signal(signal.SIGTERM)
    await after.wait()
    for pid in log.read_text().split():
        wait_gone(int(pid))
    for child in list(server._children.values()):  # the report of its end comes after the end
        await child.wait()
    assert not server._children


def test_both_end_with_the_process_that_started_them(make_service, tmp_path):
    make_service("sleeper", SLEEP)
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert all(map(is_running, pids))
        parent.kill()
    for pid in pids:
        wait_gone(pid)


def test_a_service_that_still_imports_ends_with_the_process_that_started_it(make_service, tmp_path):
    make_service("sleeper", SLEEP, top="time.sleep(600)")
    program = PARENT.replace('"", ())', '"", (), forks=False)').replace("launcher._trees[0].", "")
    command = [sys.executable, "-c", program.replace("trunk.pid", "1"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline().split()[0])
        parent.kill()
    wait_gone(pid)


async def test_ends_are_reported_where_the_parent_ignores_those_of_its_children(
    make_service, tmp_path
):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        tree = await ForkTree.plant(["one"], os.environ, tmp_path / "tree.log", ())
    finally:
        signal.signal(signal.SIGCHLD, before)
    service = make_service("ending", "sys.exit(7)")
    for _ in range(2):
        process = await tree.branches["one"].fork(service, os.environ, tmp_path / "log")
        assert await process.wait() == 7
    await tree.fell()


async def test_what_has_threads_is_started_as_an_interpreter(make_service, tmp_path):
    top = "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
    service = make_service("threaded", "sys.exit(3)", top=top)
    said = []
    launcher = Launcher(tmp_path, said.append)
    process = await launcher.start(service)
    assert await process.wait() == 3
    assert "threaded is not forked: 2 threads run" in said[0]
    service.forks = False
    assert await (await launcher.start(service)).wait() == 3
    assert len(said) == 1
    await launcher.close()


async def test_a_fork_server_that_died_is_replaced(make_service, tmp_path):
    service = make_service("sleeper", SLEEP)
    launcher = Launcher(tmp_path, print)
    first = await launcher.start(service)
    launcher._trees[0].trunk.kill()
    await first.wait()
    second = await launcher.start(service)
    assert is_running(second.pid)
    await launcher.close()
    wait_gone(second.pid)


def test_importing_all_services_starts_no_thread():  # 1.5 CPU seconds
    modules = [f"services.{service}.__main__" for service in SERVICES]
    program = THREADS.format("import " + ", ".join([*TRUNK, *modules, *chain(*PRELOAD.values())]))
    environment = {n: v for n, v in os.environ.items() if n != "OPENBLAS_NUM_THREADS"}
    output = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert int(output) == 1


@pytest.mark.parametrize("forks", [True, False])
async def test_what_lies_in_the_current_folder_is_not_imported(
    forks, make_service, tmp_path, monkeypatch
):
    project = tmp_path / "project"
    (project / "services").mkdir(parents=True)
    for module in ("services/__init__", "selectors", "colorsys"):
        (project / f"{module}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.chdir(project)
    service = make_service("importer", "import colorsys; sys.exit(7)")
    service.forks = forks
    launcher = Launcher(tmp_path, print)
    process = await launcher.start(service)
    assert await process.wait() == 7
    assert not (tmp_path / "imported").exists()
    await launcher.close()
