"""What a migration asks both collections; tests/mesh/test_migrate.py has the whole of it."""

from __future__ import annotations

from types import SimpleNamespace

from mmesh.candidates import Candidate, Page
from mmesh.content import Content
from mmesh.migration import Comparison, Migration, compare

SIDES = SimpleNamespace(name="pets-1"), SimpleNamespace(name="pets-2")
MIGRATION = Migration("pets", *SIDES, is_switched=False)


class Gateway:
    """Lists candidates of both collections, and finds nothing."""

    def __init__(self, contents: list[Content]) -> None:
        self._held = [Candidate(f"{n:03}", one) for n, one in enumerate(contents)]

    async def list_candidates(self, collection, **options) -> Page:
        bare = [Candidate(one.id, Content((one.content.text,))) for one in self._held]
        return Page(tuple(bare), "")

    async def batch_get_candidates(self, collection, ids) -> list[Candidate]:
        return [one for one in self._held if one.id in ids]

    async def search(self, collection, query, **options) -> SimpleNamespace:
        return SimpleNamespace(hits=())


async def asked(contents: list[Content]) -> list[Content]:
    return [pair.query async for pair in compare(Gateway(contents), MIGRATION)]


async def test_texts_of_a_comparison_are_spread_over_the_whole_collection():
    for count in (1, 49, 50, 51, 75, 99, 100, 101, 149):
        texts = [Content.of(str(n)) for n in range(count)]
        places = [int(query.text) for query in await asked(texts)]
        assert len(places) == min(count, 50)
        gaps = {b - a for a, b in zip(places, [*places[1:], count], strict=True)}
        assert max(gaps) - min(gaps) <= 1, count


async def test_a_collection_of_pictures_only_is_asked_by_its_pictures(pictures):
    made = [Content.of(pictures.png(n)) for n in range(60)]
    queries = await asked(made)
    assert len(queries) == 50
    assert all(query in made for query in queries)
    with_one_text = [*made, Content.of("a cat")]
    assert await asked(with_one_text) == [Content.of("a cat")]


async def test_nothing_found_is_no_agreement():
    comparison = Comparison()
    async for pair in compare(Gateway([Content.of("a cat")]), MIGRATION):
        comparison.add(pair)
    assert (comparison.asked, comparison.overlap, comparison.correlation) == (1, None, None)
