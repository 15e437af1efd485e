"""A repeatable upsert: candidates encoded for the collection's model and its mirror's, and stored.

Which collection a name stands for may change at any time, when an alias moves or a mirror is set.
The index refuses what does not fit any more; it is then encoded for the models that are due now.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmesh.candidates import Candidate
from mmesh.content import Role
from mmesh.errors import (
    CollectionNotFound,
    DimMismatch,
    InvalidField,
    MmeshError,
    ModelMismatch,
)
from mmesh.serving.deadline import Deadline
from services.gateway import metrics
from services.gateway.catalog import Catalog
from services.gateway.interfaces import Embeddings, EncodedBatch, Encoder, Index

_CULPRIT = re.compile(r"(candidates|vectors)\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Refused:
    """A candidate that is not stored, and why."""

    id: str
    number: int
    error: MmeshError


MOST_UNEXPLAINED = 3
"""Refusals of vectors, of the models that are due, after which a write fails."""
_TRUNCATED, _REPEATED = "TEXT_TRUNCATED", "ID_REPEATED"
_MESSAGES = {
    _REPEATED: "a later candidate of the same batch has the same id, and is stored in its place",
    "TEXT_UNKNOWN": "the model knows no token of the text, so it equals any other such text",
    "IMAGE_BLANK": "the model sees one colour in the picture, so it equals any other of it",
}
"""What notices mean."""


@dataclass(frozen=True, slots=True)
class Noticed:
    """What should be known of a candidate that is stored."""

    id: str
    number: int
    reason: str
    message: str
    """One sentence for people."""


@dataclass(frozen=True, slots=True)
class Upsert:
    """Candidates to be stored, each with its number in the caller's list."""

    collection: str
    candidates: Sequence[tuple[int, Candidate]]
    request_id: str
    given: Embeddings | None = None
    """A vector for each number, if they were encoded elsewhere."""
    fill: bool = False
    """Store only what the collection lacks and its mirror has."""


@dataclass(frozen=True, slots=True)
class _Models:
    """Fingerprints of the models of a collection and, if it has one, of its mirror."""

    own: str
    mirror: str | None


