"""A collection that would not fit is refused before it is loaded; the rest of the shard serves."""

import grpc
import pytest

from mmesh.search import Consistency
from services.index.view.memory import load_bytes

DIM = 1024
ROWS = 10_000
MIB = 1 << 20


def test_a_collection_that_would_not_fit_is_refused_and_the_others_are_served(
    index_processes, tmp_path, new_row, refusal
):
    process = index_processes.start(tmp_path / "data", fork=True, seal_rows=4096)
    process.wait_ready()
    row = new_row(1, DIM)
    process.create("small", DIM)
    token = process.upsert("small", {"one": row})
    used = next(part.bytes for part in process.shard().memory if part.name == "process")
    process.create("large", DIM)
    for start in range(0, ROWS, 500):
        process.upsert("large", {f"id-{n}": row for n in range(start, start + 500)})
    process.end()

    process.start(memory_limit_bytes=used + load_bytes(ROWS, DIM) // 2)
    process.wait_ready()
    state = process.shard()
    assert list(state.refused_collections) == ["large"]
    assert {segment.collection for segment in state.segments} == {"small"}
    assert "collection refused" in process.said()

    refused = refusal(lambda: process.search("large", row.vector[None]))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MEMORY_FULL")
    assert "Add shards" in refused.message
    (text, *_) = process.search("small", row.vector[None], token=token)
    assert text.ids == ["one"]
    written = process.upsert("large", {"more": row})  # the log has room
    assert written.endswith(f":{ROWS + 1}")

    process.end()
    process.start(memory_limit_bytes=0)
    process.wait_ready()
    assert not process.shard().refused_collections
    (text, *_) = process.search("large", row.vector[None], consistency=Consistency.STRONG)
    assert len(text.ids) == 10


@pytest.mark.parametrize("limit", [1, 64 * MIB])
def test_a_limit_below_what_the_process_needs_refuses_everything_but_starts(
    index_processes, tmp_path, new_row, limit
):
    process = index_processes.start(tmp_path / "data", fork=True)
    process.wait_ready()
    process.create("c", DIM)
    process.upsert("c", {"one": new_row(1, DIM)})
    process.end()
    process.start(memory_limit_bytes=limit)
    process.wait_ready()
    assert list(process.shard().refused_collections) == ["c"]
    assert [candidate.id for candidate in process.listed("c")] == ["one"]
