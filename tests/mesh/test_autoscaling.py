"""The autoscaler follows demand: a real Prometheus, real encoders, and the committed manifests.

Only the controller is a model (tools/k8s/autoscaler.py). Needs root, for a name server of its own.
Costs 90 s: ten processes come and go, and a window of ten minutes passes at `FACTOR`.
"""

from __future__ import annotations

import asyncio
import http.server
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mmesh import AsyncClient, Candidate, Content
from mmesh.errors import MmeshError
from mmesh.local.ports import free_port
from tests.effort import needs_full_effort, patient
from tests.mesh.live_prometheus import PROMETHEUS, Prometheus
from tests.mesh.name_server import NameServer
from tests.mesh.pods import ENTER, NEW_S, Pods, may_mount
from tests.mesh.slow_encoder import INPUT_S
from tools.k8s.autoscaler import SYNC_S, Autoscaler, Reading
from tools.k8s.check import ROOT, missing
from tools.k8s.manifests import render
from tools.k8s.scalers import Scaler, Trigger, scalers_of

FACTOR = 30.0
"""How much faster than on a cluster time goes for Prometheus, its rules and the autoscaler.

Processes start, and names are looked up, as fast as ever."""
BASE, TIMES = 0.75, 4
"""Work that comes in, in encoders that are always busy; and how much it grows."""
QUEUE_S = 1.0
"""What queues must come back to: searches are to be answered within a second."""
NAME_SERVER, NAME = "127.67.0.53", "encoder.mesh.test"
JOB, WORKLOAD = "mmesh-encoder", "mmesh-encoder"
QUEUE = " / ".join(
    f"sum(rate(mmesh_encoder_queue_seconds_{part}[2m]))" for part in ("sum", "count")
)
"""The mean time that an input waits."""

pytestmark = [
    needs_full_effort,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not may_mount(), reason="needs root and mount namespaces"),
    pytest.mark.skipif(
        PROMETHEUS is None, reason="prometheus is missing; `apt-get install prometheus` brings it"
    ),
    pytest.mark.skipif(
        bool(missing()), reason="tools for k8s/ are missing; `make setup-k8s` installs them"
    ),
]


class Deployment:
    """Encoders that are started and stopped to be as many as are asked for."""

    def __init__(self, pods: Pods, names: NameServer, prometheus: Prometheus) -> None:
        self._pods, self._names, self._prometheus = pods, names, prometheus
        self._hosts: list[str] = []
        self._ready: list[str] = []
        self._numbers = itertools.count(1)
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._stops: list[asyncio.Task[None]] = []

    def scale(self, replicas: int) -> None:
        """Begin to add what is missing, or to take away the youngest."""
        while len(self._hosts) < replicas:
            self._hosts.append(host := f"127.67.1.{next(self._numbers)}")
            self._starts[host] = asyncio.create_task(self._start(host))
        while len(self._hosts) > replicas:
            self._stops.append(asyncio.create_task(self._stop(self._hosts.pop())))
        self._tell()

    async def settled(self) -> None:
        """Wait for all that has begun; its failures are raised here."""
        await asyncio.gather(*self._starts.values(), *self._stops)

    def _tell(self) -> None:
        """Let Prometheus know which pods there are, ready or not, as Kubernetes does."""
        self._prometheus.set_targets(
            JOB, {host: ("mmesh", f"{host}:{self._pods.metrics[host]}") for host in self._hosts}
        )
        self._names.names[NAME] = [host for host in self._ready if host in self._hosts]

    async def _start(self, host: str) -> None:
        flags = ("--model", "lite", "--max-batch-items", "1")
        await self._pods.start("encoder", host, *flags, module="tests.mesh.slow_encoder")
        self._ready.append(host)
        self._tell()

    async def _stop(self, host: str) -> None:
        await asyncio.sleep(NEW_S)  # gateways look the name up again
        await self._starts[host]
        await self._pods.stop(host)


