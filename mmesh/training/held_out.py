"""Exact search with a model in this process: figures on held-out data, and mining between stages.

All vectors of a pool are in memory, as suits a data set of one's own. A large one is measured by
`mmesh evaluate` and mined by `mmesh negatives`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmesh.content import Modality, Role
from mmesh.errors import MmeshError
from mmesh.evaluation.bootstrap import Estimate, estimate_mean
from mmesh.evaluation.metrics import Ranking, metric
from mmesh.models.protocol import EncoderModel, FloatMatrix, Prepared, encode_together
from mmesh.training.errors import TrainingError
from mmesh.training.examples import Example, Item
from mmesh.training.mining.drawing import (
    SCORE_DIGITS,
    Positives,
    Ranked,
    Rules,
    draw,
    eligible,
    in_order,
)
from mmesh.training.mining.statistics import Statistics
from mmesh.training.sources import Source, digest_of, load, pool_of, questions_of

BATCH, WINDOW, ROWS, DEPTH = 32, 1024, 256, 10
METRICS = ("hit@1", "hit@10", "mrr@10", "mismatch")
FIGURE_DIGITS = 6
"""Of scores where figures are made: so that copies tie, and all else is in a mesh's order."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A query, and the names of what answers it."""

    id: str
    query: Item
    instruction: str
    answers: frozenset[str]
    wanted: Modality | None
    where: str = ""
    """File and line."""
    excluded: frozenset[str] = frozenset()
    """Candidates that are taken out of its hits, such as the query itself."""
    among: frozenset[str] = frozenset()
    """The only candidates that it is searched among; empty means all."""


@dataclass(frozen=True)
class HeldOut:
    """What a model is measured on."""

    source: Source
    items: tuple[Item, ...]
    """The candidates."""
    names: tuple[str, ...]
    """Of the candidates, in the same order."""
    asked: list[Asked]
    broken: list[str] = field(default_factory=list)
    """What was left out, as the source said to."""

    def digest(self) -> str:
        """Return the SHA-256 of what is asked and searched, the same wherever the files lie."""
        root = self.source.root
        pool = ([name, item.spelt(root)] for item, name in zip(self.items, self.names, strict=True))
        asked = (
            [one.query.spelt(root), one.instruction, one.wanted.value if one.wanted else ""]
            + [sorted(names) for names in (one.answers, one.excluded, one.among)]
            for one in self.asked
        )
        return digest_of(chain(pool, asked))


@dataclass(frozen=True)
class Pool:
    """Candidates with their vectors."""

    items: tuple[Item, ...]
    names: tuple[str, ...]
    modalities: tuple[Modality, ...]
    vectors: FloatMatrix

    def rankings(
        self,
        queries: FloatMatrix,
        depth: int,
        digits: int = SCORE_DIGITS,
        asked: Sequence[Asked] = (),
    ) -> Iterator[list[Ranked]]:
        """Yield the first candidates of all modalities for each query, in order.

        `asked` says what is not searched.
        """
        places_of = {name: place for place, name in enumerate(self.names)} if asked else {}
        for start in range(0, len(queries), ROWS):
            scores = queries[start : start + ROWS] @ self.vectors.T
            for row, one in zip(scores, asked[start : start + ROWS], strict=False):
                _mask(row, one, places_of)
            kept = min(2 * depth, scores.shape[1])
            near = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
            for row, places in zip(scores, near, strict=True):
                ranked = [
                    Ranked(self.names[place], self.modalities[place], float(row[place]))
                    for place in places
                    if row[place] > -np.inf
                ]
                yield in_order(ranked, depth, digits)


def _mask(scores: NDArray[np.float32], one: Asked, places_of: Mapping[str, int]) -> None:
    """Lower the scores of candidates that a query does not look at below all others."""
    if one.among:
        among = [places_of[name] for name in one.among if name in places_of]
        kept = scores[among]
        scores[:] = -np.inf
        scores[among] = kept
    scores[[places_of[name] for name in one.excluded if name in places_of]] = -np.inf


def modality_of(item: Item) -> Modality:
    """Return the modality of an item."""
    if item.image is None:
        return Modality.TEXT
    return Modality.IMAGE_TEXT if item.text else Modality.IMAGE


