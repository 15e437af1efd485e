"""Writes to the log, and what becomes of a group of them: decided in memory, before any SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mmesh.content import Modality
from mmesh.errors import (
    CollectionFull,
    CollectionNotFound,
    CollectionReadOnly,
    DimMismatch,
    FailedPrecondition,
    MmeshError,
    ModelMismatch,
)
from mmesh.values.tokens import Token
from services.index.log.answers import Answer, check_request_id, check_same, digest_of
from services.index.log.attributes import Uses
from services.index.log.commits import new_stamp
from services.index.log.rows import CollectionRow, NewCandidate, same_parts
from services.index.log.tables import MODALITIES, NUMBERS
from services.index.point import Point
from services.index.slots import slot_of

CheckTypes = Callable[[Mapping[str, str]], object]
"""Gets the types of a collection's attributes; raises where a candidate does not fit."""


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What an upsert writes into the mirror of its collection."""

    candidates: Sequence[NewCandidate]
    """Those of the upsert that the mirror's model can encode; the mirror loses the others."""
    model_fingerprint: str


@dataclass(frozen=True, slots=True)
class Upsert:
    """Insert or replace candidates, all or none."""

    collection: str
    candidates: Sequence[NewCandidate]
    check_types: CheckTypes
    request_id: str = ""
    model_fingerprint: str = ""
    """Model of the vectors; refused when the collection (an alias may have moved) has another."""
    mirrored: Mirrored | None = None
    """Needed where the collection has a mirror."""


@dataclass(frozen=True, slots=True)
class Fill(Upsert):
    """Insert those candidates that the collection has no row of and that its mirror has.

    What was read from the mirror some time ago can so be written at any time: a candidate that was
    deleted or replaced meanwhile has left a row here, of the write that was mirrored.
    """


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete those of `ids` that exist."""

    collection: str
    ids: Sequence[str]
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class DeleteUnchanged:
    """Delete those candidates whose newest write still is the given one.

    Several of these are the steps of one request when they have its id: its answer counts what they
    all deleted, and is final after the last.
    """

    collection: str
    seqs: Mapping[str, int]
    request_id: str = ""
    digest: str = ""
    """Of the content of the request; see `answers.digest_of`."""
    until_seq: int = 0
    """The newest write that the request looks at."""
    is_last: bool = True
    read_at: Point | None = None
    """What the log had when `seqs` were read, or later: elsewhere they name other writes."""


Write = Upsert | Delete | DeleteUnchanged


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did: its token, and how many candidates it wrote or deleted."""

    token: str
    count: int


class RowState(NamedTuple):
    """What the log has of an id."""

    modality: int
    """As in the table; kept when it is deleted."""
    seq: int
    living: bool
    attributes: str = ""
    """JSON; empty when it is deleted."""


Row = tuple[int, str, int, int, str, str, bytes, int, int | None]
"""A row of the table `candidates`, in the order of its columns."""


