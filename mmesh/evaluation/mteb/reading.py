"""A corpus as candidates, and queries as what is asked; what cannot be sent is counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mteb.types import PromptType

from mmesh.candidates import Candidate
from mmesh.content import Content, check_content
from mmesh.errors import InvalidField, MmeshError
from mmesh.evaluation.datasets.dataset import Query
from mmesh.evaluation.mteb import rows
from mmesh.evaluation.rejections import NO_PICTURE, Rejections
from mmesh.values.ids import check_id

ID, NOTHING_TO_RANK = "id", "NOTHING_TO_RANK"
"""Attribute with the id of a candidate, by which tasks of reranking name what they rank, and the
reason why a query of such a task that names nothing is not asked."""
Asked = tuple[Query, Content]


def read_corpus(
    corpus: Any, task: Any, names: dict[str, str], refused: Rejections
) -> Iterator[Candidate]:
    """Yield the documents; note in `names` those whose id cannot be a candidate's."""
    modalities = rows.modalities_of(task, PromptType.document)
    for row in rows.with_files(corpus):
        text = rows.document_text(row) if "text" in modalities else ""
        picture = row.get("image") if "image" in modalities else None
        try:
            content = rows.content_of(text, picture)
        except OSError as error:
            refused.add(row["id"], NO_PICTURE, str(error))
            continue
        name = candidate_id(row["id"])
        if name != row["id"]:
            names[name] = row["id"]
        yield Candidate(name, content, {ID: name})


def read_queries(
    queries: Any, task: Any, top_ranked: Mapping[str, Sequence[str]] | None, refused: Rejections
) -> Iterator[Asked]:
    """Yield the queries that can be asked, each with what it is searched among."""
    instruction = rows.instruction_of(task, PromptType.query)
    for row in rows.with_files(queries):
        name = row["id"]
        among = () if top_ranked is None else tuple(top_ranked.get(name, ()))
        if top_ranked is not None and not among:
            refused.add(name, NOTHING_TO_RANK, "no document is given to rank")
            continue
        try:
            content = _query_content(row, rows.modalities_of(task, PromptType.query))
        except OSError as error:
            refused.add(name, NO_PICTURE, str(error))
        except MmeshError as error:
            refused.add(name, error.reason, error.message)
        else:
            named = tuple(map(candidate_id, among))
            yield Query(name, "", None, name, instruction, among=named), content


def _query_content(row: rows.Row, modalities: frozenset[str]) -> Content:
    text = rows.query_text(row) if "text" in modalities else ""
    content = rows.content_of(text, row.get("image") if "image" in modalities else None)
    check_content(content, "query")
    return content


def candidate_id(document: str) -> str:
    """Return the id of a document, or a digest of it where the mesh would not take it."""
    try:
        check_id(document, "id")
    except InvalidField:
        return f"sha256-{hashlib.sha256(document.encode(errors='replace')).hexdigest()}"
    return document