class Draft:
    """An upsert under way. A step that failed may be repeated; what was encoded is kept."""

    def __init__(self, encoder: Encoder, index: Index, catalog: Catalog, upsert: Upsert) -> None:
        self._encoder, self._index, self._catalog = encoder, index, catalog
        self._wanted = upsert
        self._encoded: dict[str, EncodedBatch] = {}
        self._models = _Models("", None)
        self._culprits: dict[int, Refused] = {}
        if upsert.given is not None:
            rows = upsert.given.rows[[number for number, _ in upsert.candidates]]
            given = EncodedBatch(rows, upsert.given.fingerprint, {}, frozenset(), 0, 0.0)
            self._encoded[given.fingerprint] = given

    @property
    def refused(self) -> list[Refused]:
        """What cannot be stored, as far as is known."""
        problems = self._problems
        return [self._refusal(place, error) for place, error in problems.items()] + [
            refused for place, refused in self._culprits.items() if place not in problems
        ]

    @property
    def noticed(self) -> list[Noticed]:
        """What should be known of those that are stored, by the model of the collection."""
        encoded = self._encoded.get(self._models.own)
        if encoded is None:
            return []
        bad = encoded.problems.keys() | self._culprits.keys()
        most = f"the {encoded.max_text_tokens} tokens that " if encoded.max_text_tokens else ""
        cut = f"the text is longer than {most}the model reads; its end is not found"
        messages = _MESSAGES | {_TRUNCATED: cut}
        found = {place: {_TRUNCATED} for place in encoded.truncated}
        for place, reasons in encoded.notices.items():
            found[place] = found.get(place, set()) | reasons
        candidates = self._wanted.candidates
        good = [place for place in range(len(candidates)) if place not in bad]
        for place in set(good).difference(self._last_of_ids(good)):
            found[place] = found.get(place, set()) | {_REPEATED}
        return [
            Noticed(candidates[place][1].id, candidates[place][0], r, messages.get(r, r))
            for place in sorted(found.keys() - bad)
            for r in sorted(found[place])
        ]

    @property
    def _problems(self) -> Mapping[int, MmeshError]:
        encoded = self._encoded.get(self._models.own)
        return encoded.problems if encoded else {}

    def _refusal(self, place: int, error: MmeshError) -> Refused:
        number, candidate = self._wanted.candidates[place]
        if isinstance(error, InvalidField):
            error = error.under(f"candidates[{number}]")
        return Refused(candidate.id, number, error)

    # -- encoding

    async def encode(self, deadline: Deadline) -> None:
        """Encode for the models that are due now, unless that was done.

        Raises:
            ModelMismatch: the vectors that were given are of another model, or none serves it.
        """
        models = await self._due(deadline)
        due = dict.fromkeys(model for model in (models.own, models.mirror) if model is not None)
        given = self._wanted.given
        if given is not None and given.fingerprint not in due:
            raise ModelMismatch(
                f"vectors are of model {given.fingerprint!r}; collection "
                f"{self._wanted.collection!r} is for {models.own!r}",
                {"collection": self._wanted.collection, "model_fingerprint": models.own},
            )
        inputs = [(candidate.content, "") for _, candidate in self._wanted.candidates]
        missing = [model for model in due if model not in self._encoded]
        calls = (self._encoder.encode(model, inputs, Role.CANDIDATE, deadline) for model in missing)
        self._encoded |= zip(missing, await asyncio.gather(*calls), strict=True)
        self._models = models

    async def _due(self, deadline: Deadline) -> _Models:
        collection = await self._catalog.get(self._wanted.collection, deadline)
        own, mirror = collection.model_fingerprint, collection.settings.mirror
        if self._wanted.fill or not mirror:
            return _Models(own, None)
        try:
            return _Models(own, (await self._catalog.get(mirror, deadline)).model_fingerprint)
        except CollectionNotFound:  # deleted since the collection was looked at
            return _Models(own, None)

    # -- storing

    async def store_all(self, deadline: Deadline) -> str:
        """Store all or none; return the token.

        Raises:
            MmeshError: what is wrong with one candidate, the number of which is in its field.
        """
        return await self._store(self._try_all, deadline)

    async def store_good(self, deadline: Deadline) -> str:
        """Store what can be stored; return the token, empty when that is nothing."""
        return await self._store(self._try_good, deadline)

    async def _store(
        self, attempt: Callable[[Deadline], Awaitable[str]], deadline: Deadline
    ) -> str:
        """Try, and again as long as other models are due than were tried.

        Where the same are due, a name may have moved away and back (ABA): some tries more.
        """
        unexplained = 0
        while True:
            await self.encode(deadline)
            try:
                return await attempt(deadline)
            except (ModelMismatch, DimMismatch):
                self._catalog.forget()
                unexplained += await self._due(deadline) == self._models
                if unexplained == MOST_UNEXPLAINED:
                    raise

    def _last_of_ids(self, places: Iterable[int]) -> list[int]:
        """Return the last place of each id: in a batch as across batches, the last one stays."""
        candidates = self._wanted.candidates
        return sorted({candidates[place][1].id: place for place in places}.values())

    async def _try_all(self, deadline: Deadline) -> str:
        for one in self.refused:
            raise one.error
        places = self._last_of_ids(range(len(self._wanted.candidates)))
        try:
            return await self._upsert(places, self._wanted.request_id, deadline)
        except InvalidField as error:
            place = self._note_culprit(places, error)
            raise self._culprits[place].error from None

    async def _try_good(self, deadline: Deadline) -> str:
        bad = self._problems.keys() | self._culprits.keys()
        every = range(len(self._wanted.candidates))
        while places := self._last_of_ids(n for n in every if n not in bad):
            # The same candidates again meet the same refusals, so each write needs its own id.
            ids = "\n".join(self._wanted.candidates[place][1].id for place in places)
            digest = hashlib.sha256(ids.encode()).hexdigest()[:16]
            try:
                return await self._upsert(places, f"{self._wanted.request_id}:{digest}", deadline)
            except InvalidField as error:
                bad.add(self._note_culprit(places, error))
        return ""

    async def _upsert(self, places: Sequence[int], request_id: str, deadline: Deadline) -> str:
        wanted, models = self._wanted, self._models
        token = await self._index.upsert(
            wanted.collection,
            [wanted.candidates[place][1] for place in places],
            self._embeddings(models.own, places),
            request_id,
            deadline,
            mirror=None if models.mirror is None else self._embeddings(models.mirror, places),
            fill=wanted.fill,
        )
        if models.mirror is not None:
            for error in self._encoded[models.mirror].problems.values():
                metrics.mirror_refused_total.labels(error.reason).inc()
        return token

    def _embeddings(self, model: str, places: Sequence[int]) -> Embeddings:
        return Embeddings(self._encoded[model].vectors[list(places)], model)

    def _note_culprit(self, places: Sequence[int], error: InvalidField) -> int:
        """Return the place of what the index refused the write for; raise if it named none."""
        found = _CULPRIT.match(error.field)
        if found is None or int(found[2]) >= len(places):
            raise error
        place = places[int(found[2])]
        number, candidate = self._wanted.candidates[place]
        field = f"{found[1]}[{number}]{error.field[found.end() :]}"
        self._culprits[place] = Refused(candidate.id, number, type(error)(field, error.problem))
        return place