@dataclass(slots=True)
class Ledger:
    """A collection while a group of writes is decided; `row` is as it was locked."""

    row: CollectionRow
    states: dict[str, RowState]
    """Of all ids in the group that the log has; later, of those written too."""
    answers: dict[str, Answer]
    """By request id: what is remembered, and what is new."""
    uses: Uses = field(default_factory=lambda: Uses({}, {}))
    """Of all attributes in the group."""
    mirror: Ledger | None = None
    """That of the collection which gets every write of this one."""
    seq: int = field(init=False)
    attribute_types: Mapping[str, str] = field(init=False)
    counts: dict[Modality, int] = field(init=False)
    stored: frozenset[str] = field(init=False)
    """Ids that the log had a row of."""
    remembered: Mapping[str, Answer] = field(init=False)
    """By request id: what was answered before this group."""
    rows: dict[str, Row] = field(init=False, default_factory=dict)
    """New rows by id, in order of sequence."""
    stamp: str = field(init=False, default_factory=new_stamp)
    """Of the commit, if it writes any row."""

    def __post_init__(self) -> None:
        self.seq, self.attribute_types = self.row.seq, self.row.attribute_types
        self.counts = dict(self.row.counts)
        self.stored = frozenset(self.states)
        self.remembered = dict(self.answers)

    @property
    def has_changed(self) -> bool:
        """Whether the collection's own row must be written."""
        return self.seq != self.row.seq or self.attribute_types != self.row.attribute_types

    @property
    def head(self) -> Point:
        """The newest write, those of the ledger included."""
        return self.row.head if self.seq == self.row.seq else Point(self.seq, self.stamp)

    def decide(self, write: Write, now_s: int) -> Written:
        """Take the write into the ledger, or raise and leave the ledger as it was."""
        check_request_id(write.request_id)
        digest = _digest_of(write) if write.request_id else ""
        known = self.answers.get(write.request_id) if write.request_id else None
        if known is not None:
            check_same(write.request_id, known, digest)
            if known.is_final:
                return Written(known.text, known.count)
        self._check_writable(write)
        if isinstance(write, Fill):
            count = self._fill(write)
        elif isinstance(write, Upsert):
            count = self._upsert(write, now_s)
        else:
            count = self._delete(write, now_s)
        if write.request_id:
            self._remember(write, count, digest)
        return Written(self._token, count)

    def _check_writable(self, write: Write) -> None:
        """Raise unless all that the write changes may be written: a mirror is only read to fill."""
        for ledger in (self, None if isinstance(write, Fill) else self.mirror):
            if ledger is not None and ledger.row.settings.read_only:
                raise CollectionReadOnly(ledger.row.name)

    @property
    def _token(self) -> str:
        return str(Token(self.row.epoch, *self.head))

    def _remember(self, write: Write, count: int, digest: str) -> None:
        """Keep the answer; in the mirror too, which the same name may stand for the next time."""
        goes_on = isinstance(write, DeleteUnchanged) and not write.is_last
        own = write.until_seq if isinstance(write, DeleteUnchanged) else 0
        self._answer(write.request_id, count, digest, own if goes_on else None)
        if self.mirror is not None:
            until_seq = self.mirror.row.seq if goes_on else None
            self.mirror._answer(write.request_id, count, digest, until_seq)

    def _answer(self, request_id: str, count: int, digest: str, until_seq: int | None) -> None:
        known = self.answers.get(request_id)
        if known is not None and known.is_final:
            return
        if known is not None:  # one more step
            count += known.count
            until_seq = None if until_seq is None else known.until_seq
        self.answers[request_id] = Answer(self._token, count, digest, until_seq)

    def _upsert(self, write: Upsert, now_s: int) -> int:
        self._check(write.candidates, write.model_fingerprint, write.check_types)
        if self.mirror is not None:
            self.mirror._take_mirrored(write, self.row.name, now_s)
        self._take(write.candidates)
        return len(write.candidates)

    def _take_mirrored(self, write: Upsert, of: str, now_s: int) -> None:
        if write.mirrored is None:
            raise ModelMismatch(
                f"collection {of!r} has the mirror {self.row.name!r}, which needs vectors of model "
                f"{self.row.model_fingerprint!r} as well",
                {"collection": of},
            )
        taken, model = write.mirrored.candidates, write.mirrored.model_fingerprint
        self._check(taken, model, write.check_types)
        self._take(taken)
        held = {candidate.id for candidate in taken}
        for candidate in write.candidates:
            if candidate.id not in held:
                self._bury(candidate.id, NUMBERS[candidate.modality], now_s)
        self._settle_types()

    def _fill(self, write: Fill) -> int:
        mirror = self.mirror
        if mirror is None:
            message = f"collection {self.row.name!r} has no mirror that it could be filled from"
            raise FailedPrecondition(message, {"collection": self.row.name})
        new = [c for c in write.candidates if c.id not in self.states and mirror._lives(c.id)]
        self._check(new, write.model_fingerprint, write.check_types)
        self._take(new)
        return len(new)

    def _check(
        self, candidates: Sequence[NewCandidate], model_fingerprint: str, check_types: CheckTypes
    ) -> None:
        """Raise what is wrong with the candidates."""
        self._check_vectors(candidates, model_fingerprint)
        self._check_room(candidates)
        check_types(self.attribute_types)

    def _take(self, candidates: Sequence[NewCandidate]) -> None:
        for candidate in candidates:
            self._put(candidate)
        self._settle_types()

    def _settle_types(self) -> None:
        self.attribute_types = self.uses.settled(self.attribute_types)

    def _check_vectors(self, candidates: Sequence[NewCandidate], model_fingerprint: str) -> None:
        model, dim = self.row.model_fingerprint, self.row.dim
        if model_fingerprint and model_fingerprint != model:
            message = f"collection {self.row.name!r} has vectors of model {model!r}"
            raise ModelMismatch(
                f"{message}; these are of {model_fingerprint!r}",
                {"collection": self.row.name},
            )
        for candidate in candidates:
            if len(candidate.vector) != 4 * dim:
                message = f"collection {self.row.name!r} has vectors of dim {dim}"
                raise DimMismatch(
                    f"{message}; that of {candidate.id[:80]!r} is of dim "
                    f"{len(candidate.vector) // 4}",
                    {"collection": self.row.name},
                )

    def _check_room(self, candidates: Sequence[NewCandidate]) -> None:
        most = self.row.settings.limits.max_candidates
        if not most:
            return
        ids = {candidate.id for candidate in candidates}
        added = sum(not self._lives(candidate_id) for candidate_id in ids)
        have = sum(self.counts.values())
        if added and have + added > most:
            raise CollectionFull(
                f"collection {self.row.name!r} holds {have} candidates of at most {most}, and the "
                f"write would add {added}; delete some, or raise limits.max_candidates",
                {"collection": self.row.name, "limit": str(most)},
            )

    def _lives(self, candidate_id: str) -> bool:
        state = self.states.get(candidate_id)
        return state is not None and state.living

    def _put(self, new: NewCandidate) -> None:
        self._count_off(new.id, new.attributes)
        self.seq += 1
        number = NUMBERS[new.modality]
        self.counts[new.modality] += 1
        self.states[new.id] = RowState(number, self.seq, True, new.attributes)
        self._write_row(
            (self.row.key, new.id, new.slot, number, new.attributes, new.parts, new.vector,
             self.seq, None)
        )  # fmt: skip

    def _delete(self, write: Delete | DeleteUnchanged, now_s: int) -> int:
        if isinstance(write, DeleteUnchanged):
            gone = [
                i for i, seq in write.seqs.items() if self._lives(i) and self.states[i].seq == seq
            ]
        else:
            gone = [i for i in dict.fromkeys(write.ids) if self._lives(i)]
        for candidate_id in gone:
            number = self.states[candidate_id].modality
            self._bury(candidate_id, number, now_s)
            if self.mirror is not None:
                self.mirror._bury(candidate_id, number, now_s)
        for ledger in (self, self.mirror):
            if ledger is not None:
                ledger._settle_types()
        return len(gone)

    def _bury(self, candidate_id: str, number: int, now_s: int) -> None:
        """Write a deletion, also of a candidate that there never was: so no fill brings it in."""
        self._count_off(candidate_id)
        self.seq += 1
        self.states[candidate_id] = RowState(number, self.seq, living=False)
        slot = slot_of(candidate_id)
        self._write_row((self.row.key, candidate_id, slot, number, "", "[]", b"", self.seq, now_s))

    def _count_off(self, candidate_id: str, attributes: str = "") -> None:
        """Take a candidate out of the counts; in its place comes one with these attributes."""
        state, before = self.states.get(candidate_id), ""
        if state is not None and state.living:
            self.counts[MODALITIES[state.modality]] -= 1
            before = state.attributes
        self.uses.replace(before, attributes)

    def _write_row(self, row: Row) -> None:
        self.rows.pop(row[1], None)  # so that the newest is at the end
        self.rows[row[1]] = row