def embed(model: EncoderModel, items: Sequence[tuple[Item, str]], role: Role) -> FloatMatrix:
    """Return unit rows (n, dim) of items, each with its instruction; like costs share a batch.

    Raises:
        TrainingError: an item cannot be read.
    """
    rows = np.empty((len(items), model.info.dim), np.float32)
    for start in range(0, len(items), WINDOW):
        some = range(start, min(start + WINDOW, len(items)))
        prepared = {place: _prepared(model, *items[place], role) for place in some}
        for places in _batches(prepared):
            rows[places] = encode_together(model, [prepared[place] for place in places])
    return rows


def _prepared(model: EncoderModel, item: Item, instruction: str, role: Role) -> Prepared:
    try:
        return model.prepare(item.content(), role, instruction)
    except (OSError, MmeshError) as error:
        raise TrainingError(f"{item.id or item.text[:60]!r} cannot be read: {error}") from error


def _batches(prepared: dict[int, Prepared]) -> Iterator[list[int]]:
    groups: dict[str, list[int]] = {}
    for place in sorted(prepared, key=lambda place: prepared[place].cost):
        groups.setdefault(prepared[place].group, []).append(place)
    for places in groups.values():
        rest = iter(places)
        while some := list(islice(rest, BATCH)):
            yield some


def open_pool(model: EncoderModel, source: Source, examples: Sequence[Example] = ()) -> Pool:
    """Return all candidates of a source with their vectors.

    Raises:
        TrainingError: a candidate cannot be read, or there is none.
    """
    items, names = _candidates(source, examples)
    return _embedded(model, items, names)


