"""Services of one release work with those of the release before, on a log that either has made.

Nothing is released yet: `BEFORE` is the newest commit whose log has other tables than today's, and
its wheel is built from the history of the checkout. Costs 80 s: twenty-one processes start.
"""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mmesh import AsyncClient
from tests.effort import needs_full_effort, patient
from tests.mesh.pods import Pods, of_release

ROOT = Path(__file__).parents[2]
BEFORE = "a9220bfc9d50e0ece8376c3615d67257c466a73e"
"""Its log is of version 0003; it knows neither dates nor stamps of commits nor `exists`."""
pytestmark = [needs_full_effort, pytest.mark.timeout(200)]
CLIENT = """
import json, mmesh, sys
from mmesh import Candidate, Client, Content, Rerank, parse_filter
address, mark = sys.argv[1:]
texts = [f"the {mark} harbour on day {n}" for n in range(20)]
with Client(address) as client:
    if "skew" not in [one.name for one in client.list_collections()]:
        client.create_collection("skew")
    report = client.ingest("skew", (
        Candidate(f"{mark}-{n}", Content.of(text), {"by": mark, "day": n})
        for n, text in enumerate(texts)
    ))
    attributes = {"by": mark, f"only_{mark}": 1}
    late = Candidate(f"{mark}-late", Content.of(f"the {mark} ferry"), attributes)
    client.upsert_candidates("skew", [late])
    deleted, token = client.delete_candidates("skew", [f"{mark}-19"])
    def ids(query, condition, **options):
        options |= {"filter": parse_filter(condition), "token": token, "limit": 30}
        found = client.search("skew", query, **options)
        return sorted(hit.id for hit in found.hits), [d.reason for d in found.degradations]
    print(json.dumps({
        "packages": mmesh.__path__[0],
        "stored": report.stored, "rejected": len(report.rejected), "deleted": deleted,
        "mine": ids("a harbour", f"by = '{mark}'"),
        "late": ids("a ferry", f"only_{mark} = 1"),
        "judged": ids("a ferry", f"by = '{mark}'", rerank=Rerank(candidates=5)),
        "listed": len(client.list_candidates("skew", page_size=500).candidates),
        "count": sum(client.get_collection("skew").candidates.values()),
    }))
"""


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    """The packages of the release before, as its wheel installs them."""
    known = ["git", "-C", str(ROOT), "cat-file", "-e", f"{BEFORE}^{{commit}}"]
    if subprocess.run(known, capture_output=True).returncode:
        pytest.skip("the release before is not in this checkout; `git fetch --unshallow` brings it")
    folder = tmp_path_factory.mktemp("release-before")
    source = subprocess.run(
        ["git", "-C", str(ROOT), "archive", BEFORE], capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(source.stdout)) as archive:
        archive.extractall(folder / "source", filter="data")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    target = folder / "packages"
    subprocess.run([*pip, "--no-deps", "--target", target, folder / "source"], check=True)
    return target


@pytest.fixture
async def pods(tmp_path) -> AsyncIterator[Pods]:
    pods = Pods(tmp_path)
    yield pods
    await pods.stop_all()


