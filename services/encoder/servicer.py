"""protobuf to engine calls and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmesh import wire
from mmesh.api.encoder.v1 import encoder_pb2 as pb
from mmesh.api.encoder.v1 import encoder_pb2_grpc as rpc
from mmesh.api.vector.v1 import vector_pb2 as vector_pb
from mmesh.content import Role, check_content, check_instruction
from mmesh.errors import InvalidField
from mmesh.serving.batching.backlog import Priority
from mmesh.serving.batching.lane import Done
from mmesh.serving.deadline import Context, Deadline
from mmesh.vectors import DataType, FloatMatrix
from services.encoder.engine import EncoderEngine, Input, Outcome
from services.encoder.preparation import EncodeOptions

MAX_INPUTS = 256
DEFAULT_DEADLINE_S = 60.0


class EncoderServicer(rpc.EncoderServiceServicer):
    """Serves `mmesh.api.encoder.v1.EncoderService`."""

    def __init__(self, engine: EncoderEngine) -> None:
        self._engine = engine

    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        if not 1 <= len(request.inputs) <= MAX_INPUTS:
            problem = f"has {len(request.inputs)} entries; 1 to {MAX_INPUTS} are allowed"
            raise InvalidField("inputs", problem)
        data_type = wire.data_type_from_pb(request.data_type, "data_type")
        options = _options_of(request, context)
        self._engine.check_room(len(request.inputs), options)
        inputs = [_input_of(message, number) for number, message in enumerate(request.inputs)]
        good = [one for one in inputs if not isinstance(one, InvalidField)]
        if not options.skip_problems:
            _raise_first(inputs)
        found, coalesced = await self._engine.encode(good, options)
        encoded = iter(found)
        outcomes = [one if isinstance(one, InvalidField) else next(encoded) for one in inputs]
        return self._response(outcomes, coalesced, data_type)

    def _response(
        self, outcomes: Sequence[Outcome | InvalidField], coalesced: int, data_type: DataType
    ) -> pb.EncodeResponse:
        info = self._engine.info
        nothing = np.zeros(info.dim, np.float32)
        rows = [o.result.vector if isinstance(o, Done) else nothing for o in outcomes]
        done = [o for o in outcomes if isinstance(o, Done)]
        return pb.EncodeResponse(
            vectors=wire.vectors_to_pb(np.stack(rows), data_type),
            model_fingerprint=info.fingerprint,
            problems=[
                pb.InputProblem(input=number, problem=wire.problem_to_pb(outcome))
                for number, outcome in enumerate(outcomes)
                if isinstance(outcome, InvalidField)
            ],
            truncated=[
                number
                for number, outcome in enumerate(outcomes)
                if isinstance(outcome, Done) and outcome.result.truncated
            ],
            timing=_timing(done, coalesced) if done else None,
            notices=[
                pb.InputNotice(input=number, reason=reason)
                for number, outcome in enumerate(outcomes)
                if isinstance(outcome, Done)
                for reason in outcome.result.notices
            ],
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        info = self._engine.info
        return pb.GetModelResponse(
            name=info.name,
            fingerprint=info.fingerprint,
            dim=info.dim,
            modalities=sorted(wire.modality_to_pb(modality) for modality in info.modalities),
            max_text_tokens=info.max_text_tokens,
            follows_instructions=info.follows_instructions,
            max_inputs=MAX_INPUTS,
            calibration=[
                pb.CalibrationSet(
                    query_modality=wire.modality_to_pb(modality),
                    vectors=wire.vectors_to_pb(rows, DataType.FLOAT16),
                    candidates=_half(info.calibration_candidates.get(modality)),
                )
                for modality, rows in info.calibration.items()
            ],
        )


def _half(rows: FloatMatrix | None) -> vector_pb.Vectors | None:
    return None if rows is None else wire.vectors_to_pb(rows, DataType.FLOAT16)


def _options_of(request: pb.EncodeRequest, context: Context) -> EncodeOptions:
    is_bulk = request.priority == pb.PRIORITY_BULK
    return EncodeOptions(
        role=Role.QUERY if request.role == pb.ROLE_QUERY else Role.CANDIDATE,
        priority=Priority.BULK if is_bulk else Priority.INTERACTIVE,
        deadline=Deadline.of(context, DEFAULT_DEADLINE_S),
        refuse_long_text=request.on_long_text == pb.ON_LONG_TEXT_REFUSE,
        skip_problems=request.on_problem == pb.ON_PROBLEM_SKIP,
    )


def _input_of(message: pb.Input, number: int) -> Input | InvalidField:
    path = f"inputs[{number}].content"
    try:
        content = wire.content_from_pb(message.content, path)
        check_content(content, path)
        check_instruction(message.instruction, f"inputs[{number}].instruction")
    except InvalidField as error:
        return error
    return content, message.instruction


def _raise_first(inputs: Sequence[Input | InvalidField]) -> None:
    for one in inputs:
        if isinstance(one, InvalidField):
            raise one


def _timing(done: Sequence[Outcome], coalesced: int) -> pb.EncodeTiming:
    return pb.EncodeTiming(
        prepare_seconds=max(one.result.prepare_s for one in done),
        queue_seconds=max(one.queue_s for one in done),
        forward_seconds=max(one.run_s for one in done),
        batch_size=max(one.batch_size for one in done),
        coalesced=coalesced,
    )
