"""Calls to one encoder over gRPC: what is sent, what an answer means, and what a failure costs."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from mmesh import wire
from mmesh.api.encoder.v1 import encoder_pb2 as pb
from mmesh.api.encoder.v1 import encoder_pb2_grpc as rpc
from mmesh.content import Content, Modality, Role
from mmesh.errors import DeadlineExceeded, InvalidImage, ModelMismatch, Unavailable
from mmesh.serving import logs
from mmesh.serving.deadline import Deadline
from services.gateway.encoders.encoder_backend import LEAST_S, EncoderBackend

TEXT, IMAGE, PAIR = Modality
MODEL = pb.GetModelResponse(
    name="lite",
    fingerprint="m-1",
    dim=2,
    modalities=[wire.modality_to_pb(TEXT), wire.modality_to_pb(PAIR), 0],
    calibration=[
        pb.CalibrationSet(
            query_modality=wire.modality_to_pb(TEXT),
            vectors=wire.vectors_to_pb(np.eye(2, dtype=np.float32)),
        ),
        pb.CalibrationSet(
            query_modality=wire.modality_to_pb(IMAGE),
            vectors=wire.vectors_to_pb(np.eye(2, dtype=np.float32)),
            candidates=wire.vectors_to_pb(np.zeros((2, 2), np.float32)),
        ),
        pb.CalibrationSet(
            query_modality=0, vectors=wire.vectors_to_pb(np.ones((1, 2), np.float32))
        ),
    ],
)


class Encoder(rpc.EncoderServiceServicer):
    """Answers what it is told to, or with a status."""

    def __init__(self):
        rows = wire.vectors_to_pb(np.ones((1, 2), np.float32))
        self.answer = pb.EncodeResponse(model_fingerprint="m-1", vectors=rows)
        self.status: grpc.StatusCode | None = None
        self.requests, self.ids = [], []

    async def GetModel(self, request, context):
        return MODEL

    async def Encode(self, request, context):
        self.requests.append(request)
        self.ids.append(dict(context.invocation_metadata())["mmesh-request-id"])
        if self.status is not None:
            await context.abort(self.status, "as told")
        return self.answer


@pytest.fixture
async def encoder():
    return Encoder()


@pytest.fixture
async def backend(encoder):
    server = grpc.aio.server()
    rpc.add_EncoderServiceServicer_to_server(encoder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    backend = EncoderBackend(f"127.0.0.1:{port}")
    yield backend
    await backend.close()
    await server.stop(None)


async def encode(backend, *contents, role=Role.QUERY, seconds=10.0):
    inputs = [(content, "an instruction") for content in contents or (Content.of("a text"),)]
    return await backend.encode("m-1", inputs, role, Deadline.after(seconds))


async def test_what_a_model_does_not_say_is_left_out(backend):
    model = await backend.ask_model(Deadline.after(10))
    assert (model.name, model.fingerprint, model.dim) == ("lite", "m-1", 2)
    assert model.modalities == {TEXT, PAIR}
    assert list(model.reference) == [TEXT, IMAGE]
    np.testing.assert_array_equal(model.reference[TEXT].queries, np.eye(2))
    np.testing.assert_array_equal(model.reference[TEXT].candidates, np.eye(2))  # read alike
    np.testing.assert_array_equal(model.reference[IMAGE].candidates, np.zeros((2, 2)))
    assert backend.model == model


@pytest.mark.parametrize(
    ("role", "wanted", "priority"),
    [
        (Role.QUERY, pb.ROLE_QUERY, pb.PRIORITY_INTERACTIVE),
        (Role.CANDIDATE, pb.ROLE_CANDIDATE, pb.PRIORITY_BULK),
    ],
)
async def test_queries_go_before_candidates(backend, encoder, role, wanted, priority):
    logs.request_id.set("r-1")
    await encode(backend, Content.of("a text", b"a picture"), role=role)
    (request,) = encoder.requests
    assert (request.role, request.priority) == (wanted, priority)
    assert request.on_problem == pb.ON_PROBLEM_SKIP
    assert request.inputs[0].instruction == "an instruction"
    assert wire.content_from_pb(request.inputs[0].content, "") == Content.of("a text", b"a picture")
    assert encoder.ids == ["r-1"]


async def test_an_answer_tells_rows_problems_cuts_and_times(backend, encoder):
    problem = InvalidImage("content.parts[0].image.data", "is broken")
    encoder.answer = pb.EncodeResponse(
        vectors=wire.vectors_to_pb(np.eye(2, dtype=np.float32)),
        model_fingerprint="m-1",
        problems=[pb.InputProblem(input=1, problem=wire.problem_to_pb(problem))],
        truncated=[0],
        timing=pb.EncodeTiming(
            prepare_seconds=0.25, queue_seconds=0.5, forward_seconds=1.0, batch_size=7
        ),
    )
    found = await encode(backend, Content.of("a text"), Content.of(b"no picture"))
    np.testing.assert_array_equal(found.vectors, np.eye(2))
    assert (found.truncated, found.batch_size, found.service_s) == ({0}, 7, 1.75)
    ((number, error),) = found.problems.items()
    assert (number, type(error), error.field) == (1, InvalidImage, problem.field)


async def test_an_encoder_that_has_another_model_by_now_is_not_believed(backend, encoder):
    await backend.ask_model(Deadline.after(10))
    encoder.answer.model_fingerprint = "m-2"
    with pytest.raises(ModelMismatch, match="'m-2'"):
        await encode(backend)
    assert backend.model is None
    assert backend.is_trusted


@pytest.mark.parametrize(
    ("status", "seconds", "error", "is_trusted"),
    [
        (grpc.StatusCode.UNAVAILABLE, 10.0, Unavailable, False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 10.0, DeadlineExceeded, False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, LEAST_S / 2, DeadlineExceeded, True),
        (grpc.StatusCode.INVALID_ARGUMENT, 10.0, Exception, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 10.0, Exception, True),
    ],
)
async def test_a_failure_of_its_own_costs_an_encoder_its_trust(
    backend, encoder, status, seconds, error, is_trusted
):
    encoder.status = status
    with pytest.raises(error):
        await encode(backend, seconds=seconds)
    assert backend.is_trusted is is_trusted


async def test_an_encoder_that_is_not_there_is_unavailable():
    backend = EncoderBackend("127.0.0.1:1")
    with pytest.raises(Unavailable, match="the encoder does not answer"):
        await backend.ask_model(Deadline.after(10))
    await backend.close()