class Skewed:
    """A mesh whose processes are each of one of two releases."""

    def __init__(self, pods: Pods, log_url: str, before: Path) -> None:
        self.pods, self.log_url, self.before = pods, log_url, before
        self.index: list[str] = []

    def folder_of(self, release: str) -> Path:
        return self.before if release == "before" else ROOT

    async def start(self, kind: str, release: str, number: int = 1) -> str:
        """Start a process, and return its address."""
        host = f"127.68.{['encoder', 'index', 'reranker', 'gateway'].index(kind)}.{number}"
        address = f"{host}:{self.pods.ports[kind]}"
        if kind == "index":
            self.index.append(address)
        await self.pods.start(kind, host, *self._flags(kind), release=self.folder_of(release))
        return address

    def _flags(self, kind: str) -> list[str]:
        ports = self.pods.ports
        if kind == "gateway":
            return [
                "--encoder",
                json.dumps([f"127.68.0.1:{ports['encoder']}"]),
                "--index",
                json.dumps(self.index),
                "--reranker",
                f"127.68.2.1:{ports['reranker']}",
            ]
        data = str(self.pods.folder / "data")
        shard = ["--data-dir", data, "--shard-count", "1", "--shard", "0"]
        index = [*shard, "--log-url", self.log_url]
        return {"encoder": ["--model", "lite"], "reranker": ["--model", "maxsim"]}.get(kind, index)

    def refusal_of_old_index(self) -> str:
        """Start an index process of the release before, which must end, and return why."""
        command = [sys.executable, "-m", "services.index", *self._flags("index"), "--port", "0"]
        options = of_release(self.before, self.pods.folder)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
        assert done.returncode == 1, done.stderr
        return done.stderr

    async def use(self, gateway: str, release: str, mark: str) -> dict[str, Any]:
        """Let the SDK of a release ingest and search, and return what it saw."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CLIENT,
            gateway,
            mark,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            **of_release(self.folder_of(release), self.pods.folder),
        )
        said, problem = await asyncio.wait_for(process.communicate(), patient(60))
        assert process.returncode == 0, problem.decode()
        answer: dict[str, Any] = json.loads(said)
        assert answer.pop("packages") == str(self.folder_of(release) / "mmesh")
        return answer


def migrate(url: str, *flags: str) -> str:
    command = [sys.executable, "-m", "services.index.commands.migrate", "--log-url", url, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def expected(mark: str, users: int) -> dict[str, Any]:
    mine = sorted([*(f"{mark}-{n}" for n in range(19)), f"{mark}-late"])
    return {
        "stored": 20,
        "rejected": 0,
        "deleted": 1,
        "mine": [mine, []],
        "late": [[f"{mark}-late"], []],
        "judged": [mine, []],
        "listed": 20 * users,
        "count": 20 * users,
    }


@pytest.mark.parametrize("gateway", ["before", "today"])
async def test_a_gateway_works_with_services_of_the_other_release(gateway, before, pods, tmp_path):
    (tmp_path / "data").mkdir()
    mesh = Skewed(pods, f"sqlite:///{tmp_path / 'data' / 'log.db'}", before)
    others = "today" if gateway == "before" else "before"
    await asyncio.gather(*(mesh.start(kind, others) for kind in ("encoder", "index", "reranker")))
    address = await mesh.start("gateway", gateway)
    for users, release in enumerate(("before", "today"), 1):
        assert await mesh.use(address, release, release) == expected(release, users)


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_a_mesh_is_upgraded_process_by_process_after_its_log(
    engine, before, pods, tmp_path, request
):
    (tmp_path / "data").mkdir()
    url = f"sqlite:///{tmp_path / 'data' / 'log.db'}"
    if engine == "postgresql":
        url = request.getfixturevalue("postgres").new_database()
    mesh = Skewed(pods, url, before)
    kinds = ("encoder", "index", "reranker")
    await asyncio.gather(*(mesh.start(kind, "before") for kind in kinds))
    old = await mesh.start("gateway", "before")
    assert await mesh.use(old, "before", "first") == expected("first", 1)

    said, seen = await asyncio.gather(
        asyncio.to_thread(migrate, url), mesh.use(old, "before", "second")
    )
    assert "the log is of version 0003; this release brings it" in said
    assert "may go on meanwhile" in said
    assert seen == expected("second", 2)
    assert await mesh.use(old, "before", "third") == expected("third", 3)

    # Releases that know no compatibility do not start on tables newer than theirs, and say so.
    assert "run the newer release" in await asyncio.to_thread(mesh.refusal_of_old_index)
    await mesh.start("index", "today", 2)  # a replica beside the old one, as a rollout has it
    both = await mesh.start("gateway", "today", 2)
    for users, release in enumerate(("before", "today"), 4):
        mark = f"mixed{release}"
        assert await mesh.use(both, release, mark) == expected(mark, users)

    await pods.stop("127.68.1.1")
    mesh.index = mesh.index[1:]
    new = await mesh.start("gateway", "today", 3)
    for users, mark in enumerate(("alone", "again"), 6):
        assert await mesh.use(new, "today", mark) == expected(mark, users)
    said = await asyncio.to_thread(migrate, url, "--recount")  # what the old one did not count
    assert said.endswith("1 collections had wrong counts of skew\n")
    marks = ["first", "second", "third", "mixedbefore", "mixedtoday", "alone", "again"]
    async with AsyncClient(new) as client:
        found = await client.get_collection("skew", include_attributes=True)
    counts = {one.name: one.count for one in found.attributes}
    assert counts == {"by": 140, "day": 133} | {f"only_{mark}": 1 for mark in marks}
