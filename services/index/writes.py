"""Writes to the log, and what becomes of a group of them: decided in memory, before any SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mmesh.content import Modality
from mmesh.errors import (
    CollectionFull,
    CollectionNotFound,
    DimMismatch,
    InvalidField,
    MmeshError,
    ModelMismatch,
)
from services.index.rows import CollectionRow, NewCandidate
from services.index.slots import slot_of
from services.index.tables import MODALITIES, NUMBERS

TypesOf = Callable[[Mapping[str, str]], Mapping[str, str]]
"""Gets the types of a collection's attributes and returns them with new ones added; raises where a
candidate does not fit."""


@dataclass(frozen=True, slots=True)
class Upsert:
    """Insert or replace candidates, all or none."""

    collection: str
    candidates: Sequence[NewCandidate]
    attribute_types: TypesOf
    request_id: str = ""
    model_fingerprint: str = ""
    """Model of the vectors; refused when the collection (an alias may have moved) has another."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete those of `ids` that exist."""

    collection: str
    ids: Sequence[str]
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class DeleteUnchanged:
    """Delete those candidates whose newest write still is the given one."""

    collection: str
    seqs: Mapping[str, int]
    request_id: str = ""


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


Row = tuple[int, str, int, int, str, str, bytes, int, int | None]
"""A row of the table `candidates`, in the order of its columns."""


@dataclass(slots=True)
class Ledger:
    """A collection while a group of writes is decided; `row` is as it was locked."""

    row: CollectionRow
    states: dict[str, RowState]
    """Of all ids in the group that the log has; later, of those written too."""
    answers: dict[str, Written]
    """By request id: what is remembered, and what is new."""
    seq: int = field(init=False)
    attribute_types: Mapping[str, str] = field(init=False)
    counts: dict[Modality, int] = field(init=False)
    stored: frozenset[str] = field(init=False)
    """Ids that the log had a row of."""
    remembered: frozenset[str] = field(init=False)
    """Request ids that were answered before this group."""
    rows: dict[str, Row] = field(init=False, default_factory=dict)
    """New rows by id, in order of sequence."""

    def __post_init__(self) -> None:
        self.seq, self.attribute_types = self.row.seq, self.row.attribute_types
        self.counts = dict(self.row.counts)
        self.stored = frozenset(self.states)
        self.remembered = frozenset(self.answers)

    @property
    def has_changed(self) -> bool:
        """Whether the collection's own row must be written."""
        return self.seq != self.row.seq or self.attribute_types != self.row.attribute_types

    def decide(self, write: Write, now_s: int) -> Written:
        """Take the write into the ledger, or raise and leave the ledger as it was."""
        if "\0" in write.request_id:
            raise InvalidField("request_id", "holds a NUL character; remove it")
        known = self.answers.get(write.request_id) if write.request_id else None
        if known is not None:
            return known
        count = self._upsert(write) if isinstance(write, Upsert) else self._delete(write, now_s)
        written = Written(f"{self.row.epoch}:{self.seq}", count)
        if write.request_id:
            self.answers[write.request_id] = written
        return written

    def _upsert(self, write: Upsert) -> int:
        self._check_vectors(write)
        types = write.attribute_types(self.attribute_types)
        self._check_room(write)
        self.attribute_types = types
        for candidate in write.candidates:
            self._put(candidate)
        return len(write.candidates)

    def _check_vectors(self, write: Upsert) -> None:
        model, dim = self.row.model_fingerprint, self.row.dim
        if write.model_fingerprint and write.model_fingerprint != model:
            message = f"collection {self.row.name!r} has vectors of model {model!r}"
            raise ModelMismatch(
                f"{message}; these are of {write.model_fingerprint!r}",
                {"collection": self.row.name},
            )
        for candidate in write.candidates:
            if len(candidate.vector) != 4 * dim:
                message = f"collection {self.row.name!r} has vectors of dim {dim}"
                raise DimMismatch(
                    f"{message}; that of {candidate.id[:80]!r} is of dim "
                    f"{len(candidate.vector) // 4}",
                    {"collection": self.row.name},
                )

    def _check_room(self, write: Upsert) -> None:
        most = self.row.settings.limits.max_candidates
        if not most:
            return
        ids = {candidate.id for candidate in write.candidates}
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
        self._count_off(new.id)
        self.seq += 1
        number = NUMBERS[new.modality]
        self.counts[new.modality] += 1
        self.states[new.id] = RowState(number, self.seq, living=True)
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
            self._count_off(candidate_id)
            self.seq += 1
            number = self.states[candidate_id].modality
            self.states[candidate_id] = RowState(number, self.seq, living=False)
            slot = slot_of(candidate_id)
            self._write_row(
                (self.row.key, candidate_id, slot, number, "", "[]", b"", self.seq, now_s)
            )
        return len(gone)

    def _count_off(self, candidate_id: str) -> None:
        state = self.states.get(candidate_id)
        if state is not None and state.living:
            self.counts[MODALITIES[state.modality]] -= 1

    def _write_row(self, row: Row) -> None:
        self.rows.pop(row[1], None)  # so that the newest is at the end
        self.rows[row[1]] = row


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
