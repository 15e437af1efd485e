"""How fast the command line and a local mesh start, and what an idle mesh holds in memory.

With `--baseline` the same is done with another checkout, in turns, so that both see the same
machine. CPU time is what the kernel counts for a process and all that it started. Memory is the
proportional set size (PSS): a page that n processes share counts 1/n in each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from bench import Cell, Report, options_of, run

from mmesh.local.mesh import is_serving
from mmesh.local.plan import HEALTH
from mmesh.local.readiness import cpu_seconds

HERE = Path(__file__).resolve().parents[1]
MAIN = "from mmesh.cli import main; main()"
PATIENCE_S, IDLE_S = 300.0, 12.0
"""Longest time that a mesh may take to start, and the time after which it counts as idle."""
KILLED = ("encoder", "index-0", "gateway")
ROWS = [{"id": f"t{number}", "text": f"the harbour on day {number}"} for number in range(64)]
COLLECTION = "start"
CLICK = "import click"
SEARCH = ["search", COLLECTION, "the harbour on day 7"]
NOWHERE = ["--target-address", "127.0.0.1:9", "--timeout", "5"]
MIB = 1 << 20
LIMITS = {
    "up, new folder": 0.75,
    "up, same folder": 0.75,
    "CPU of up, new folder": 0.6,
    "CPU of up, same folder": 0.4,
    **{f"{name} back after SIGKILL": 0.5 for name in KILLED},
}
"""Most that a start may take of what it takes at commit 4acd6b8. The time depends on what else the
machine does: what starts one after the other gets less of a busy one than what starts at once."""


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure on a thread, since processes are waited for there."""
    await asyncio.to_thread(_measure, options, report)


def _measure(options: argparse.Namespace, report: Report) -> None:
    places = {"this": HERE}
    if options.baseline is not None:
        places["baseline"] = options.baseline.resolve()
    measured = {name: Checkout(place) for name, place in places.items()}
    for number in range(options.rounds):
        for checkout in list(measured.values())[:: 1 if number % 2 else -1]:
            checkout.take_turn(options.shards)
    _report_commands(report, measured)
    _report_starts(report, measured)
    _report_memory(report, measured)


