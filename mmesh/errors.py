"""Everything that mmesh raises, with the gRPC code and reason that each carries.

MmeshError
 |- InvalidRequest            INVALID_ARGUMENT
 |   |- InvalidField              INVALID_FIELD
 |   |- InvalidImage              INVALID_IMAGE
 |   |- InputTooLong              INPUT_TOO_LONG
 |   |- InvalidVector             INVALID_VECTOR
 |   `- InvalidFilter             INVALID_FILTER
 |- NotFound                  NOT_FOUND
 |   |- CollectionNotFound        COLLECTION_NOT_FOUND
 |   |- CandidateNotFound         CANDIDATE_NOT_FOUND
 |   `- AliasNotFound             ALIAS_NOT_FOUND
 |- CollectionExists          ALREADY_EXISTS       COLLECTION_EXISTS
 |- FailedPrecondition        FAILED_PRECONDITION
 |   |- DimMismatch               DIM_MISMATCH
 |   |- ModelMismatch             MODEL_MISMATCH
 |   |- RequestIdReused           REQUEST_ID_REUSED
 |   |- CollectionReadOnly        COLLECTION_READ_ONLY
 |   `- HistoryLost               HISTORY_LOST
 |- ResourceExhausted         RESOURCE_EXHAUSTED
 |   |- Overloaded                QUEUE_FULL
 |   |- MessageTooLarge           MESSAGE_TOO_LARGE
 |   |- StorageFull               STORAGE_FULL
 |   |- CollectionFull            COLLECTION_FULL
 |   `- MemoryFull                MEMORY_FULL
 |- Unavailable               UNAVAILABLE          UNAVAILABLE
 |   |- Draining                  DRAINING
 |   |- ShardUnavailable          SHARD_UNAVAILABLE
 |   |- LogUnavailable            LOG_UNAVAILABLE
 |   `- StaleReplica              STALE_REPLICA
 |- DeadlineExceeded          DEADLINE_EXCEEDED    DEADLINE
 |- Cancelled                 CANCELLED            CANCELLED
 |- Unimplemented             UNIMPLEMENTED        UNIMPLEMENTED
 |- DataLoss                  DATA_LOSS            CORRUPT_DATA
 `- InternalError             INTERNAL             INTERNAL
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

Error = TypeVar("Error", bound="MmeshError")
DOMAIN = "mmesh"


class Code(enum.IntEnum):
    """gRPC status codes by their wire numbers: those of mmesh, and of proxies in front of it.

    An error of a proxy is a plain `MmeshError`, with the name of its code as reason.
    """

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class MmeshError(Exception):
    """The root of every error that mmesh raises.

    Attributes:
        code: the gRPC status code.
        reason: what went wrong, in UPPER_SNAKE; stable, meant for programs.
        metadata: what is dynamic in the message.
        retry_after_s: seconds after which the same call may succeed; None where it will not.
    """

    code = Code.INTERNAL
    reason = "INTERNAL"
    retry_after_s: float | None = None

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Let errors cross to other processes; subclasses are made of other arguments."""
        return new_error, (type(self), self.message, self.metadata), self.__dict__


def new_error(cls: type[Error], message: str, metadata: Mapping[str, str]) -> Error:
    """Return an error of a class without its own wording, and without what only it knows."""
    error = cls.__new__(cls)
    MmeshError.__init__(error, message, metadata)
    return error


class InvalidRequest(MmeshError):
    """The request can never succeed as it is."""

    code, reason = Code.INVALID_ARGUMENT, "INVALID_REQUEST"


class InvalidField(InvalidRequest):
    """A field is outside its limits; `field` is its path, such as `query.parts[0].text`."""

    reason = "INVALID_FIELD"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}", {"field": field})
        self.field = field
        self.problem = problem

    def under(self, prefix: str) -> InvalidField:
        """Return the same error for a field that lies inside `prefix`."""
        return type(self)(f"{prefix}.{self.field}", self.problem)


class InvalidImage(InvalidField):
    """A picture cannot be decoded, or is not allowed to be."""

    reason = "INVALID_IMAGE"


class InputTooLong(InvalidField):
    """Text or pictures are more than the model reads at once, and may not be cut."""

    reason = "INPUT_TOO_LONG"


class InvalidVector(InvalidField):
    """A vector is not finite, has no length, or its bytes do not fit its dim."""

    reason = "INVALID_VECTOR"


class InvalidFilter(InvalidField):
    """A filter has an unknown operator, a value of the wrong type, or is too deep."""

    reason = "INVALID_FILTER"


class NotFound(MmeshError):
    """What the request names does not exist."""

    code, reason = Code.NOT_FOUND, "NOT_FOUND"


class CollectionNotFound(NotFound):
    """There is no collection of this name."""

    reason = "COLLECTION_NOT_FOUND"

    def __init__(self, name: str) -> None:
        shown = name[:80]  # what comes back travels in headers, which are small
        message = f"no collection is named {shown!r}"
        super().__init__(message, {"collection": shown})


class CandidateNotFound(NotFound):
    """The collection has no candidate with this id."""

    reason = "CANDIDATE_NOT_FOUND"


