"""What segments leave on the disk: nothing, once nobody needs them."""

from mmesh.api.index.v1 import collection_service_pb2

DIM = 16


def test_the_segments_of_a_deleted_collection_leave_the_disk(
    index_processes, tmp_path, new_row, eventually
):
    scratch = tmp_path / "scratch"
    process = index_processes.start(tmp_path / "data", fork=True, scratch_dir=scratch)
    process.wait_ready()
    process.create("c", DIM)
    for batch in range(4):
        process.upsert("c", {f"{batch}-{n}": new_row((batch, n), DIM) for n in range(100)})

    def folders():
        return [*scratch.glob("*/segment-*")]

    eventually(lambda: folders(), "segments are built")
    process.collections.DeleteCollection(
        collection_service_pb2.DeleteCollectionRequest(name="c"), timeout=10
    )
    eventually(lambda: not folders(), "their folders are removed")
