"""Held-out data measured through a local mesh that serves the model, as its users would search."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mmesh.aio import AsyncClient
from mmesh.evaluation.cost import TooMuch
from mmesh.evaluation.datasets.dataset import DatasetError, Judgement, PoolRow, Query, Task
from mmesh.evaluation.options import Options, Target
from mmesh.evaluation.results import Results, TaskResult
from mmesh.evaluation.run import Evaluation, Limits, Place
from mmesh.local.mesh import LocalMesh
from mmesh.local.plan import LocalSettings, MeshFailed
from mmesh.training.errors import TrainingError
from mmesh.training.held_out import METRICS, HeldOut, figures_of
from mmesh.training.sources import open_source

_POOL = "all"
Figures = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class _AsDataset:
    """Held-out data for `Evaluation`: all queries are one task, all candidates its pool."""

    held: HeldOut
    name: str = "held-out"
    notes: Sequence[str] = ()
    tasks: Sequence[Task] = (Task(_POOL, _POOL, METRICS[0], METRICS),)
    unions: bool = False

    @property
    def pool_files(self) -> Sequence[Path]:
        source = self.held.source
        return (source.path,) if source.path.is_file() else open_source(source).pool_files

    def pool(self) -> Iterator[PoolRow]:
        filtered = any(one.among for one in self.held.asked)
        for item, name in zip(self.held.items, self.held.names, strict=True):
            attributes = {"id": name} if filtered else {}
            yield PoolRow(name, item.text, item.image, (_POOL,), name, attributes)

    def queries(self, task: Task) -> Iterator[Query]:
        for place, one in enumerate(self.held.asked):
            text, image = one.query.text, one.query.image
            excluded, among = tuple(sorted(one.excluded)), tuple(sorted(one.among))
            yield Query(
                str(place), text, image, one.id, one.instruction, one.wanted, excluded, among
            )

    def judgements(self, task: Task) -> Iterator[Judgement]:
        for place, one in enumerate(self.held.asked):
            for answer in sorted(one.answers):
                yield Judgement(str(place), answer, 1)


def measure(
    encoder: str, held: Mapping[str, HeldOut], folder: Path, say: Callable[[str], None]
) -> Figures:
    """Return what `held_out.measure_held_out` does for each data set, by searches of a mesh.

    It searches exhaustively, every modality by itself, merged by score.

    Args:
        encoder: as `mmesh up --encoder` takes it.
        held: the held-out data by name.
        folder: of the mesh while it runs; deleted before and after.
        say: gets what happens to the mesh.

    Raises:
        TrainingError: data cannot be read, or the mesh does not come up or cannot hold them.
    """
    if find_spec("faiss") is None:
        raise TrainingError("measuring on a mesh needs faiss: pip install 'mmesh[local]'")
    datasets = {name: _AsDataset(one) for name, one in held.items()}
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return asyncio.run(_measure(encoder, datasets, folder, say))
    except (MeshFailed, TooMuch, DatasetError) as error:
        raise TrainingError(str(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _measure(
    encoder: str, held: Mapping[str, _AsDataset], folder: Path, say: Callable[[str], None]
) -> Figures:
    settings = LocalSettings(
        folder / "mesh", port=0, reranker="none", encoders=(encoder,), metrics=False
    )
    async with LocalMesh(settings, say) as mesh, AsyncClient(mesh.address) as client:
        found: Figures = {}
        for name, dataset in held.items():
            place = Place(folder / "held-out", mesh.address, exact=True)
            options, limits = Options(target=Target.EACH), Limits(max_hours=math.inf)
            evaluation = Evaluation(client, dataset, place, options, limits=limits)
            result = _checked(await evaluation.run(), name)
            await evaluation.restart()  # the next one begins with nothing
            await client.delete_collection(evaluation.collection_name)
            found[name] = figures_of(dataset.held, result.figures)
    return found


def _checked(results: Results, name: str) -> TaskResult:
    """Return the figures, unless something was left out of them."""
    (result,) = results.tasks
    left_out = sum(results.rejections["counts"].values())
    if left_out:
        where, _, reason = results.rejections["examples"][0]
        raise TrainingError(f"{left_out} rows of {name} cannot be read: {where!r}: {reason}")
    if result.refused:
        raise TrainingError(f"the mesh refused {result.refused} queries of {name}")
    return result