class Load:
    """Searches, each for something new, at a rate that changes; no more than `MOST` at a time.

    So what waits is the same wherever pods take long to start.
    """

    MOST = 64

    def __init__(self, client: AsyncClient, token: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self.rate = BASE / INPUT_S
        self._client, self._token = client, token
        self._room = asyncio.Semaphore(self.MOST)

    async def go_on(self) -> None:
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                await self._room.acquire()
                group.create_task(self._one(f"the harbour on day {number}"))
                due = max(due + 1 / self.rate, time.monotonic())
                await asyncio.sleep(due - time.monotonic())

    async def _one(self, query: str) -> None:
        try:
            self.outcomes[await self._outcome(query)] += 1
        finally:
            self._room.release()

    async def _outcome(self, query: str) -> str:
        try:
            result = await self._client.search(
                "pods", query, token=self._token, timeout=patient(60.0)
            )
        except MmeshError as error:
            return f"{error.reason}: {error.message}"
        return str(result.degradations) if result.degradations else "whole"


def value_of(prometheus: Prometheus, query: str, at_s: float) -> float | None:
    """Return the number that KEDA and prometheus-adapter read, None where they see an error."""
    try:
        series = prometheus.query(query, at_s)
    except OSError:
        return None
    if len(series) != 1:
        return None
    value = float(series[0]["value"][1])
    # Releases of KEDA until early 2026 take NaN for the least number there is, and remove pods.
    return -(2.0**63) / 1000 if math.isnan(value) else value


def readings(prometheus: Prometheus, triggers: tuple[Trigger, ...], at_s: float) -> list[Reading]:
    return [Reading(value_of(prometheus, one.query, at_s), one.target) for one in triggers]


@dataclass(frozen=True)
class Change:
    """The number of pods that were asked for from a time on, in seconds of a cluster."""

    at_s: float
    replicas: int


class Controllers:
    """The autoscaler by KEDA's manifest and by that of the HPA, at one and the same time."""

    def __init__(self, prometheus: Prometheus, deployment: Deployment) -> None:
        self.keda = scalers_of(render(ROOT / "k8s" / "overlays" / "production"))[WORKLOAD]
        self.hpa = scalers_of(render(ROOT / "k8s" / "tests" / "hpa"))[WORKLOAD]
        self._models = [Autoscaler(one.bounds, one.bounds.least) for one in (self.keda, self.hpa)]
        self._prometheus, self._deployment = prometheus, deployment
        self.changes = [Change(self.now_s, self.keda.bounds.least)]
        self.differed: list[tuple[int, int]] = []

    @property
    def now_s(self) -> float:
        return time.monotonic() * FACTOR

    @property
    def replicas(self) -> int:
        return self.changes[-1].replicas

    async def go_on(self) -> None:
        while True:
            await asyncio.gather(asyncio.sleep(SYNC_S / FACTOR), self._sync())

    async def _sync(self) -> None:
        at_s = time.time() - SYNC_S / FACTOR  # of that moment Prometheus knows all
        now_s = self.now_s
        asked = []
        for scaler, model in zip((self.keda, self.hpa), self._models, strict=True):
            said = await asyncio.to_thread(readings, self._prometheus, scaler.triggers, at_s)
            asked.append(model.decide(now_s, said))
        if len(set(asked)) > 1:
            self.differed.append((asked[0], asked[1]))
        if asked[0] != self.replicas:
            self.changes.append(Change(now_s, asked[0]))
            self._deployment.scale(asked[0])


def in_namespace(scaler: Scaler, namespace: str) -> tuple[Trigger, ...]:
    return tuple(
        replace(one, query=one.query.replace('"mmesh"', f'"{namespace}"'))
        for one in scaler.triggers
    )


class NoNumbers(http.server.BaseHTTPRequestHandler):
    """Metrics of an encoder gone mad."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b"mmesh_encoder_waiting_cost NaN\nmmesh_encoder_forward_seconds_sum NaN\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def no_numbers() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), NoNumbers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
async def names() -> AsyncIterator[NameServer]:
    server = NameServer()
    try:
        await server.start(NAME_SERVER)
    except OSError as error:
        pytest.skip(f"cannot serve names: {error}")
    yield server
    server.close()


@pytest.fixture
async def pods(tmp_path) -> AsyncIterator[Pods]:
    pods = Pods(tmp_path)
    yield pods
    await pods.stop_all()


@pytest.fixture
def prometheus(tmp_path) -> Iterator[Prometheus]:
    (tmp_path / "prometheus").mkdir()
    server = Prometheus(tmp_path / "prometheus", [JOB, f"{JOB}-broken"], FACTOR)
    yield server
    server.close()


@pytest.fixture
async def deployment(pods, names, prometheus) -> AsyncIterator[Deployment]:
    deployment = Deployment(pods, names, prometheus)
    yield deployment
    with suppress(Exception):  # it has failed the test already
        await deployment.settled()


@pytest.fixture
async def gateway(pods, names, deployment, tmp_path: Path) -> str:
    deployment.scale(2)
    data = ("--data-dir", str(tmp_path / "data"), "--shard-count", "1", "--shard", "0")
    await asyncio.gather(deployment.settled(), pods.start("index", "127.67.2.1", *data))
    resolver = tmp_path / "resolv.conf"
    resolver.write_text(f"nameserver {NAME_SERVER}\noptions timeout:1 attempts:2\n")
    await pods.start(
        "gateway",
        "127.67.3.1",
        "--encoder",
        f'["dns:///{NAME}:{pods.ports["encoder"]}"]',
        "--index",
        f'["127.67.2.1:{pods.ports["index"]}"]',
        before=("unshare", "--mount", "sh", "-c", ENTER, str(resolver)),
    )
    return f"127.67.3.1:{pods.ports['gateway']}"


async def until(holds: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Look until it holds; the limit is that of a machine with nothing else to do."""
    end = time.monotonic() + patient(timeout_s)
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < end, what
        await asyncio.sleep(0.1)


async def test_pods_follow_demand_and_stay_while_it_is_unknown(
    gateway, deployment, prometheus, no_numbers
):
    queue = prometheus.compressed(QUEUE)

    def queue_s() -> float:
        return max((float(one["value"][1]) for one in prometheus.query(queue)), default=math.nan)

    async with AsyncClient(gateway) as client, asyncio.TaskGroup() as tasks:
        await client.create_collection("pods")
        stored = [Candidate(f"c{n}", Content.of(f"a ship on day {n}")) for n in range(4)]
        written = await client.upsert_candidates("pods", stored)
        load = Load(client, written.token)
        controllers = Controllers(prometheus, deployment)
        scaler = controllers.keda
        least, window_s = scaler.bounds.least, scaler.bounds.down.window_s
        running = [tasks.create_task(one.go_on()) for one in (load, controllers)]
        busy = f"{scaler.triggers[0].query} > {BASE / 2}"
        await until(lambda: bool(prometheus.query(busy)), "the load is measured", 20)
        assert controllers.replicas == least

        rise_s, load.rate = controllers.now_s, load.rate * TIMES
        wanted = math.ceil(BASE * TIMES / scaler.triggers[0].target)
        await until(lambda: queue_s() > QUEUE_S, "queues grow", 20)
        await until(lambda: controllers.replicas >= wanted, "pods follow demand", 40)
        await deployment.settled()
        await until(lambda: queue_s() < QUEUE_S, "queues shrink", 60)
        prometheus.set_targets(f"{JOB}-broken", {"mad": ("broken", no_numbers)})
        seen = 'up{namespace="broken"} == 1'
        await until(lambda: bool(prometheus.query(seen)), "broken metrics are scraped", 20)
        for one in (scaler, controllers.hpa):
            await asyncio.to_thread(see_nothing_shrink, prometheus, one)

        fall_s, load.rate = controllers.now_s, load.rate / TIMES
        peak = controllers.replicas
        await until(lambda: controllers.replicas == least, "pods go again", 90)
        for task in running:
            task.cancel()
    await deployment.settled()

    asked = [(round(one.at_s - rise_s), one.replicas) for one in controllers.changes]
    print(
        f"\npods asked, in seconds of a cluster since the rise: {asked}; the fall {fall_s - rise_s}"
    )
    assert controllers.differed == []
    assert set(load.outcomes) == {"whole"}, load.outcomes
    for first, second, third in zip(asked, asked[1:], asked[2:], strict=False):
        turned = (second[1] > first[1]) != (third[1] > second[1])
        assert not turned or third[0] - second[0] >= window_s, asked
    fallen = [one for one in controllers.changes if one.at_s > fall_s]
    assert len(fallen) == peak - least, "one pod at a time"


def see_nothing_shrink(prometheus: Prometheus, scaler: Scaler) -> None:
    """Let an hour pass with a query that is broken in one way, then in the others."""
    away = Prometheus.__new__(Prometheus)
    away.address = f"127.0.0.1:{free_port()}"
    empty, broken = in_namespace(scaler, "none"), in_namespace(scaler, "broken")
    for server, triggers in ((prometheus, empty), (prometheus, broken), (away, scaler.triggers)):
        model = Autoscaler(scaler.bounds, 7)
        said = readings(server, triggers, time.time())
        assert {model.decide(SYNC_S * n, said) for n in range(240)} == {7}, (triggers, said)
    known = readings(prometheus, scaler.triggers, time.time())
    assert all(one.value is not None for one in known), "the same queries, unbroken, say something"