def _candidates(
    source: Source, examples: Sequence[Example], broken: list[str] | None = None
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Return all candidates of a source, and their names; what is left out goes to `broken`."""
    items = tuple(pool_of(source, examples, broken))
    if not items:
        raise TrainingError(f"{source.path} holds no candidate")
    return items, tuple(item.id or f"#{place}" for place, item in enumerate(items))


def _embedded(model: EncoderModel, items: tuple[Item, ...], names: tuple[str, ...]) -> Pool:
    vectors = embed(model, [(item, "") for item in items], Role.CANDIDATE)
    return Pool(items, names, tuple(map(modality_of, items)), vectors)


# -- figures


def read_held_out(source: Source) -> HeldOut:
    """Return candidates and queries of held-out data.

    Raises:
        TrainingError: the data cannot be read, name an answer that is no candidate, or have an id
            twice, unless these are skipped; or they ask nothing.
    """
    broken: list[str] = []
    if source.path.is_file():
        loaded = load(source)
        broken += loaded.broken
        items, names = _candidates(source, loaded.examples, broken)
        asked = _asked_of_pairs(loaded.examples, dict(zip(items, names, strict=True)))
    else:
        items, names = _candidates(source, (), broken)
        asked = _asked_of_dataset(source, broken)
    asked = list(_answerable(asked, frozenset(names), broken))
    if broken and not source.skip_broken:
        raise TrainingError(f"{broken[0]}; mend {source.path}, or set skip_broken")
    if not asked:
        raise TrainingError(f"{source.path} holds no query with an answer")
    return HeldOut(source, items, names, asked, broken)


def _answerable(
    asked: Sequence[Asked], names: frozenset[str], broken: list[str]
) -> Iterator[Asked]:
    """Yield the queries that have an id of their own, each with those answers that are there."""
    files: set[tuple[str, str]] = set()
    for one in asked:
        missing = sorted(one.answers - names)
        key = (one.id, one.where.rpartition(":")[0])
        if key in files:
            broken.append(f"{one.where}: the query {one.id!r} is there twice")
            continue
        files.add(key)
        if missing:
            broken.append(f"{one.where}: the candidate {missing[0]!r} is not in the pool")
        if one.query.image is not None and not one.query.image.is_file():
            broken.append(f"{one.where}: the picture {one.query.image} is missing")
        elif len(missing) < len(one.answers):
            yield replace(one, answers=one.answers & names)


def measure(model: EncoderModel, source: Source) -> dict[str, dict[str, float]]:
    """Return figures of a model on held-out data by metric: mean, and its 95 % interval.

    Queries are searched among all candidates of any modality, by score.

    Raises:
        TrainingError: the data cannot be read.
    """
    return measure_held_out(model, read_held_out(source))


def measure_held_out(model: EncoderModel, held: HeldOut) -> dict[str, dict[str, float]]:
    """Return what `measure` does, on data that were read.

    Raises:
        TrainingError: a picture cannot be read.
    """
    pool = _embedded(model, held.items, held.names)
    queries = embed(model, [(one.query, one.instruction) for one in held.asked], Role.QUERY)
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    rankings = pool.rankings(queries, DEPTH, FIGURE_DIGITS, held.asked)
    for one, ranked in zip(held.asked, rankings, strict=True):
        ranking = Ranking(
            [hit.id for hit in ranked],
            dict.fromkeys(one.answers, 1),
            [hit.modality for hit in ranked],
            one.wanted,
        )
        for name in METRICS:
            values[name].append(metric(name)(ranking))
    return figures_of(held, {name: estimate_mean(some) for name, some in values.items()})


def figures_of(held: HeldOut, means: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Return means and their intervals as they stand in a row of results."""
    figures = {
        name: {"value": means[name].value, "low": means[name].low, "high": means[name].high}
        for name in METRICS
    }
    left_out = len(held.broken)
    counts = {"queries": len(held.asked), "pool": len(held.items), "left out": left_out}
    return figures | {name: {"value": count} for name, count in counts.items()}


def _asked_of_dataset(source: Source, broken: list[str]) -> list[Asked]:
    return [
        Asked(
            one.query.id,
            Item(one.query.text, one.query.image),
            one.query.instruction,
            frozenset(one.positives),
            one.wanted,
            one.query.where,
            frozenset(one.query.excluded),
            frozenset(one.query.among),
        )
        for one in questions_of(source, broken)
    ]


def _asked_of_pairs(examples: Sequence[Example], names: Mapping[Item, str]) -> list[Asked]:
    return [
        Asked(
            one.id,
            one.query,
            one.instruction,
            frozenset(names.get(item, f"{item.id} of {one.where}") for item in one.positives),
            wanted_of(one),
            one.where,
        )
        for one in examples
    ]


def wanted_of(example: Example) -> Modality | None:
    """Return the modality that an example's answers have; None when they have several."""
    kinds = {modality_of(item) for item in example.positives}
    return kinds.pop() if len(kinds) == 1 else None


# -- mining


def mine(
    model: EncoderModel, source: Source, examples: Sequence[Example], rules: Rules, seed: int
) -> tuple[list[Example], Statistics]:
    """Return the examples with hard negatives as `mmesh negatives` draws them, and statistics.

    Raises:
        TrainingError: a candidate cannot be read.
    """
    pool = open_pool(model, source, examples)
    items = dict(zip(pool.names, pool.items, strict=True))
    names = {item: name for name, item in items.items()}
    queries = embed(model, [(one.query, one.instruction) for one in examples], Role.QUERY)
    statistics, mined = Statistics(), []
    rankings = pool.rankings(queries, rules.top)
    for one, ranked in zip(examples, rankings, strict=True):
        wanted = wanted_of(one)
        if wanted is None:
            statistics.refuse("positives of several modalities", one.where, one.id)
            mined.append(one)
            continue
        positives = Positives(frozenset(names.get(item, item.id) for item in one.positives))
        found = eligible(ranked, positives, wanted, rules)
        drawn = draw(found, rules.count, seed, one.id)
        statistics.add(wanted, found, drawn)
        mined.append(replace(one, negatives=tuple(items[negative.id] for negative in drawn)))
    return mined, statistics


def write_mined(path: Path, examples: Sequence[Example], root: Path) -> None:
    """Write the negatives of examples down, so that a run goes on with the same ones.

    Pictures are named from `root`, the folder of their data.

    Raises:
        OSError: the file cannot be written.
    """
    values = [[item.spelt(root) for item in one.negatives] for one in examples]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values), "utf-8")
    os.replace(part, path)


def read_mined(path: Path, examples: Sequence[Example], root: Path) -> list[Example]:
    """Return the examples with the negatives that were written down."""
    values = json.loads(path.read_text("utf-8"))
    return [
        replace(
            one,
            negatives=tuple(
                Item(text, root / image if image else None, name) for text, image, name in items
            ),
        )
        for one, items in zip(examples, values, strict=True)
    ]