class AliasNotFound(NotFound):
    """There is no alias of this name."""

    reason = "ALIAS_NOT_FOUND"


class CollectionExists(MmeshError):
    """A collection of this name exists with other settings."""

    code, reason = Code.ALREADY_EXISTS, "COLLECTION_EXISTS"


class FailedPrecondition(MmeshError):
    """The request does not fit the state it meets."""

    code, reason = Code.FAILED_PRECONDITION, "FAILED_PRECONDITION"


class DimMismatch(FailedPrecondition):
    """Vectors have another width than the collection."""

    reason = "DIM_MISMATCH"


class ModelMismatch(FailedPrecondition):
    """Vectors come from another model than the collection's."""

    reason = "MODEL_MISMATCH"


class RequestIdReused(FailedPrecondition):
    """The request id was that of a request which asked for something else; use a new one."""

    reason = "REQUEST_ID_REUSED"


class CollectionReadOnly(FailedPrecondition):
    """The collection takes no writes; clear its setting `read_only`, or write elsewhere."""

    reason = "COLLECTION_READ_ONLY"

    def __init__(self, name: str) -> None:
        shown = name[:80]
        super().__init__(
            f"collection {shown!r} is read-only; clear that setting to write to it",
            {"collection": shown},
        )


class HistoryLost(FailedPrecondition):
    """The token, or the state of a process, is of writes that the log has lost; begin without it.

    So it is after the log was restored to an earlier moment.
    """

    reason = "HISTORY_LOST"

    def __init__(self, name: str) -> None:
        shown = name[:80]
        super().__init__(
            f"the log of collection {shown!r} does not have the write that the token names: it was "
            "restored to an earlier state. Search without the token, and repeat what was written "
            "after that state",
            {"collection": shown},
        )


class ResourceExhausted(MmeshError):
    """A limit of the service is reached."""

    code, reason = Code.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"


class Overloaded(ResourceExhausted):
    """The queue is full; retry after the pause."""

    reason, retry_after_s = "QUEUE_FULL", 0.5


class MessageTooLarge(ResourceExhausted):
    """A message is over the limit; send smaller batches or pictures, or ask for less at a time."""

    reason = "MESSAGE_TOO_LARGE"


class StorageFull(ResourceExhausted):
    """The disk is full; nothing of the request was written."""

    reason, retry_after_s = "STORAGE_FULL", 30.0


class CollectionFull(ResourceExhausted):
    """The collection would hold more candidates than its limit; nothing was written."""

    reason = "COLLECTION_FULL"


class MemoryFull(ResourceExhausted):
    """The shard did not load the collection, which would not fit into its memory."""

    reason = "MEMORY_FULL"


class Unavailable(MmeshError):
    """A service cannot be reached or cannot work now; retry after the pause."""

    code, reason, retry_after_s = Code.UNAVAILABLE, "UNAVAILABLE", 0.5


class Draining(Unavailable):
    """The server is shutting down; another one, or the next one, will answer."""

    reason = "DRAINING"


class ShardUnavailable(Unavailable):
    """A shard did not answer and the caller asked for all of them."""

    reason = "SHARD_UNAVAILABLE"


class LogUnavailable(Unavailable):
    """The log cannot be written now; nothing was acknowledged."""

    reason, retry_after_s = "LOG_UNAVAILABLE", 1.0


class StaleReplica(Unavailable):
    """The replica has not yet applied the write that the token names."""

    reason, retry_after_s = "STALE_REPLICA", 0.2


class DeadlineExceeded(MmeshError):
    """The deadline passed before the work was done."""

    code, reason = Code.DEADLINE_EXCEEDED, "DEADLINE"


class Cancelled(MmeshError):
    """The caller went away."""

    code, reason = Code.CANCELLED, "CANCELLED"


class Unimplemented(MmeshError):
    """The server does not know this method, or this model does not offer it."""

    code, reason = Code.UNIMPLEMENTED, "UNIMPLEMENTED"


class DataLoss(MmeshError):
    """Stored data fails its checksum."""

    code, reason = Code.DATA_LOSS, "CORRUPT_DATA"


class InternalError(MmeshError):
    """A defect of mmesh; the server's log has the details under the request id."""


def all_errors() -> list[type[MmeshError]]:
    """Return every class of the tree, root first; not those that services add for themselves."""

    def walk(cls: type[MmeshError]) -> list[type[MmeshError]]:
        own = [sub for sub in cls.__subclasses__() if sub.__module__ == __name__]
        return [cls, *(leaf for sub in own for leaf in walk(sub))]

    return walk(MmeshError)


@lru_cache(256)  # an ingest may be told of very many refusals
def error_class(code: int, reason: str) -> type[MmeshError]:
    """Return the class for a wire status: by reason, else the first with that code.

    A code of no class is one that only others answer with, and has the root.
    """
    known = all_errors()[1:]  # the root has no row of its own
    by_reason = [cls for cls in known if cls.reason == reason and cls.code == code]
    by_code = [cls for cls in known if cls.code == code]
    unknown = MmeshError if code in set(Code) else InternalError
    return (by_reason or by_code or [unknown])[0]
