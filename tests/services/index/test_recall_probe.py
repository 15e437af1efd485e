"""Recall probes tell what searches miss, as of the rows that these saw."""

import json
import shutil

import faiss
import numpy as np
import pytest

from mmesh.content import Modality
from services.index.build.worker import build
from services.index.segments import exact, files
from services.index.view.searcher import PendingSearch
from tests.services.index.probing import (
    ASKED,
    EVEN,
    IDS,
    ROWS,
    TEXT,
    VECTORS,
    points,
    view_of,
    write,
)  # fmt: skip

FACTORY = "IVF64,PQ8x4fs,Refine(SQfp16)"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    exact.single_threaded()  # others wait for each other by spinning, which a busy machine feels


@pytest.fixture(scope="module")
def approximate(flat, tmp_path_factory):
    """The folder of a segment with the same rows that finds most of what is near."""
    output = tmp_path_factory.mktemp("approximate") / "segment"
    order = {"inputs": [{"folder": str(flat)}], "index_factory": FACTORY, "recall_target": 0.8}
    build({**order, "output": str(output)})
    return output


def nearest(limit, rows=slice(None)):
    """Return the ids that a matrix product finds, by query."""
    ids, scores = np.array(IDS)[rows], ASKED @ VECTORS[rows].T
    return ids[np.argsort(-scores, axis=1)[:, :limit]]


def offline(found, wanted, k):
    shares = [len({*one.ids[:k]} & {*ids[:k]}) / k for one, ids in zip(found, wanted, strict=True)]
    return float(np.mean(shares))


async def test_it_tells_what_a_matrix_product_tells_offline(probed, approximate):
    view = view_of(approximate)
    found = await probed.search_all(view)
    wanted = nearest(100)
    for k in (1, 10, 100):
        assert probed.recall(k) == pytest.approx(offline(found, wanted, k), abs=0.02)
    assert 0.7 < probed.recall(100) < 1


async def test_and_what_the_build_told_of_rows_like_the_queries(probed, approximate):
    view = view_of(approximate)
    await probed.search_all(view, limit=10)
    [segment] = view.partitions[Modality.TEXT].segments
    assert probed.recall(10) == pytest.approx(segment.recall, abs=0.05)  # of another sample


def with_one_list_probed(folder):
    about = json.loads((folder / files.ABOUT).read_text())
    (folder / files.ABOUT).write_text(json.dumps(about | {"nprobe": 1}))


def with_codes_of_others(folder):
    """Let rows have the codes of other rows, and the vectors that they had."""
    index = faiss.read_index(str(folder / files.INDEX))
    base = faiss.downcast_index(index.base_index)
    base.reset()
    base.add(VECTORS[::-1].copy())
    faiss.write_index(index, str(folder / files.INDEX))


@pytest.mark.parametrize("spoil", [with_one_list_probed, with_codes_of_others])
async def test_it_falls_when_a_segment_is_bad_which_the_build_did_not_tell(
    probed, approximate, tmp_path, spoil
):
    folder = shutil.copytree(approximate, tmp_path / "segment")
    spoil(folder)
    view = view_of(folder)
    await probed.search_all(view, limit=10)
    [segment] = view.partitions[Modality.TEXT].segments
    assert probed.recall(10) < segment.recall - 0.2


async def test_filters_and_deletions_do_not_lower_it(probed, flat):
    view = view_of(flat)
    write(view, IDS[: ROWS // 2], VECTORS[: ROWS // 2] * 0, deleted=True)
    await probed.search_all(view, condition=EVEN)
    assert [probed.recall(k) for k in (1, 10, 100)] == [1.0, 1.0, 1.0]


async def test_of_filtered_searches_it_tells_what_they_miss(probed, approximate):
    found = await probed.search_all(view_of(approximate), condition=EVEN)
    wanted = nearest(100, slice(0, None, 2))
    assert probed.recall(10) == pytest.approx(offline(found, wanted, 10), abs=0.02)


async def test_what_changes_after_a_search_does_not_count(probed, flat):
    """Rows that die, come, and are replaced, in segment and delta alike."""
    view = view_of(flat)
    write(view, ["new", "newer"], points(2, seed=3))
    probed.room.is_there = False
    found = await probed.search(view, limit=100)
    write(view, [*found.ids[:5], "new", "best"], np.repeat(ASKED[:1], 7, axis=0))
    write(view, list(found.ids[5:10]), VECTORS[:5] * 0, deleted=True)
    again = await probed.search(view, limit=100)
    assert set(found.ids[5:10]).isdisjoint(again.ids)
    probed.room.is_there = True
    await probed.done(compared=2)
    assert [probed.recall(k) for k in (1, 10, 100)] == [1.0, 1.0, 1.0]


async def test_a_search_for_few_hits_tells_only_what_it_asked_for(probed, flat):
    await probed.search(view_of(flat), limit=9)
    await probed.done(compared=1)
    assert probed.recall(1) == 1.0
    assert probed._counts()[10].tolist() == probed._counted[10].tolist()


async def test_a_search_where_nothing_can_be_found_wants_nothing(probed):
    await probed.search(view_of(), limit=10)
    await probed.done(compared=1)
    assert probed._counts()[10].tolist() == probed._counted[10].tolist()


# -- changes beside a search


def replaced(view):
    write(view, IDS[:1], VECTORS[:1])


def appended(view):
    write(view, ["one more"], VECTORS[:1])


def sealed(view):
    view.partitions[Modality.TEXT].seal_delta()
    write(view, ["another"], VECTORS[:1])


def swapped(view):
    partition = view.partitions[Modality.TEXT]
    [segment] = partition.segments
    partition.replace([segment], [np.arange(0)], None)


@pytest.mark.parametrize("change", [replaced, appended, sealed, swapped])
async def test_a_search_beside_a_change_of_its_view_is_not_compared(probed, flat, change):
    view = view_of(flat)
    write(view, ["first"], VECTORS[:1])
    watch = probed.searcher.watcher(PendingSearch(view, ASKED[:1], TEXT, 10, None))
    watch.begin()
    change(view)
    watch.end(view.search(ASKED[:1], TEXT, 10, None))
    watch.close()
    await probed.done(changed=1)
