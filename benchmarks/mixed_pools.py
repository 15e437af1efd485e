"""The pools of `mixed_pool.py`: ten that the merge was chosen on, eight that report on it.

They differ in how many pictures come to a text (20:1 to 1:20), in what the pictures are (drawings,
emoji, icons, photographs) and the texts (words, labels, captions, lines, paragraphs), and in the
model. Each has queries that seek a picture and queries that seek a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mixed_sources import Row, half_of

from mmesh.content import Modality
from mmesh.training.lite_model.pictures import normalised
from mmesh.training.lite_model.splits import digest

FIT, REPORT = 0, 1
TEXT, IMAGE = Modality.TEXT, Modality.IMAGE
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pool is made of: names of sources with how many rows of each, at most."""

    name: str
    side: int
    pictures: dict[str, int]
    texts: dict[str, int]
    model: str = "lite"
    asked: tuple[str, ...] = ()
    """Sources of pictures that are asked for, if not all."""
    by: str = ""
    """Pictures of this source are the queries; they seek the same emoji's picture and its label."""


PLANS = (
    Plan("drawings, labels, synopses", FIT, {"drawings": 600, "unseen emoji": 400},
         {"labels": 250, "synopses": 1000}, asked=("drawings",)),
    Plan("drawings, all labels", FIT, {"drawings": 600, "unseen emoji": 400},
         {"labels": 1000, "synopses": 1000}, asked=("drawings",)),
    Plan("photographs 1:7 descriptions", FIT, {"photographs": 250}, {"descriptions": 1500}),
    Plan("photographs 1:5 glosses", FIT, {"photographs": 250}, {"glosses": 1000}),
    Plan("icons, drawings, emoji 20:1 synopses", FIT,
         {"tabler": 500, "drawings": 600, "twitter": 400}, {"synopses": 80}),
    Plan("emoji 1:20 synopses", FIT, {"twitter": 125}, {"synopses": 2500}),
    Plan("drawings 1:1 captions, words", FIT, {"drawings": 500},
         {"captions": 300, "words": 300}),
    Plan("photographs 1:7 descriptions", FIT, {"photographs": 250}, {"descriptions": 1500},
         "names"),
    Plan("drawings, labels, synopses", FIT, {"drawings": 600, "unseen emoji": 400},
         {"labels": 250, "synopses": 1000}, "head", asked=("drawings",)),
    Plan("by picture: emoji, labels, synopses", FIT, {"facebook": 400},
         {"labels": 400, "synopses": 400}, by="twitter"),
    Plan("photographs 1:10 synopses", REPORT, {"photographs": 250}, {"synopses": 2000}),
    Plan("icons 1:1 words", REPORT, {"lucide": 600}, {"words": 600}),
    Plan("emoji 1:4 descriptions", REPORT, {"facebook": 400}, {"descriptions": 1500}),
    Plan("drawings, icons, emoji 20:1 synopses", REPORT,
         {"drawings": 600, "lucide": 600, "facebook": 400}, {"synopses": 80}),
    Plan("photographs, drawings, captions, glosses", REPORT,
         {"photographs": 250, "drawings": 250}, {"captions": 300, "glosses": 400}),
    Plan("photographs 1:20 lines, paragraphs", REPORT, {"photographs": 100},
         {"synopses": 1000, "descriptions": 1000}, "head"),
    Plan("drawings, emoji, labels, synopses", REPORT, {"drawings": 400, "facebook": 400},
         {"labels": 800, "synopses": 400}, "names", asked=("drawings",)),
    Plan("by picture: emoji, labels, synopses", REPORT, {"twitter": 400},
         {"labels": 400, "synopses": 400}, by="facebook"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """Queries that seek one modality, with the numbers of the right answers in its list."""

    seeks: Modality
    queries: list[str | Path]
    relevant: list[frozenset[int]]


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates by modality and both kinds of queries for them."""

    name: str
    side: int
    model: str
    query: Modality
    candidates: dict[Modality, list[str | Path]]
    kinds: list[Kind]


@dataclass(slots=True)
class _Chosen:
    """Rows of a pool by source; no two are about one thing."""

    rows: list[tuple[str, Row]] = field(default_factory=list)

    def add(self, source: str, rows: Iterable[Row], taken: set[str]) -> None:
        for row in rows:
            if row.thing not in taken:
                taken.add(row.thing)
                self.rows.append((source, row))


def pools(work: Path, most: int) -> list[Pool]:
    """Return the pools of all plans, with up to `most` queries of a kind."""
    return [(_by_picture if plan.by else _by_text)(plan, work, most) for plan in PLANS]


def _by_text(plan: Plan, work: Path, most: int) -> Pool:
    taken: set[str] = set()
    shown, written = _Chosen(), _Chosen()
    for chosen, wanted in ((shown, plan.pictures), (written, plan.texts)):
        for source, count in wanted.items():
            rows = half_of(source, work, plan.side, 10 * count)
            chosen.add(source, [row for row in rows if row.thing not in taken][:count], taken)
    known = {normalised(str(row.content)) for _, row in written.rows}
    asked = plan.asked or tuple(plan.pictures)
    same = _groups((source, normalised(row.query)) for source, row in shown.rows)
    seek_picture = [
        (row.query, same[source, normalised(row.query)])
        for source, row in shown.rows
        if source in asked and normalised(row.query) not in known
    ]
    first = next(iter(plan.texts))
    alike = _groups(normalised(str(row.content)) for _, row in written.rows)
    seek_text = [
        (row.query, alike[normalised(str(row.content))])
        for source, row in written.rows
        if source == first
    ]
    kinds = [_kind(IMAGE, seek_picture, most), _kind(TEXT, seek_text, most)]
    return _pool(plan, TEXT, shown, written, kinds)


def _by_picture(plan: Plan, work: Path, most: int) -> Pool:
    (other,) = plan.pictures
    asked, found, named = (
        {row.key: row for row in half_all(source, work, plan.side)}
        for source in (plan.by, other, "labels")
    )
    return _pool_of_concepts(plan, work, most, asked, found, named)


def half_all(source: str, work: Path, side: int) -> list[Row]:
    """Return all rows of a half."""
    return half_of(source, work, side, 10**6)


def _pool_of_concepts(
    plan: Plan,
    work: Path,
    most: int,
    asked: dict[str, Row],
    found: dict[str, Row],
    named: dict[str, Row],
) -> Pool:
    (count,) = plan.pictures.values()
    concepts = sorted(asked.keys() & found.keys() & named.keys(), key=digest)[:count]
    shown, written, taken = _Chosen(), _Chosen(), set[str]()
    shown.add("shown", [found[concept] for concept in concepts], taken)
    written.add("labels", [named[concept] for concept in concepts], taken)
    others = half_of("synopses", work, plan.side, plan.texts["synopses"])
    written.add("synopses", others, taken)
    pairs = [(asked[concept].content, frozenset({place})) for place, concept in enumerate(concepts)]
    kinds = [_kind(IMAGE, pairs, most), _kind(TEXT, pairs, most)]
    return _pool(plan, IMAGE, shown, written, kinds)


def _pool(plan: Plan, query: Modality, shown: _Chosen, written: _Chosen, kinds: list[Kind]) -> Pool:
    candidates = {
        IMAGE: [row.content for _, row in shown.rows],
        TEXT: [row.content for _, row in written.rows],
    }
    return Pool(plan.name, plan.side, plan.model, query, candidates, kinds)


def _kind(seeks: Modality, pairs: Sequence[tuple[str | Path, frozenset[int]]], most: int) -> Kind:
    chosen = sorted(pairs, key=lambda pair: digest(f"ask {_plain(pair[0])}"))[:most]
    return Kind(seeks, [query for query, _ in chosen], [right for _, right in chosen])


def _plain(query: str | Path) -> str:
    """Return what tells a query, whatever folder its picture lies in."""
    return query.name if isinstance(query, Path) else query


def _groups(keys: Iterable[Key]) -> dict[Key, frozenset[int]]:
    found: dict[Key, set[int]] = {}
    for place, key in enumerate(keys):
        found.setdefault(key, set()).add(place)
    return {key: frozenset(places) for key, places in found.items()}
