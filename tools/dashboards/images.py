"""Draw every dashboard from a live mesh: `python -m tools.dashboards.images`.

Two shards with two replicas, a Prometheus beside them, and for a minute and a half searches,
ingests and what can go wrong in a small way. Needs `pip install --group panels` and Prometheus.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

from PIL import Image

from mmesh import AsyncClient, Candidate, Content
from mmesh.errors import MmeshError
from mmesh.local import LocalMesh, LocalSettings
from mmesh.local.observers import Observers
from mmesh.search import Rerank
from tools.dashboards.boards import ALL
from tools.dashboards.drawing import Line, draw

FOLDER = Path(__file__).parents[2] / "docs" / "images"
SHOWN_S, WARM_S, SCRAPE_S, STEP_S = 90.0, 15.0, 1.0, 1.0
INTERVALS = {"$__rate_interval": "15s", "$namespace": "local"}
WORDS = "harbour glacier violin tractor orchid comet bakery lantern canyon piano falcon".split()  # noqa: SIM905  # easier to read
QUERY_S = 20.0


@dataclass
class Traffic:
    """What a small mesh does on an ordinary day, in a minute."""

    client: AsyncClient
    random: random.Random

    async def run(self, seconds: float) -> None:
        """Search, ingest and err for so long."""
        await self.client.create_collection("photos")
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            for pause, work in (
                (0.15, self._search),
                (0.2, self._search),
                (0.4, self._write),
                (0.8, self._ingest),
                (6.0, self._err),
            ):
                tasks.create_task(self._repeat(work, pause, until))

    async def _repeat(self, work: Callable[[], object], pause: float, until: float) -> None:
        while time.monotonic() < until:
            outcome = work()
            assert asyncio.iscoroutine(outcome)
            await outcome
            await asyncio.sleep(self.random.expovariate(1 / pause))

    def _text(self) -> str:
        return " ".join(self.random.choices(WORDS, k=self.random.randint(1, 12)))

    def _picture(self) -> bytes:
        data = BytesIO()
        colour = tuple(self.random.randrange(256) for _ in range(3))
        Image.new("RGB", (64, 64), colour).save(data, "PNG")
        return data.getvalue()

    def _candidates(self, count: int) -> list[Candidate]:
        ids = (f"c{next(_NUMBERS)}" for _ in range(count))
        return [
            Candidate(one, Content.of(self._picture() if number % 3 == 0 else self._text()))
            for number, one in enumerate(ids)
        ]

    async def _search(self) -> None:
        query = self._picture() if self.random.random() < 0.2 else self._text()
        await self.client.search("photos", query, rerank=Rerank(candidates=8))

    async def _write(self) -> None:
        await self.client.upsert_candidates("photos", self._candidates(2))

    async def _ingest(self) -> None:
        await self.client.ingest("photos", self._candidates(8))

    async def _err(self) -> None:
        try:
            await self.client.search("no-such-collection", self._text())
        except MmeshError:
            return


_NUMBERS = itertools.count()


def find_in(url: str, begin: float, end: float) -> Callable[[str], list[Line]]:
    """Return what asks a Prometheus for what a query had in a span."""

    def find(query: str) -> list[Line]:
        for variable, value in INTERVALS.items():
            query = query.replace(variable, value)
        asked = urlencode({"query": query, "start": begin, "end": end, "step": STEP_S})
        with urlopen(f"{url}/api/v1/query_range?{asked}", timeout=QUERY_S) as reply:
            series = json.load(reply)["data"]["result"]
        return [_line(one["metric"], one["values"], begin) for one in series]

    return find


def _line(labels: dict[str, str], points: Sequence[tuple[float, str]], begin: float) -> Line:
    return Line(labels, [at - begin for at, _ in points], [float(value) for _, value in points])


async def main() -> None:
    """Run a mesh, and draw."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        settings = LocalSettings(Path(name), shards=2, replicas=2, port=0)
        async with LocalMesh(settings) as mesh, Observers(Path(name), print, SCRAPE_S) as observers:
            async with AsyncClient(mesh.address) as client:
                await Traffic(client, random.Random(7)).run(WARM_S + SHOWN_S)
            end = time.time()
            find = find_in(observers.addresses["prometheus"], end - SHOWN_S, end)
            for board in ALL:
                path = FOLDER / f"dashboard-{board.name}.png"
                await asyncio.to_thread(draw, board, find, SHOWN_S, path)
                print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    asyncio.run(main())
