"""Batches of a query file: by number and bytes, and what is too large for a message in parts."""

from __future__ import annotations

import json

from mmesh import Search
from mmesh.cli.calls import query_file
from mmesh.content import Content
from mmesh.errors import InvalidField, MessageTooLarge

TEMPLATE = Search("c", Content(()))


class Mesh:
    """A client of a mesh whose messages are small; it answers each search with an error."""

    def __init__(self, most_bytes):
        self.most_bytes = most_bytes
        self.sizes = []

    async def search_batch(self, searches, *, timeout):
        self.sizes.append([search.query.size for search in searches])
        if sum(self.sizes[-1]) > self.most_bytes:
            raise MessageTooLarge("larger than max")
        return [InvalidField(search.query.text[:2], "was asked") for search in searches]


async def answers_to(mesh, path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = [row async for row in query_file._answers(mesh, path, TEMPLATE, 1.0)]
    return [(row["error"]["reason"], row["error"]["message"][:2]) for row in rows]


async def test_a_batch_has_no_more_bytes_than_are_to_be_held(tmp_path, monkeypatch):
    monkeypatch.setattr(query_file, "BATCH_BYTES", 1000)
    texts = [f"{n:02}".ljust(size, ".") for n, size in enumerate([400, 400, 400, 1500, 10, 10])]
    mesh = Mesh(10_000)
    found = await answers_to(mesh, tmp_path / "q.jsonl", texts)
    assert found == [("INVALID_FIELD", f"{n:02}") for n in range(6)]
    assert sorted(mesh.sizes) == [[10, 10], [400], [400, 400], [1500]]


async def test_a_batch_that_is_too_large_for_a_message_is_asked_in_parts(tmp_path):
    texts = [f"{n:02}".ljust(50, ".") for n in range(9)] + ["09".ljust(500, ".")]
    mesh = Mesh(100)
    found = await answers_to(mesh, tmp_path / "q.jsonl", texts)
    assert found[:9] == [("INVALID_FIELD", f"{n:02}") for n in range(9)]
    assert found[9][0] == "MESSAGE_TOO_LARGE"
