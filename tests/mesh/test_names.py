"""Gateways find pods by the names of headless Services, whose addresses change.

A real name server answers the gateway, in a mount namespace with an /etc/resolv.conf of its own, so
this needs root. Costs 20 s: seven processes come and go.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from mmesh import AsyncClient, Candidate, Content
from mmesh.errors import MmeshError
from tests.effort import needs_full_effort, patient
from tests.mesh.name_server import NameServer
from tests.mesh.pods import ENTER, NAME_SERVER, NEW_S, Pods, may_mount

pytestmark = [
    needs_full_effort,
    pytest.mark.skipif(not may_mount(), reason="needs root and mount namespaces"),
]


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


class Searches:
    """Searches without end; what became of them."""

    def __init__(self, client: AsyncClient, token: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self._client, self._token = client, token

    async def go_on(self) -> None:
        number = 0
        while True:
            number += 1
            self.outcomes[await self._one(f"the harbour on day {number}")] += 1
            await asyncio.sleep(0.02)

    async def _one(self, query: str) -> str:
        try:
            result = await self._client.search(
                "pods", query, token=self._token, timeout=patient(10.0)
            )
        except MmeshError as error:
            return f"{error.reason}: {error.message}"
        whole = len(result.hits) == 10 and not result.degradations
        return "whole" if whole else f"{len(result.hits)} hits, {result.degradations}"


async def test_pods_that_come_go_and_move_are_followed_by_their_names(names, pods, tmp_path):
    first, second = {}, {}
    for number, kind in enumerate(("encoder", "index", "reranker"), 1):
        first[kind], second[kind] = f"127.66.{number}.1", f"127.66.{number}.2"
        names.names[f"{kind}.mesh.test"] = [first[kind]]
    data = ("--data-dir", str(tmp_path / "data"), "--shard-count", "1", "--shard", "0")
    flags = {"encoder": ("--model", "lite"), "index": data, "reranker": ("--model", "maxsim")}
    # Searches of the index are on streams that live long: it is asked for its state all the time.
    methods = {"encoder": "Encode", "index": "GetShard", "reranker": "Rerank"}
    await asyncio.gather(*(pods.start(kind, first[kind], *flags[kind]) for kind in flags))

    resolver = tmp_path / "resolv.conf"
    resolver.write_text(f"nameserver {NAME_SERVER}\noptions timeout:1 attempts:2\n")
    targets = {kind: f"dns:///{kind}.mesh.test:{pods.ports[kind]}" for kind in flags}
    await pods.start(
        "gateway",
        "127.66.4.1",
        "--encoder",
        f'["{targets["encoder"]}"]',
        "--index",
        f'["{targets["index"]}"]',
        "--reranker",
        targets["reranker"],
        before=("unshare", "--mount", "sh", "-c", ENTER, str(resolver)),
    )

    async with AsyncClient(f"127.66.4.1:{pods.ports['gateway']}") as client:
        await client.create_collection("pods")
        stored = [Candidate(f"c{n}", Content.of(f"the harbour on day {n}")) for n in range(50)]
        searches = Searches(client, (await client.upsert_candidates("pods", stored)).token)
        searching = asyncio.create_task(searches.go_on())
        # An autoscaler adds a pod of each.
        await asyncio.gather(*(pods.start(kind, second[kind], *flags[kind]) for kind in flags))
        for kind in flags:
            names.names[f"{kind}.mesh.test"] = [first[kind], second[kind]]
        used = await asyncio.gather(*(pods.is_used(second[k], methods[k]) for k in flags))
        assert all(used), dict(zip(flags, used, strict=True))
        # Those of before are taken out of their names, and stopped.
        for kind in flags:
            names.names[f"{kind}.mesh.test"] = [second[kind]]
        await asyncio.sleep(NEW_S)
        await asyncio.gather(*(pods.stop(first[kind]) for kind in flags))
        used = await asyncio.gather(*(pods.is_used(second[k], methods[k]) for k in flags))
        assert all(used), dict(zip(flags, used, strict=True))
        searching.cancel()
        await asyncio.gather(searching, return_exceptions=True)
    assert set(searches.outcomes) == {"whole"}, searches.outcomes
