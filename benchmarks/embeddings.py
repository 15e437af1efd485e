"""Real vectors for the benchmarks of the index: embeddings of public texts by the lite model.

The texts are sentences of the descriptions of Debian's packages, or the lines of a file. Vectors
are kept in parts by a digest of texts and model: what ends early goes on where it was, and fewer
rows are the first ones of more rows.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import debian
import faiss
import numpy as np
from numpy.typing import NDArray

from mmesh.models.encoders.lite.artefacts import read_manifest
from mmesh.models.encoders.lite.model import fingerprint, load_text_tower
from mmesh.models.encoders.lite.text import WIDTH, TextTower, Tokens

QUERIES = 2000
PART = 10_000
"""Rows that are embedded and saved at a time."""
BATCH = 64
SHORTEST, LONGEST = 40, 200
"""Characters of a text."""
NEARNESS = (0.5, 0.9)
"""Share of the first of two rows in a row that is made of both."""
NOISE = 0.7
"""Length of what is added to such a row in a random direction."""

Rows = NDArray[np.float32]


# -- texts


def texts(n: int, work: Path, source: Path | None = None) -> list[str]:
    """Return n + 2,000 distinct texts of 40 to 200 characters; the last 2,000 are the queries.

    `source` has a text on each line; without it they are from Debian's package descriptions.

    Raises:
        SystemExit: there are not as many.
    """
    found = _ordered(work, source)
    _require(n, found)
    return found[QUERIES : QUERIES + n] + found[:QUERIES]


def _ordered(work: Path, source: Path | None) -> list[str]:
    """Return all texts, each once, in an order that does not depend on how many are wanted."""
    if source is not None:
        return _usable(source.read_text("utf-8").splitlines())
    paragraphs = [*_paragraphs(work)]
    # Sentences come first, so that fewer rows, and all queries, are nothing but sentences.
    kinds = (_sentences, _clauses, _pairs)
    by_hash = (sorted(_usable(_each(kind, paragraphs)), key=_digest) for kind in kinds)
    return list(dict.fromkeys(itertools.chain.from_iterable(by_hash)))


def _paragraphs(work: Path) -> Iterator[str]:
    """Yield synopses and paragraphs of all packages, each on one line."""
    for record in debian.records(work):
        described = re.search(r"^Description-en: (.*(?:\n .*)*)", record, re.MULTILINE)
        synopsis, _, rest = described[1].partition("\n") if described else ("", "", "")
        yield synopsis
        yield from (" ".join(part.split()) for part in rest.split("\n .\n"))


def _each(split: Callable[[str], list[str]], paragraphs: Sequence[str]) -> Iterator[str]:
    return itertools.chain.from_iterable(map(split, paragraphs))


def _usable(lines: Iterable[str]) -> list[str]:
    found = dict.fromkeys(line.strip() for line in lines)
    return [text for text in found if SHORTEST <= len(text) <= LONGEST]


def _sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.!?:;])\s+", paragraph)


def _clauses(paragraph: str) -> list[str]:
    """Return what stands between commas and brackets in sentences."""
    return re.split(r"[,;:()]\s|\s-\s", paragraph)


def _pairs(paragraph: str) -> list[str]:
    """Return each two sentences that follow one another."""
    return [" ".join(pair) for pair in itertools.pairwise(_sentences(paragraph))]


def _require(n: int, found: Sequence[str]) -> None:
    if len(found) < n + QUERIES:
        raise SystemExit(f"{len(found)} texts are too few for {n} rows and {QUERIES} queries")


# -- vectors


def embeddings(n: int, work: Path, source: Path | None = None) -> tuple[Rows, Rows]:
    """Return unit vectors of texts: rows (n, 384) and queries (2,000, 384), in order of `texts`.

    Raises:
        SystemExit: there are not as many texts.
    """
    found = _ordered(work, source)
    _require(n, found)
    work = work / "embeddings"
    work.mkdir(parents=True, exist_ok=True)
    embedder = _Embedder(work, fingerprint(read_manifest()["files"]))
    queries = embedder.part("queries", found[:QUERIES])
    starts = range(QUERIES, QUERIES + n, PART)
    parts = [embedder.part(_name(i), found[s : s + PART]) for i, s in enumerate(starts)]
    return np.concatenate(parts)[:n], queries


def _name(number: int) -> str:
    return f"part-{number:03}"


class _Embedder:
    """Embeds parts, each once; the model is loaded when a part is new."""

    def __init__(self, folder: Path, model: str) -> None:
        self._folder = folder
        self._model = model
        self._tower: TextTower | None = None

    def part(self, name: str, part: Sequence[str]) -> Rows:
        """Return the vectors of some texts, from the file of them if there is one."""
        path = self._folder / f"{name}-{_digest(self._model, *part)[:16]}.npy"
        if path.exists():
            saved: Rows = np.load(path)
            return saved
        started = time.perf_counter()
        rows = self._embed(part)
        _save(path, rows)
        seconds = time.perf_counter() - started
        print(f"{name}: {len(part)} texts, {len(part) / seconds:.0f}/s", file=sys.stderr)
        return rows

    def _embed(self, part: Sequence[str]) -> Rows:
        if self._tower is None:
            self._tower = load_text_tower("onnxruntime", threads=1)
        tower, tokens = self._tower, self._tower.tokenise(part)
        rows = np.empty((len(part), WIDTH), np.float32)

        def fill(batch: list[int]) -> None:
            rows[batch] = tower.embed([tokens[number] for number in batch])

        # As many batches at a time as there are cores beat many threads in one batch.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(fill, _batches(tokens)))
        return rows


def _batches(tokens: Sequence[Tokens]) -> Iterator[list[int]]:
    """Yield places of texts with equally many tokens: nothing is padded."""
    lengths = [len(one.ids) for one in tokens]
    order = sorted(range(len(tokens)), key=lengths.__getitem__)
    for _, group in itertools.groupby(order, key=lengths.__getitem__):
        places = list(group)
        for start in range(0, len(places), BATCH):
            yield places[start : start + BATCH]


def _save(path: Path, rows: Rows) -> None:
    """Write a file that is whole or absent."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("wb") as file:
        np.save(file, rows)
    unfinished.replace(path)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# -- more rows than texts


