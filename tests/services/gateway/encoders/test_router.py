"""Several encoders behind one gateway: real servers, models that are easy to look into."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest

from mmesh import wire
from mmesh.api.encoder.v1 import encoder_pb2 as pb
from mmesh.api.encoder.v1 import encoder_pb2_grpc as rpc
from mmesh.content import Content, Modality, Role
from mmesh.errors import InvalidField, ModelMismatch, Unavailable
from mmesh.mesh_status import ServiceState
from mmesh.serving.deadline import Deadline
from services.gateway.encoders.router import Encoders

TEXT, IMAGE, PAIR = Modality
A_TEXT, A_PICTURE = Content.of("a text"), Content.of(b"a picture")
BOTH = Content.of("a text", b"a picture")


class FakeEncoder(rpc.EncoderServiceServicer):
    """An encoder whose vectors tell which one made them, and what it was asked for."""

    def __init__(self, mark=1.0, model="m", name="", modalities=tuple(Modality)):
        self.mark, self.model, self.modalities = mark, model, modalities
        self.name = name or model
        self.asked: list[Modality] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.server, self.address = None, ""

    async def GetModel(self, request, context):
        await self.gate.wait()
        kinds = [wire.modality_to_pb(modality) for modality in self.modalities]
        return pb.GetModelResponse(name=self.name, fingerprint=self.model, dim=2, modalities=kinds)

    async def Encode(self, request, context):
        await self.gate.wait()
        contents = [wire.content_from_pb(one.content, "content") for one in request.inputs]
        self.asked += [content.modality for content in contents]
        rows = np.full((len(contents), 2), self.mark, np.float32)
        problems = [
            pb.InputProblem(input=n, problem=wire.problem_to_pb(InvalidField("content", "is bad")))
            for n, content in enumerate(contents)
            if "bad" in content.text
        ]
        truncated = [n for n, content in enumerate(contents) if "long" in content.text]
        return pb.EncodeResponse(
            vectors=wire.vectors_to_pb(rows),
            model_fingerprint=self.model,
            problems=problems,
            truncated=truncated,
        )

    async def start(self):
        self.server = grpc.aio.server()
        rpc.add_EncoderServiceServicer_to_server(self, self.server)
        port = self.server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self.server.start()

    async def stop(self):
        await self.server.stop(0)


@asynccontextmanager
async def serving(*fakes):
    for fake in fakes:
        await fake.start()
    encoders = Encoders([fake.address for fake in fakes])
    try:
        await encoders.start()
        yield encoders
    finally:
        await encoders.close()
        for fake in fakes:
            await fake.stop()


def soon():
    return Deadline.after(10)


async def encode(encoders, *contents, model="m"):
    return await encoders.encode(model, [(one, "") for one in contents], Role.QUERY, soon())


async def until_it_is_there(encoders, model):
    while True:
        try:
            return await encode(encoders, A_TEXT, model=model)
        except Unavailable:
            await asyncio.sleep(0.05)


async def test_each_model_is_encoded_by_its_own_encoder():
    async with serving(FakeEncoder(1, "m"), FakeEncoder(2, "n")) as encoders:
        for model, mark in (("m", 1), ("n", 2)):
            found = await encode(encoders, A_TEXT, model=model)
            assert (found.fingerprint, found.vectors.tolist()) == (model, [[mark, mark]])
        assert (await encoders.model("n", soon())).dim == 2


async def test_texts_go_to_the_encoder_that_reads_texts_only():
    texts, all_kinds = FakeEncoder(1, modalities=(TEXT,)), FakeEncoder(2)
    async with serving(all_kinds, texts) as encoders:
        await encode(encoders, A_TEXT)  # by now both are known
        texts.asked.clear()
        found = await encode(encoders, A_PICTURE, A_TEXT, BOTH, Content.of("bad long"))
        assert found.vectors[:, 0].tolist() == [2, 1, 2, 1]
        assert (list(found.problems), found.truncated) == ([3], {3})
        assert all_kinds.asked[-2:] == [IMAGE, PAIR]


async def test_encoders_alike_take_turns_and_those_that_are_gone_are_skipped():
    fakes = [FakeEncoder(1), FakeEncoder(2), FakeEncoder(3)]
    async with serving(*fakes) as encoders:
        await encoders.status(soon())
        marks = [(await encode(encoders, A_TEXT)).vectors[0, 0] for _ in range(6)]
        assert sorted(marks) == [1, 1, 2, 2, 3, 3]
        await fakes[1].stop()
        marks = {float((await encode(encoders, A_TEXT)).vectors[0, 0]) for _ in range(6)}
        assert marks == {1, 3}


async def test_an_encoder_that_hangs_costs_a_part_of_the_time():
    hanging, other = FakeEncoder(1), FakeEncoder(2)
    async with serving(hanging, other) as encoders:
        await encoders.status(soon())
        hanging.gate.clear()
        deadline = Deadline.after(2)
        for _ in range(2):
            found = await encoders.encode("m", [(A_TEXT, "")], Role.QUERY, deadline)
            assert found.vectors[0, 0] == 2
        hanging.gate.set()


async def test_a_batch_of_candidates_may_take_all_the_time_that_there_is():
    encoders_alike = FakeEncoder(1), FakeEncoder(2)
    async with serving(*encoders_alike) as encoders:
        await encoders.status(soon())
        for one in encoders_alike:
            one.gate.clear()
            one.asked.clear()
        call = encoders.encode("m", [(A_TEXT, "")], Role.CANDIDATE, Deadline.after(2))
        running = asyncio.create_task(call)
        await asyncio.sleep(1.2)
        for one in encoders_alike:
            one.gate.set()
        await running
        assert sum(len(one.asked) for one in encoders_alike) == 1


async def test_a_text_encoder_that_is_gone_is_replaced_by_one_that_reads_more():
    texts, all_kinds = FakeEncoder(1, modalities=(TEXT,)), FakeEncoder(2)
    async with serving(texts, all_kinds) as encoders:
        await encoders.status(soon())
        await texts.stop()
        assert (await encode(encoders, A_TEXT)).vectors[0, 0] == 2


async def test_a_model_that_nobody_serves_is_refused_with_those_that_are():
    async with serving(FakeEncoder(model="m-1", name="lite"), FakeEncoder(model="n")) as encoders:
        await encoders.status(soon())
        with pytest.raises(ModelMismatch, match=r"'other'; they serve lite \(m-1\), n \(n\)"):
            await encode(encoders, A_TEXT, model="other")
        with pytest.raises(ModelMismatch):
            await encoders.find("other", soon())


async def test_an_encoder_that_comes_late_is_waited_for_and_found():
    first, late = FakeEncoder(model="m"), FakeEncoder(model="n")
    async with serving(first, late) as encoders:
        await late.stop()
        with pytest.raises(Unavailable, match="away"):
            await encode(encoders, A_TEXT, model="n")
        assert (await encode(encoders, A_TEXT, model="m")).fingerprint == "m"
        await late.start()
        assert (await until_it_is_there(encoders, "n")).fingerprint == "n"


async def test_an_encoder_that_has_another_model_is_not_taken_for_the_old_one():
    fake = FakeEncoder(1, "m")
    async with serving(fake) as encoders:
        await encode(encoders, A_TEXT)
        fake.model = "n"
        with pytest.raises(ModelMismatch, match="'n'"):
            await encode(encoders, A_TEXT)
        assert (await until_it_is_there(encoders, "n")).fingerprint == "n"


async def test_a_model_is_found_by_name_and_by_fingerprint():
    fakes = [
        FakeEncoder(model="a-1", name="a"),
        FakeEncoder(model="b-1", name="b"),
        FakeEncoder(model="b-2", name="b"),
    ]
    async with serving(*fakes) as encoders:
        assert (await encoders.find("", soon())).name == "a"
        assert (await encoders.find("a", soon())).fingerprint == "a-1"
        assert (await encoders.find("b-2", soon())).name == "b"
        with pytest.raises(InvalidField, match="b-1, b-2"):
            await encoders.find("b", soon())


async def test_the_state_of_each_is_told():
    first, gone = FakeEncoder(model="m", name="lite"), FakeEncoder()
    async with serving(first, gone) as encoders:
        await gone.stop()
        states = [(one.address, one.state) for one in await encoders.status(soon())]
        assert states == [
            (first.address, ServiceState.SERVING),
            (gone.address, ServiceState.UNREACHABLE),
        ]


async def test_those_who_come_before_anything_is_known_wait_for_the_same_look():
    async with serving(FakeEncoder(1, "m"), FakeEncoder(2, "n")) as encoders:
        found = await asyncio.gather(*(encode(encoders, A_TEXT, model="n") for _ in range(20)))
        assert {one.fingerprint for one in found} == {"n"}
