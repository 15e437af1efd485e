"""Writes while the collection that a name stands for, or its mirror, changes under them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from mmesh.candidates import Candidate
from mmesh.collections import Collection, CollectionSettings
from mmesh.content import Content
from mmesh.errors import CollectionNotFound, InvalidField, InvalidVector, ModelMismatch
from mmesh.serving.deadline import Deadline
from services.gateway.catalog import Catalog
from services.gateway.interfaces import Embeddings, EncodedBatch
from services.gateway.writes.draft import Draft, Upsert

SOON = Deadline.after(3600)
CANDIDATES = [(n, Candidate(f"c{n}", Content.of(f"text {n}"))) for n in range(3)]
UPSERT = Upsert("live", CANDIDATES, "request")
WIDTHS = {"old": 2, "new": 3}


class Index:
    """Collections "old" and "new", each of the model with its name, and the alias "live"."""

    def __init__(self, alias="old", mirrored=False):
        self.alias, self.mirrored = alias, mirrored
        self.written = []

    async def get_collection(self, name, deadline):
        real = self.alias if name == "live" else name
        if real not in WIDTHS:
            raise CollectionNotFound(name)
        made = Collection(real, WIDTHS[real], real, {}, 1, datetime.now(UTC), "e:1")
        return replace(
            made, settings=CollectionSettings(mirror=self._other if self.mirrored else "")
        )

    @property
    def _other(self):
        return "new" if self.alias == "old" else "old"

    async def upsert(
        self, collection, candidates, vectors, request_id, deadline, *, mirror=None, fill=False
    ):
        if vectors.fingerprint != self.alias:
            raise ModelMismatch("another model")
        if self.mirrored and not fill and (mirror is None or mirror.fingerprint != self._other):
            raise ModelMismatch("the mirror's is missing")
        ids = [candidate.id for candidate in candidates]
        for one in (vectors, mirror):
            if one is not None:
                assert one.rows.shape == (len(ids), WIDTHS[one.fingerprint])
        self.written.append((ids, vectors, mirror, request_id))
        return "e:2"


class Encoder:
    """Encodes for both models; "new" cannot encode the candidates with some texts."""

    def __init__(self, *bad):
        self.bad, self.asked = bad, []

    async def encode(self, fingerprint, inputs, role, deadline):
        self.asked.append(fingerprint)
        texts = [content.text for content, _ in inputs]
        problems = {
            n: InvalidField("content", "is too hard")
            for n, text in enumerate(texts)
            if fingerprint == "new" and text in self.bad
        }
        rows = np.ones((len(texts), WIDTHS[fingerprint]), np.float32)
        rows[list(problems)] = 0
        return EncodedBatch(rows, fingerprint, problems, frozenset(), len(texts), 0.0)


def draft_of(index, encoder, upsert=UPSERT):
    return Draft(encoder, index, Catalog(index), upsert)


async def test_what_the_index_refuses_is_named_by_its_number_in_the_call():
    """Of an id that comes twice only the last is sent, so the index counts otherwise."""

    class Refusing(Index):
        async def upsert(self, collection, candidates, *_, **__):
            raise InvalidVector(f"vectors[{len(candidates) - 1}]", "is zero")

    names = ["a", "a", "b", "bad"]
    candidates = [(n, Candidate(name, Content.of("text"))) for n, name in enumerate(names)]
    draft = draft_of(Refusing(), Encoder(), Upsert("live", candidates, "request"))
    with pytest.raises(InvalidVector) as refused:
        await draft.store_all(SOON)
    assert refused.value.field == "vectors[3]"


async def test_a_mirror_gets_vectors_of_its_own_model():
    index, encoder = Index(mirrored=True), Encoder()
    assert await draft_of(index, encoder).store_all(SOON) == "e:2"
    [(ids, vectors, mirror, request_id)] = index.written
    assert (ids, request_id) == (["c0", "c1", "c2"], "request")
    assert (vectors.fingerprint, mirror.fingerprint) == ("old", "new")
    assert sorted(encoder.asked) == ["new", "old"]


async def test_a_mirror_that_is_set_meanwhile_is_written_too_and_nothing_encoded_twice():
    index, encoder = Index(), Encoder()
    draft = draft_of(index, encoder)
    await draft.encode(SOON)
    index.mirrored = True
    await draft.store_all(SOON)
    assert [vectors.fingerprint for _, vectors, _, _ in index.written] == ["old"]
    assert encoder.asked == ["old", "new"]


async def test_an_alias_that_moves_to_the_mirror_costs_no_encoding():
    index, encoder = Index(mirrored=True), Encoder()
    draft = draft_of(index, encoder)
    await draft.encode(SOON)
    index.alias = "new"
    await draft.store_good(SOON)
    [(_, vectors, mirror, _)] = index.written
    assert (vectors.fingerprint, mirror.fingerprint) == ("new", "old")
    assert len(encoder.asked) == 2


async def test_what_the_mirror_cannot_encode_is_stored_with_a_row_of_zeros_for_it():
    index = Index(mirrored=True)
    draft = draft_of(index, Encoder("text 1"))
    await draft.store_all(SOON)
    assert draft.refused == []
    [(_, _, mirror, _)] = index.written
    assert mirror.rows.any(axis=1).tolist() == [True, False, True]


async def test_what_the_collections_own_model_cannot_encode_is_refused():
    index = Index("new", mirrored=True)
    draft = draft_of(index, Encoder("text 1"))
    with pytest.raises(InvalidField, match=r"candidates\[1\]\.content is too hard"):
        await draft.store_all(SOON)
    await draft.store_good(SOON)
    assert [(one.id, one.number) for one in draft.refused] == [("c1", 1)]
    assert [ids for ids, *_ in index.written] == [["c0", "c2"]]


@pytest.mark.parametrize("given", ["old", "new"])
async def test_vectors_that_are_given_may_be_of_either_model(given):
    index, encoder = Index(mirrored=True), Encoder()
    rows = np.full((3, WIDTHS[given]), 2, np.float32)
    await draft_of(index, encoder, replace(UPSERT, given=Embeddings(rows, given))).store_all(SOON)
    [(_, vectors, mirror, _)] = index.written
    by_model = {one.fingerprint: one.rows for one in (vectors, mirror)}
    np.testing.assert_array_equal(by_model[given], rows)
    assert encoder.asked == [({"old", "new"} - {given}).pop()]


async def test_vectors_of_a_third_model_are_refused():
    given = Embeddings(np.ones((3, 2), np.float32), "third")
    with pytest.raises(ModelMismatch, match=r"'third'.*'old'"):
        await draft_of(Index(), Encoder(), replace(UPSERT, given=given)).store_all(SOON)


async def test_a_fill_is_for_one_of_the_two():
    index, encoder = Index("new", mirrored=True), Encoder()
    await draft_of(index, encoder, replace(UPSERT, fill=True)).store_good(SOON)
    [(_, vectors, mirror, _)] = index.written
    assert (vectors.fingerprint, mirror, encoder.asked) == ("new", None, ["new"])


async def test_an_alias_that_moves_away_and_back_during_a_write_does_not_fail_it():
    class Flipping(Index):
        flips = 1

        async def upsert(self, *arguments, **options):
            if not self.flips:
                return await super().upsert(*arguments, **options)
            self.flips -= 1
            self.alias = "new"  # and back, before anybody looks
            try:
                return await super().upsert(*arguments, **options)
            finally:
                self.alias = "old"

    index, encoder = Flipping(), Encoder()
    await draft_of(index, encoder).store_all(SOON)
    assert [vectors.fingerprint for _, vectors, _, _ in index.written] == ["old"]
    assert encoder.asked == ["old"]


async def test_a_refusal_that_a_new_look_does_not_explain_is_raised():
    class Stubborn(Index):
        async def upsert(self, *_, **__):
            raise ModelMismatch("never")

    with pytest.raises(ModelMismatch, match="never"):
        await draft_of(Stubborn(), Encoder()).store_all(SOON)
