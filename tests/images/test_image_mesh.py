"""A whole mesh of images answers the demo's searches as a mesh from the source tree does."""

from __future__ import annotations

import pytest

from examples.demo.contents import COLLECTION, demo_candidates, searches
from examples.demo.pictures import fetch_pictures
from mmesh import Client


@pytest.fixture(scope="module")
def demo_pictures():
    try:
        return fetch_pictures()
    except SystemExit as problem:
        pytest.skip(f"the demo's pictures are absent: {problem}")


def answers(address, pictures):
    """Ingest the demo's collection and return the results of its searches."""
    with Client(address) as client:
        client.create_collection(COLLECTION)
        report = client.ingest(COLLECTION, demo_candidates(pictures))
        assert not report.rejected
        asked = [search for _, search in searches(pictures)]
        return [client.search_batch([one], timeout=60)[0] for one in asked]


def test_images_answer_the_demo_as_the_source_tree_does(
    image_mesh, start_mesh, tmp_path, demo_pictures
):
    source = start_mesh(tmp_path / "mesh", shards=1)
    expected, found = (answers(one, demo_pictures) for one in (source.address, image_mesh))
    targets = [row["target"] for row, _ in searches(demo_pictures)]
    assert len(found) == 8
    for target, wanted, result in zip(targets, expected, found, strict=True):
        assert result.hits[0].id == target
        assert [hit.id for hit in result.hits] == [hit.id for hit in wanted.hits]
        assert [hit.score for hit in result.hits] == pytest.approx(
            [hit.score for hit in wanted.hits], abs=1e-5
        )
        assert result.coverage == wanted.coverage
        assert [one.reason for one in result.degradations] == [
            one.reason for one in wanted.degradations
        ]
