"""Calls that are repeated at another index process, as gateways do; on both engines."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from mmesh import wire
from mmesh.api.index.v1 import (
    collection_service_pb2,
    collection_service_pb2_grpc,
    index_pb2,
    index_pb2_grpc,
)
from mmesh.candidates import Candidate
from mmesh.content import Content
from mmesh.errors import RequestIdReused
from mmesh.filters import AllOf
from mmesh.serving import handlers
from mmesh.wire.errors import error_of
from mmesh.wire.transport import open_channel
from services.index.config import IndexSettings
from services.index.engine import IndexEngine
from services.index.servicer import CollectionServicer, IndexServicer

IDS = [f"id-{n}" for n in range(5)]


@asynccontextmanager
async def index_process(settings):
    """Serve an engine on a port of its own; yield stubs."""
    engine, server = IndexEngine(settings), grpc.aio.server()
    guarded = handlers.Guarded(server)
    collection_service_pb2_grpc.add_CollectionServiceServicer_to_server(
        CollectionServicer(engine), guarded
    )
    index_pb2_grpc.add_IndexServiceServicer_to_server(
        IndexServicer(engine, settings, asyncio.Event()), guarded
    )
    port = server.add_insecure_port("127.0.0.1:0")
    async with engine:
        await server.start()
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield SimpleNamespace(
                collections=collection_service_pb2_grpc.CollectionServiceStub(channel),
                index=index_pb2_grpc.IndexServiceStub(channel),
            )
        await server.stop(None)


@pytest.fixture
async def both(log_url, tmp_path):
    """Two processes of one deployment, with the collection "c" of five candidates."""
    settings = IndexSettings(log_url=log_url, data_dir=tmp_path, scratch_dir=tmp_path / "scratch")
    async with AsyncExitStack() as stack:
        both = [await stack.enter_async_context(index_process(settings)) for _ in range(2)]
        made = collection_service_pb2.CreateCollectionRequest(
            name="c", dim=2, model_fingerprint="m"
        )
        await both[0].collections.CreateCollection(made)
        await both[0].index.UpsertCandidates(
            index_pb2.UpsertCandidatesRequest(
                collection="c",
                model_fingerprint="m",
                vectors=wire.vectors_to_pb(np.ones((5, 2))),
                candidates=[wire.candidate_to_pb(Candidate(i, Content.of(i))) for i in IDS],
            )
        )
        yield both


async def answers(both, service, method, request):
    """Return what each process answers to the same request, the first one first."""
    return [await getattr(getattr(one, service), method)(request, timeout=20) for one in both]


async def test_every_call_that_changes_something_gets_its_first_answer_again(both):
    pb = collection_service_pb2
    calls = [
        ("CreateCollection", pb.CreateCollectionRequest(name="d", dim=2, model_fingerprint="m")),
        ("UpdateCollection", pb.UpdateCollectionRequest(name="d", settings={"recall_target": 0.9})),
        ("SetAlias", pb.SetAliasRequest(alias="alias", collection="d")),
        ("DeleteAlias", pb.DeleteAliasRequest(alias="alias")),
        ("CopyCollection", pb.CopyCollectionRequest(source="c", name="copy")),
        ("DeleteCollection", pb.DeleteCollectionRequest(name="c")),
    ]
    assert {name for name, _ in calls} == {
        method.name
        for method in pb.DESCRIPTOR.services_by_name["CollectionService"].methods
        if "request_id" in method.input_type.fields_by_name
    }
    for method, request in calls:
        request.request_id = f"once-{method}"
        first, second = await answers(both, "collections", method, request)
        assert first == second
    assert first.deleted_candidates == 5


async def test_a_deletion_by_filter_that_is_repeated_answers_how_many_it_deleted(both):
    request = index_pb2.DeleteCandidatesByFilterRequest(
        collection="c", filter=wire.filter_to_pb(AllOf(())), request_id="once"
    )
    first, second = await answers(both, "index", "DeleteCandidatesByFilter", request)
    assert first == second
    assert first.deleted == 5


async def test_a_request_id_with_other_content_is_refused_by_name(both):
    request = index_pb2.DeleteCandidatesRequest(collection="c", ids=IDS[:1], request_id="once")
    await both[0].index.DeleteCandidates(request)
    request.ids.append(IDS[1])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await both[1].index.DeleteCandidates(request)
    error = error_of(refused.value)
    assert isinstance(error, RequestIdReused)
    assert error.metadata == {"request_id": "once"}


async def test_snapshots_go_with_their_collection(both, tmp_path, eventually):
    snapshot = index_pb2.CreateSnapshotRequest(collection="c")
    await both[0].index.CreateSnapshot(snapshot, timeout=20)
    assert [*tmp_path.glob("snapshots/*/*/*.json")]
    await both[1].collections.DeleteCollection(
        collection_service_pb2.DeleteCollectionRequest(name="c"), timeout=20
    )
    await asyncio.to_thread(
        eventually, lambda: not [*tmp_path.glob("snapshots/*/*/*.json")], "they are removed"
    )
