"""The composition root: it closes what it started, whatever fails, and tells how all parts are."""

from __future__ import annotations

import pytest

from mmesh.errors import Unavailable
from mmesh.mesh_status import ServiceRole, ServiceState
from mmesh.serving.deadline import Deadline
from services.gateway.config import GatewaySettings
from services.gateway.mesh import Mesh


class Failing(Exception):
    pass


@pytest.fixture
def mesh(encoder, index, reranker):
    return Mesh(encoder, index, reranker, GatewaySettings())


async def test_all_parts_are_started_and_closed_once(mesh, encoder, index, reranker):
    async with mesh:
        assert (encoder.calls["start"], index.calls["start"]) == (1, 1)
        assert encoder.calls["close"] == 0
    assert [part.calls["close"] for part in (encoder, index, reranker)] == [1, 1, 1]


async def test_a_part_that_fails_to_close_keeps_no_other_open(mesh, encoder, index, reranker):
    encoder.faults["close"] = Failing("as told")
    with pytest.raises(Failing):
        async with mesh:
            pass
    assert [part.calls["close"] for part in (encoder, index, reranker)] == [1, 1, 1]


async def test_a_part_that_fails_to_start_leaves_nothing_open(mesh, encoder, index, reranker):
    index.faults["start"] = Failing("as told")
    with pytest.raises(Failing):
        await mesh.__aenter__()
    assert [part.calls["close"] for part in (encoder, index, reranker)] == [1, 1, 1]


async def test_the_state_of_every_part_is_told(mesh, encoder, index):
    async with mesh:
        found = await mesh.status(Deadline.after(1))
    assert [one.role for one in found] == [*ServiceRole]


async def test_a_mesh_without_a_reranker_tells_of_none(encoder, index):
    async with Mesh(encoder, index, None, GatewaySettings()) as mesh:
        found = await mesh.status(Deadline.after(1))
    assert [one.role for one in found] == [ServiceRole.ENCODER, ServiceRole.INDEX]


async def test_a_reranker_that_does_not_answer_is_told_as_not_serving():
    settings = GatewaySettings(
        encoder=["127.0.0.1:1"], index=["127.0.0.1:1"], reranker="127.0.0.1:1"
    )
    async with Mesh.of(settings) as mesh:
        found = await mesh.status(Deadline.after(1))
        with pytest.raises(Unavailable):
            await mesh.index.get_collection("photos", Deadline.after(0.5))
    assert [(one.role, one.address) for one in found] == [
        (role, "127.0.0.1:1") for role in ServiceRole
    ]
    assert {one.state for one in found} == {ServiceState.UNREACHABLE}