@dataclass
class Checkout:
    """A checkout of mmesh, and what was measured with it, by name."""

    place: Path
    commands: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """CPU seconds."""
    starts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds."""
    memory: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Bytes."""

    def take_turn(self, shards: int) -> None:
        """Measure everything once."""
        for _ in range(3):
            self._time("import click", "-c", CLICK)
            self._time("mmesh --help", "-c", MAIN, "--help")
            self._time("mmesh search, no mesh", "-c", MAIN, *SEARCH, *NOWHERE)
        with tempfile.TemporaryDirectory(prefix="mmesh-start-") as folder:
            data = Path(folder)
            with self._mesh(data, shards, "new folder"):
                pass
            with self._mesh(data, shards, "same folder") as mesh:
                self._measure_mesh(mesh)

    def _measure_mesh(self, mesh: Mesh) -> None:
        time.sleep(IDLE_S)
        self._weigh(mesh, "idle")
        rows = mesh.data / "rows.jsonl"
        rows.write_text("\n".join(map(json.dumps, ROWS)))
        there = ["--target-address", mesh.address]
        self._run("-c", MAIN, "ingest", COLLECTION, str(rows), *there)
        for _ in range(3):
            self._time("mmesh search --json", "-c", MAIN, *SEARCH, "--json", *there)
            self._time("mmesh search, a table", "-c", MAIN, *SEARCH, *there)
        for name in KILLED:
            self.starts[f"{name} back after SIGKILL"].append(mesh.kill(name))

    def _weigh(self, mesh: Mesh, when: str) -> None:
        sizes = mesh.pss_bytes()
        for name, size in sizes.items():
            self.memory[name].append(size)
        self.memory[f"all, {when}"].append(sum(sizes.values()))

    def _run(self, *arguments: str) -> None:
        command = [sys.executable, *arguments]
        subprocess.run(
            command,
            cwd=self.place,
            env=self.environment,
            check=True,
            timeout=PATIENCE_S,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _time(self, name: str, *arguments: str) -> None:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.place,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0  # waited for already
        self.commands[name].append(usage.ru_utime + usage.ru_stime)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which its own modules are imported."""
        return {**os.environ, "PYTHONPATH": str(self.place), "COLUMNS": "100"}

    @contextmanager
    def _mesh(self, data: Path, shards: int, name: str) -> Iterator[Mesh]:
        """Start a mesh and note how long that takes; stop it in the end."""
        arguments = ["up", "--data", str(data), "--port", "0", "--shards", str(shards)]
        with (data / "err").open("a") as errors:
            begun = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-c", MAIN, *arguments],
                cwd=self.place,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready "):
                raise SystemExit(f"{self.place} does not start: {(data / 'err').read_text()}")
            self.starts[f"up, {name}"].append(time.perf_counter() - begun)
            self.starts[f"CPU of up, {name}"].append(cpu_seconds(process.pid))
            yield Mesh(process.pid, data, line.split()[1])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)


@dataclass
class Mesh:
    """A mesh that runs, seen from outside."""

    pid: int
    data: Path
    address: str

    def pss_bytes(self) -> dict[str, int]:
        """Return the proportional set size of each process by name."""
        names = {self._pid_of(name): name for name in self._services()}
        names[self.pid] = "mmesh up"
        sizes: dict[str, int] = defaultdict(int)
        for pid in _processes(self.pid):
            sizes[names.get(pid, "fork servers")] += _pss_bytes(pid)
        return sizes

    def kill(self, name: str) -> float:
        """Kill a service and return the seconds until it serves again."""
        old, address = self._pid_of(name), self._services()[name]["address"]
        health = HEALTH[name.partition("-")[0]]
        os.kill(old, signal.SIGKILL)
        begun = time.perf_counter()
        while _is_running(old) or not asyncio.run(is_serving(address, health)):
            if time.perf_counter() - begun > PATIENCE_S:
                raise SystemExit(f"{name} does not come back")
            time.sleep(0.01)
        return time.perf_counter() - begun

    def _services(self) -> dict[str, dict[str, str]]:
        services: dict[str, dict[str, str]] = json.loads((self.data / "mesh.json").read_text())[
            "services"
        ]
        return services

    def _pid_of(self, name: str) -> int:
        port = int(self._services()[name]["address"].rpartition(":")[2])
        socket = f"socket:[{_listening_inode(port)}]"
        for pid in _processes(self.pid):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    if os.readlink(descriptor) == socket:
                        return pid
                except FileNotFoundError:
                    continue
        raise SystemExit(f"nobody listens for {name}")


def _listening_inode(port: int) -> str:
    listening, address = "0A", f":{port:04X}"
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(address) and fields[3] == listening:
                return fields[9]
    return ""


def _processes(pid: int) -> list[int]:
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            found += _processes(int(child))
    return found


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _pss_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


# -- tables


def _report_commands(report: Report, measured: dict[str, Checkout]) -> None:
    header = ["command", "checkout", "n", "CPU ms, median", "max", "x import click"]
    rows: list[list[Cell]] = []
    for name, checkout in measured.items():
        click = _median(checkout.commands["import click"])
        for command, seconds in checkout.commands.items():
            rows.append([command, name, *_milliseconds(seconds), _median(seconds) / click])
    report.table("CPU of a command", header, sorted(rows, key=lambda row: str(row[0])))
    own = measured["this"].commands
    click = _median(own["import click"])
    for command, limit in (
        ("mmesh --help", 2),
        ("mmesh search, no mesh", 4),
        ("mmesh search --json", 4),
    ):
        ratio = _median(own[command]) / click
        report.gate(f"{command} <= {limit} x import click", ratio, ratio <= limit)


def _report_starts(report: Report, measured: dict[str, Checkout]) -> None:
    rows: list[list[Cell]] = []
    for what in measured["this"].starts:
        for name, checkout in measured.items():
            seconds = checkout.starts[what]
            rows.append([what, name, len(seconds), _median(seconds), max(seconds)])
    report.table("seconds to a mesh that serves", ["what", "checkout", "n", "median", "max"], rows)
    if "baseline" not in measured:
        return
    for what, limit in LIMITS.items():
        ratio = _ratio(*(checkout.starts[what] for checkout in measured.values()))
        report.gate(f"{what} <= {limit} x the baseline", ratio, ratio <= limit)


def _report_memory(report: Report, measured: dict[str, Checkout]) -> None:
    rows: list[list[Cell]] = []
    for name, checkout in measured.items():
        for process, sizes in checkout.memory.items():
            rows.append([process, name, len(sizes), _median(sizes) / MIB, max(sizes) / MIB])
    header = ["process", "checkout", "n", "MiB, median", "max"]
    report.table("memory of an idle mesh (PSS)", header, sorted(rows, key=lambda r: str(r[0])))
    if "baseline" in measured:
        ratio = _ratio(*(checkout.memory["all, idle"] for checkout in measured.values()))
        report.gate("memory, idle <= 0.66 x the baseline", ratio, ratio <= 0.66)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _milliseconds(seconds: Sequence[float]) -> tuple[int, float, float]:
    return len(seconds), 1e3 * _median(seconds), 1e3 * max(seconds)


def _ratio(this: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the median over the rounds, whose two measurements are minutes apart at most."""
    return _median(np.array(this) / np.array(baseline))


if __name__ == "__main__":
    parser = options_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each checkout")
    parser.add_argument("--baseline", type=Path, help="another checkout to compare with")
    sys.exit(run("start", parser, measure))
