"""Candidates and pages of them to protobuf and back (AIP-158)."""

from __future__ import annotations

from typing import Any

from mmesh.api.candidate.v1 import candidate_pb2
from mmesh.candidates import Candidate, Page
from mmesh.errors import InvalidField
from mmesh.wire.attributes import attributes_from_pb, attributes_to_pb
from mmesh.wire.content import content_from_pb, content_to_pb
from mmesh.wire.errors import problem_from_pb, problem_to_pb
from mmesh.wire.vectors import vectors_from_pb


def candidate_to_pb(candidate: Candidate) -> candidate_pb2.Candidate:
    """Return the message of `candidate`."""
    message = candidate_pb2.Candidate(id=candidate.id, content=content_to_pb(candidate.content))
    attributes_to_pb(candidate.attributes, message.attributes)
    if candidate.problem is not None:
        message.problem.CopyFrom(problem_to_pb(candidate.problem))
    return message


def value_count(candidate: Candidate) -> int:
    """Return for how many of the values that a request may have (`MAX_VALUES`) it counts."""
    lists = (len(v) for v in candidate.attributes.values() if isinstance(v, tuple))
    return 3 + len(candidate.content.parts) + 4 * len(candidate.attributes) + sum(lists)


def candidate_from_pb(message: candidate_pb2.Candidate, path: str = "candidate") -> Candidate:
    """Return the candidate of `message`; limits are checked by `check_candidate`."""
    return Candidate(
        message.id,
        content_from_pb(message.content, f"{path}.content"),
        attributes_from_pb(message.attributes, f"{path}.attributes"),
        problem_from_pb(message.problem) if message.HasField("problem") else None,
    )


def page_from_pb(message: Any) -> Page:
    """Return the page of a ListCandidatesResponse, of the public API or of the index's."""
    return Page(
        tuple(candidate_from_pb(candidate) for candidate in message.candidates),
        message.next_page_token,
        vectors_from_pb(message.vectors) if message.HasField("vectors") else None,
        message.model_fingerprint,
    )


MAX_PAGE = 1000


def page_size_of(requested: int) -> int:
    """Return the size of a page: 100 for 0, at most 1000 (AIP-158)."""
    if requested < 0:
        raise InvalidField("page_size", f"is {requested}; 0 to {MAX_PAGE} are allowed")
    return min(requested or 100, MAX_PAGE)
