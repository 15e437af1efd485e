"""A real mesh for the tests: its services are processes, its log is SQLite, its pictures are files.

Helpers come as fixtures, since test modules do not import each other.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import settings
from PIL import Image as Pillow

from mmesh import Client, Content
from mmesh.candidates import Candidate
from mmesh.errors import CollectionNotFound
from mmesh.local import ports
from mmesh.local.mesh import LocalMesh, is_serving
from mmesh.local.plan import LocalSettings
from mmesh.testing.postgres import PostgresServer
from mmesh.testing.s3 import S3Server, weed_path
from mmesh.wire.errors import DETAILS_KEY
from tests.effort import patient
from tests.loop_watch import LoopLogs, set_limits

pytest_plugins = ["tests.command_line", "tests.grouping"]
settings.load_profile("mmesh")
set_limits()
START_S = 150.0
PORTS = range(10_000, 20_000)
"""Ports of test workers; programs that tests start draw theirs from 20,000 on."""
VLLM_SETTINGS = {
    "MMESH_RERANKER_DTYPE": "float32",
    "MMESH_RERANKER_ENFORCE_EAGER": "true",
    "MMESH_RERANKER_KV_CACHE_GIB": "0.1",
    "MMESH_RERANKER_MAX_MODEL_LEN": "2048",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a process less to start
    "MMESH_RERANKER_LOOP_LIMIT_MS": "0",  # so the engine computes on the service's loop
}


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of pytest-xdist ports that no other worker draws, nor who replaces one."""
    if (worker := getattr(config, "workerinput", None)) is not None:
        number, shares = int(worker["workerid"].removeprefix("gw")), 2 * worker["workercount"]
        ports._PORTS = PORTS[number % shares :: shares]


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Look every 20 ms until `holds()`; fail the test when that takes too long."""
    timeout_s = patient(timeout_s)
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, f"after {timeout_s} s still not true: {what}"
        time.sleep(0.02)


class RunningMesh:
    """A LocalMesh on a thread and an event loop of its own."""

    def __init__(self, settings: LocalSettings) -> None:
        self.settings = settings
        self.said: list[str] = []
        self._mesh = LocalMesh(settings, say=self.said.append)
        self._stop: asyncio.Event | None = None
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="mesh")
        self._thread.start()
        assert self._up.wait(patient(START_S)), "the mesh does not come up"
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as failure:
            self._failure = failure
        finally:
            self._loop.close()
            self._up.set()

    async def _live(self) -> None:
        self._stop = asyncio.Event()
        async with self._mesh:
            self._up.set()
            await self._stop.wait()

    def close(self) -> None:
        """Stop every service and see that none is left."""
        if self._thread.is_alive() and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        left = [service.name for service in self._mesh.services if service.pid is not None]
        assert not left, f"still running: {left}"

    def scale(self, shards: int, replicas: int = 1) -> None:
        scaling = self._mesh.scale(shards, replicas)
        asyncio.run_coroutine_threadsafe(scaling, self._loop).result()

    @property
    def names(self) -> list[str]:
        return [service.name for service in self._mesh.services]

    @property
    def address(self) -> str:
        return self._mesh.address

    def address_of(self, name: str) -> str:
        """Return the address that the mesh's description in the data folder gives."""
        description = json.loads((self.settings.data / "mesh.json").read_text())
        return str(description["services"][name]["address"])

    def _service(self, name: str):
        return next(service for service in self._mesh.services if service.name == name)

    def pid(self, name: str) -> int | None:
        return self._service(name).pid

    def restarts(self) -> dict[str, int]:
        return {service.name: service.restarts for service in self._mesh.services}

    def kill(self, name: str, number: int = signal.SIGKILL) -> bool:
        """Send a signal to a service if it runs; return whether it did."""
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, number)
        return pid is not None

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Keep a service from answering without ending it, so nobody restarts it."""
        assert self.kill(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self.kill(name, signal.SIGCONT)

    def is_serving(self, name: str) -> bool:
        service = self._service(name)
        return service.pid is not None and asyncio.run(is_serving(service.address, service.health))

    def wait_serving(self, *names: str) -> None:
        for name in names or self.names:
            wait_until(lambda name=name: self.is_serving(name), f"{name} serves", START_S)


@pytest.fixture(scope="session")
def loop_logs() -> LoopLogs:
    """The logs in which services say what blocked their event loops."""
    return LoopLogs()


@pytest.fixture(autouse=True)
def loops_turn(loop_logs) -> Iterator[None]:
    """No test blocks the event loop of a service."""
    yield
    complaints = loop_logs.complaints()
    assert not complaints, "blocked an event loop: " + "\n".join(complaints)


@pytest.fixture(scope="session")
def start_mesh(loop_logs, tmp_path_factory) -> Iterator[Callable[..., RunningMesh]]:
    """Start meshes that a test may treat badly; all that still run at the end are stopped.

    Only the first one asks its models the probes of their canaries.
    """
    running: list[RunningMesh] = []
    canary_cache = tmp_path_factory.mktemp("canary")

    def start(data: Path, shards: int = 2, **settings: object) -> RunningMesh:
        loop_logs.watch(data / "logs")
        chosen = {"metrics": False, "canary_cache": canary_cache} | settings
        running.append(RunningMesh(LocalSettings(data, shards, 0, **chosen)))
        return running[-1]

    yield start
    for mesh in reversed(running):
        mesh.close()


@pytest.fixture(scope="session")
def mesh(start_mesh, tmp_path_factory) -> RunningMesh:
    """The mesh that well-behaved tests share: two shards and a reranker."""
    return start_mesh(tmp_path_factory.mktemp("mesh"), metrics=True)


@pytest.fixture(scope="session")
def client(mesh) -> Iterator[Client]:
    with Client(mesh.address) as client:
        yield client


@pytest.fixture(scope="session")
def open_channel() -> Iterator[Callable[[str], grpc.Channel]]:
    """Open blocking channels for messages that the SDK would not send."""
    channels: list[grpc.Channel] = []

    def open_to(address: str) -> grpc.Channel:
        limits = ("grpc.max_send_message_length", "grpc.max_receive_message_length")
        channels.append(grpc.insecure_channel(address, [(limit, -1) for limit in limits]))
        return channels[-1]

    yield open_to
    for channel in channels:
        channel.close()


@contextmanager
def fresh_collection(client: Client) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    client.create_collection(name)
    yield name
    with suppress(CollectionNotFound):
        client.delete_collection(name)


@pytest.fixture(scope="session")
def vllm_mesh(start_mesh, tmp_path_factory) -> Iterator[RunningMesh]:
    """A mesh whose reranker is a tiny MLLM in the real vLLM engine; tests may kill its services."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is absent: run `make setup-vllm`")
    from mmesh.testing.tiny_models import build_tiny_qwen3_vl

    folder = build_tiny_qwen3_vl(tmp_path_factory.mktemp("tiny") / "qwen3-vl")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VLLM_SETTINGS.items():
            patch.setenv(name, value)
        data = tmp_path_factory.mktemp("vllm-mesh")
        yield start_mesh(data, 1, reranker=f"vllm:{folder}", metrics=True)