def _digest_of(write: Write) -> str:
    """Return a digest of what a write asks for, in whatever collection.

    Vectors are left out: whoever encodes the same content again gets other last bits.
    """
    if isinstance(write, DeleteUnchanged):
        return write.digest or digest_of("delete_unchanged", sorted(write.seqs.items()))
    if isinstance(write, Delete):
        return digest_of("delete", list(write.ids))
    content = [(one.id, same_parts(one.parts), one.attributes) for one in write.candidates]
    return digest_of("fill" if isinstance(write, Fill) else "upsert", content)


def decide(
    writes: Sequence[Write], ledgers: Mapping[str, Ledger], now_s: int
) -> list[Written | MmeshError]:
    """Take writes into the ledgers (by name or alias), in order; refused ones leave no trace."""

    def outcome(write: Write) -> Written | MmeshError:
        try:
            if write.collection not in ledgers:
                raise CollectionNotFound(write.collection)
            return ledgers[write.collection].decide(write, now_s)
        except MmeshError as error:
            return error

    return [outcome(write) for write in writes]


def ids_of(write: Write) -> Sequence[str]:
    """Return the ids that a write touches; those that no row can have are left out."""
    if isinstance(write, Upsert):
        return [candidate.id for candidate in write.candidates]
    ids = write.seqs if isinstance(write, DeleteUnchanged) else write.ids
    return [candidate_id for candidate_id in ids if "\0" not in candidate_id]