def grown(rows: Rows, n: int, seed: int) -> Rows:
    """Return n unit rows: the given ones, then rows made of them. SAY SO where results are shown.

    A made row is a mixture of two rows of one cluster plus noise, about as near to its neighbours
    as real rows are to theirs. It stands in for real rows where cost and memory are measured: real
    queries find few of them.
    """
    if n <= len(rows):
        return rows[:n]
    draw = np.random.default_rng(seed)
    whole = np.empty((n, rows.shape[1]), np.float32)
    whole[: len(rows)] = rows
    members = _clusters(rows, seed)
    for start in range(len(rows), n, PART):
        target = whole[start : start + PART]
        target[:] = _mixtures(rows, members, len(target), draw)
    return whole


def _clusters(rows: Rows, seed: int) -> list[NDArray[np.int64]]:
    """Return for each row the numbers of the rows of its cluster."""
    count = max(1, int(np.sqrt(len(rows))))
    kmeans = faiss.Kmeans(
        rows.shape[1], count, niter=5, seed=seed, spherical=True, max_points_per_centroid=100
    )
    kmeans.train(rows)
    cluster = kmeans.assign(rows)[1].astype(np.int64)
    of_cluster = [np.flatnonzero(cluster == number) for number in range(count)]
    return [of_cluster[number] for number in cluster]


def _mixtures(
    rows: Rows, members: Sequence[NDArray[np.int64]], n: int, draw: np.random.Generator
) -> Rows:
    first = draw.integers(len(rows), size=n)
    second = [draw.choice(members[number]) for number in first]
    share = draw.uniform(*NEARNESS, size=(n, 1)).astype(np.float32)
    noise = draw.standard_normal((n, rows.shape[1]), np.float32)
    noise *= np.float32(NOISE / np.sqrt(rows.shape[1]))
    mixed = share * rows[first] + (1 - share) * rows[second] + noise
    unit: Rows = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return unit


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the texts are from."""
    parser.add_argument("--texts", type=Path, help="file with a text on each line, not Debian's")


def main() -> None:
    """Embed texts and write x.npy (rows) and q.npy (queries)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=250_000, help="rows")
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--work", type=Path, help="folder of what is kept; else that of --out")
    add_options(parser)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows, queries = embeddings(options.n, options.work or options.out, options.texts)
    _save(options.out / "x.npy", rows)
    _save(options.out / "q.npy", queries)


if __name__ == "__main__":
    main()
