"""Calls of the SDK that change something carry a request id, so that they may be repeated."""

import re
from contextlib import asynccontextmanager

import grpc
import pytest

from mmesh import AsyncClient, Candidate, Content
from mmesh.api.encoder.v1 import encoder_pb2
from mmesh.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from mmesh.api.index.v1 import collection_service_pb2, index_pb2
from mmesh.api.reranker.v1 import reranker_pb2
from mmesh.filters import AllOf
from mmesh.wire.transport import REPEATABLE, UNREPEATED

CHANGES = {
    "UpsertCandidates": lambda c, **o: c.upsert_candidates(
        "c", [Candidate("a", Content.of("a"))], **o
    ),
    "DeleteCandidates": lambda c, **o: c.delete_candidates("c", ["a"], **o),
    "DeleteCandidatesByFilter": lambda c, **o: c.delete_candidates_by_filter("c", AllOf(()), **o),
    "CreateCollection": lambda c, **o: c.create_collection("c", **o),
    "UpdateCollection": lambda c, **o: c.update_collection("c", max_limit=5, **o),
    "CopyCollection": lambda c, **o: c.copy_collection("c", "copy", **o),
    "DeleteCollection": lambda c, **o: c.delete_collection("c", **o),
    "SetAlias": lambda c, **o: c.set_alias("alias", "c", **o),
    "DeleteAlias": lambda c, **o: c.delete_alias("alias", **o),
}


class Forgetful(gateway_pb2_grpc.RetrievalServiceServicer):
    """Loses its first answer: does as a server that dies after the commit."""

    def __init__(self):
        self.seen = []
        for method in CHANGES:
            setattr(self, method, self._answer(getattr(gateway_pb2, f"{method}Response")))

    def _answer(self, response):
        async def answer(request, context):
            self.seen.append(request)
            if len(self.seen) == 1:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            return response()

        return answer


@asynccontextmanager
async def served(servicer):
    server = grpc.aio.server()
    gateway_pb2_grpc.add_RetrievalServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        yield client
    await server.stop(None)


@pytest.mark.parametrize("method", CHANGES)
async def test_a_call_whose_answer_is_lost_is_repeated_under_the_same_request_id(method):
    servicer = Forgetful()
    async with served(servicer) as client:
        await CHANGES[method](client)
        await CHANGES[method](client)
        await CHANGES[method](client, request_id="given")
    ids = [request.request_id for request in servicer.seen]
    assert ids[0] == ids[1] != ids[2]
    assert re.fullmatch("[0-9a-f]{32}", ids[0])
    assert ids[3:] == ["given"]
    assert servicer.seen[0] == servicer.seen[1]


def test_every_call_that_a_channel_repeats_reads_only_or_has_a_request_id():
    files = (encoder_pb2, gateway_pb2, index_pb2, collection_service_pb2, reranker_pb2)
    services = [s for file in files for s in file.DESCRIPTOR.services_by_name.values()]
    assert {service.full_name for service in services} == {one["service"] for one in REPEATABLE}
    unrepeated = {(one["service"], one["method"]) for one in UNREPEATED}
    repeated = {
        method.name: "request_id" in method.input_type.fields_by_name
        for service in services
        for method in service.methods
        if (service.full_name, method.name) not in unrepeated
    }
    assert {name for name, has_id in repeated.items() if has_id} == {*CHANGES}
    assert {name for name, has_id in repeated.items() if not has_id} == {
        "BatchGetCandidates", "Compact", "Encode", "GetCollection", "GetModel", "GetStatus",
        "ListCandidates", "ListCollections", "Rerank", "Search", "SearchBatch",
    }  # fmt: skip
