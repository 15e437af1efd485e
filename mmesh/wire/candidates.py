"""Candidates and pages of them to protobuf and back (AIP-158)."""

from __future__ import annotations

from typing import Any

from mmesh.api.candidate.v1 import candidate_pb2
from mmesh.candidates import Candidate, Page
from mmesh.errors import InvalidField
from mmesh.wire.content import content_from_pb, content_to_pb
from mmesh.wire.filters import attributes_from_pb, attributes_to_pb
from mmesh.wire.vectors import vectors_from_pb


def candidate_to_pb(candidate: Candidate) -> candidate_pb2.Candidate:
    """Return the message of `candidate`."""
    message = candidate_pb2.Candidate(id=candidate.id, content=content_to_pb(candidate.content))
    attributes_to_pb(candidate.attributes, message.attributes)
    return message


def candidate_from_pb(message: candidate_pb2.Candidate, path: str = "candidate") -> Candidate:
    """Return the candidate of `message`; limits are checked by `check_candidate`."""
    return Candidate(
        message.id,
        content_from_pb(message.content, f"{path}.content"),
        attributes_from_pb(message.attributes, f"{path}.attributes"),
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
