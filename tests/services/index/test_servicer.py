"""Answers of the index service: what the event loop has time for beside them."""

import asyncio

import numpy as np

from mmesh import wire
from mmesh.api.content.v1 import content_pb2
from mmesh.api.index.v1 import index_pb2
from mmesh.serving.settings import ServiceSettings
from mmesh.vectors import MAX_DIM
from services.gateway.config import GatewaySettings
from services.gateway.servicer import MAX_CANDIDATES
from services.index.config import IndexSettings
from services.index.servicer import MOST_HITS_AT_ONCE, IndexServicer
from services.index.view.searcher import Searched
from services.index.view.view import Found

HITS, QUERIES = 1000, 20


class Engine:
    """Finds very many hits at once."""

    async def search(self, order, deadline):
        ids = [f"id-{n}" for n in range(HITS)]
        found = Found(ids, np.zeros(HITS, np.float32), ['{"year": 1969}'] * HITS)
        return Searched([[found]] * len(order.queries), "token", 0.0, 0.0)


async def test_a_large_answer_leaves_the_loop_to_others_now_and_then():
    servicer = IndexServicer(Engine(), IndexSettings(), asyncio.Event())
    request = index_pb2.SearchRequest(
        collection="c",
        queries=wire.vectors_to_pb(np.ones((QUERIES, 2), np.float32)),
        modalities=[content_pb2.MODALITY_TEXT],
        limit=HITS,
    )
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    response = await servicer.Search(request, FakeContext())
    counting.cancel()
    assert [len(hits.ids) for hits in response.lists] == [HITS] * QUERIES
    assert turns >= QUERIES * HITS // MOST_HITS_AT_ONCE


class FakeContext:
    def time_remaining(self):
        return 10.0


def test_what_a_gateway_takes_fits_with_its_vectors():
    vectors = 2 * MAX_CANDIDATES * 4 * MAX_DIM
    assert IndexSettings().max_message_bytes >= GatewaySettings().max_message_bytes + vectors
    assert ServiceSettings.model_fields["max_message_bytes"].default == 64 << 20
