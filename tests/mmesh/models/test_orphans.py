"""An engine ends with its service, however that ends."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import multiprocessing, os, sys, time
from mmesh.models.orphans import end_children_with_this, end_with_parent

def engine(depth):
    if sys.argv[1] == "spawn":
        end_with_parent()
    if depth:
        start(depth - 1)
    print(os.getpid(), flush=True)
    time.sleep(600)

def start(depth):
    multiprocessing.get_context(sys.argv[1]).Process(target=engine, args=(depth,)).start()

if __name__ == "__main__":
    end_with_parent()  # a main process does not end
    end_children_with_this()
    start(1)
    time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def start(tmp_path):
    """Start a service and return it; what it leaves behind is killed in the end."""
    started = []

    def begin(command, **options):
        started.append(subprocess.Popen(command, start_new_session=True, **options))
        return started[-1]

    yield begin
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.wait()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_children_and_theirs_end_with_a_killed_parent(start, tmp_path, eventually, method):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, tmp_path / "program.py", method]
    with start(command, stdout=subprocess.PIPE, text=True) as service:
        pids = [int(service.stdout.readline()) for _ in range(2)]
        assert all(map(is_running, pids))
        service.kill()
        eventually(lambda: not any(map(is_running, pids)), "the children end", 20)


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", ["while it loads", "when it serves"])
def test_the_real_engine_ends_with_a_killed_reranker(start, tmp_path, eventually, moment):
    """Costs two starts of vLLM, each in processes of its own."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is absent: run `make setup-vllm`")
    import psutil

    from mmesh.testing.tiny_models import build_tiny_qwen3_vl

    folder = build_tiny_qwen3_vl(tmp_path / "model")
    log = tmp_path / "log"
    flags = ["--dtype", "float32", "--enforce-eager", "--kv-cache-gib", "0.1"]
    flags += ["--max-model-len", "2048", "--model", f"vllm:{folder}"]
    with log.open("w") as file:
        service = start(
            [sys.executable, "-m", "services.reranker", *flags], stdout=file, stderr=file
        )
    children: list[psutil.Process] = []

    def engine_is_there() -> bool:
        assert service.poll() is None, log.read_text()[-3000:]
        children[:] = psutil.Process(service.pid).children(recursive=True)
        if moment == "when it serves" and '"serving"' not in log.read_text():
            return False
        return any("EngineCore" in child.name() for child in children)

    eventually(engine_is_there, "the engine has a process", 200)
    service.kill()
    service.wait()
    eventually(
        lambda: not [c for c in children if is_running(c.pid)], "no process is left behind", 30
    )