@pytest.fixture
def collection(client) -> Iterator[str]:
    """The name of a collection of the shared mesh that no other test knows."""
    with fresh_collection(client) as name:
        yield name


@pytest.fixture(scope="session")
def new_collection() -> Callable[[Client], object]:
    """Make a collection in any mesh: `with new_collection(client) as name`."""
    return fresh_collection


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Wait for something that other processes bring about."""
    return wait_until


@dataclass(frozen=True)
class Refusal:
    """What a failed call said on the wire."""

    code: grpc.StatusCode
    reason: str
    domain: str
    metadata: dict[str, str]
    fields: list[str]
    retry_after_s: float | None
    message: str

    @classmethod
    def of(cls, failure: grpc.RpcError) -> Refusal:
        found: dict[str, object] = {}
        trailing = dict(failure.trailing_metadata() or ())
        details = status_pb2.Status.FromString(trailing.get(DETAILS_KEY, b"")).details
        for kind in ("ErrorInfo", "BadRequest", "RetryInfo"):
            message = getattr(error_details_pb2, kind)()
            found[kind] = next((message for detail in details if detail.Unpack(message)), None)
        info, bad, retry = found["ErrorInfo"], found["BadRequest"], found["RetryInfo"]
        return cls(
            failure.code(),
            info.reason if info else "",
            info.domain if info else "",
            dict(info.metadata) if info else {},
            [violation.field for violation in bad.field_violations] if bad else [],
            retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
            failure.details() or "",
        )


@pytest.fixture(scope="session")
def refusal() -> Callable[[Callable[[], object]], Refusal]:
    """Make a call that must fail and return what the server said of it."""

    def refusal_of(call: Callable[[], object]) -> Refusal:
        with pytest.raises(grpc.RpcError) as failure:
            call()
        return Refusal.of(failure.value)

    return refusal_of


class Pictures:
    """Pictures as bytes; equal seeds give equal pictures."""

    @staticmethod
    def pixels(seed: int, size: int = 48) -> np.ndarray:
        """Return (size, size, 3) bytes: four flat quarters with a little noise."""
        random = np.random.default_rng(seed)
        quarters = random.integers(0, 200, (2, 2, 3)).repeat(size // 2, 0).repeat(size // 2, 1)
        return (quarters + random.integers(0, 50, quarters.shape)).astype(np.uint8)

    @staticmethod
    def encode(image: Pillow.Image, kind: str, **options: object) -> bytes:
        data = io.BytesIO()
        image.save(data, kind, **options)
        return data.getvalue()

    def png(self, seed: int = 0, size: int = 48) -> bytes:
        return self.encode(Pillow.fromarray(self.pixels(seed, size)), "PNG")

    def jpeg(self, seed: int = 0, mode: str = "RGB", **options: object) -> bytes:
        return self.encode(Pillow.fromarray(self.pixels(seed)).convert(mode), "JPEG", **options)

    def gif(self, *seeds: int) -> bytes:
        """Return an animation with one frame for each seed."""
        first, *rest = [Pillow.fromarray(self.pixels(seed)) for seed in seeds]
        return self.encode(first, "GIF", save_all=True, append_images=rest, duration=50)

    def one_pixel(self) -> bytes:
        return self.encode(Pillow.new("RGB", (1, 1), (200, 30, 30)), "PNG")

    def png16(self, seed: int = 0) -> bytes:
        grey = self.pixels(seed)[..., 0].astype(np.uint16) * 257
        return self.encode(Pillow.fromarray(grey), "PNG")


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    return Pictures()


WORDS = (  # noqa: SIM905  # easier to read than 26 quoted words
    "harbour glacier violin tractor orchid comet bakery lantern canyon piano falcon anchor meadow "
    "engine castle lemon blizzard compass desert ferry garden hammer island jacket kettle ladder"
).split()


@pytest.fixture(scope="session")
def new_candidates(pictures) -> Callable[..., list[Candidate]]:
    """Return texts and pictures that differ from each other; ids sort by number."""

    def make(texts: int, images: int = 0, prefix: str = "") -> list[Candidate]:
        words = [(WORDS[n % 26], WORDS[n // 26 % 26], WORDS[n // 676 % 26]) for n in range(texts)]
        found = [
            Candidate(f"{prefix}text-{n:05}", Content.of(f"{prefix} {a} {b} {c} {n}".strip()))
            for n, (a, b, c) in enumerate(words)
        ]
        return found + [
            Candidate(f"{prefix}image-{n:05}", Content.of(pictures.png(n + 1000)))
            for n in range(images)
        ]

    return make


@pytest.fixture(scope="session")
def ids_in() -> Callable[[Client, str], list[str]]:
    """Return the ids of a collection over all pages, as they are listed."""

    def listed(client: Client, collection: str, page_size: int = 100) -> list[str]:
        ids, token = [], ""
        while True:
            page = client.list_candidates(collection, page_size=page_size, page_token=token)
            ids += [candidate.id for candidate in page.candidates]
            if not (token := page.next_token):
                return ids

    return listed


@pytest.fixture(scope="session")
def s3(tmp_path_factory) -> Iterator[S3Server]:
    """A real S3 server, its keys in the environment."""
    if weed_path() is None:
        pytest.skip("no S3 server; install it with `make setup-storage`")
    with S3Server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was skipped, and the one command that installs it, once for each reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.items():
        terminalreporter.write_line(f"skipped {count}: {reason}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL; whoever stops it starts it again."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(PostgresServer(fsync=False))
        except (OSError, TimeoutError) as problem:
            pytest.skip(f"no PostgreSQL server ({problem}); install one with `make setup`")
        yield server
