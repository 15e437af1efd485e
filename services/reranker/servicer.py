"""protobuf to engine calls and back."""

from __future__ import annotations

from mmesh import wire
from mmesh.api.reranker.v1 import reranker_pb2 as pb
from mmesh.api.reranker.v1 import reranker_pb2_grpc as rpc
from mmesh.content import Content, Modality, check_content, check_instruction
from mmesh.errors import InvalidField
from mmesh.models.protocol import JudgeInfo
from mmesh.serving.deadline import Context, Deadline
from mmesh.wire.times import seconds_from_pb
from services.reranker.budget import Budget
from services.reranker.engine import Question, RerankerEngine

MAX_CANDIDATES = 256
DEFAULT_DEADLINE_S = 60.0


class RerankerServicer(rpc.RerankerServiceServicer):
    """Serves `mmesh.api.reranker.v1.RerankerService`."""

    def __init__(self, engine: RerankerEngine) -> None:
        self._engine = engine

    async def Rerank(self, request: pb.RerankRequest, context: Context) -> pb.RerankResponse:
        if not 1 <= len(request.candidates) <= MAX_CANDIDATES:
            problem = f"has {len(request.candidates)} entries; 1 to {MAX_CANDIDATES} are allowed"
            raise InvalidField("candidates", problem)
        query = _content_of(request.query, "query")
        check_instruction(request.instruction)
        candidates = [
            _content_of(message, f"candidates[{number}]")
            for number, message in enumerate(request.candidates)
        ]
        asked = Question(
            query, request.instruction, candidates, _budget_of(request.budget), request.fresh
        )
        judged = await self._engine.judge(asked, Deadline.of(context, DEFAULT_DEADLINE_S))
        info = self._engine.info
        return pb.RerankResponse(
            scores=[_score_to_pb(score) for score in judged.scores],
            model_fingerprint=info.fingerprint,
            template=info.template,
            judge_seconds=judged.judge_s,
            queue_seconds=judged.queue_s,
            remembered=judged.remembered,
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        info = self._engine.info
        return pb.GetModelResponse(
            name=info.name,
            fingerprint=info.fingerprint,
            template=info.template,
            trust=[_trust(info, modality) for modality in Modality],
            compares_modalities=info.compares_modalities,
            max_candidates=MAX_CANDIDATES,
        )


def _content_of(message: object, path: str) -> Content:
    content = wire.content_from_pb(message, path)  # type: ignore[arg-type]  # a Content
    check_content(content, path)
    return content


def _budget_of(message: pb.Budget) -> Budget:
    for name in ("candidates", "image_tokens"):
        value = getattr(message, name)
        if value < 0:
            raise InvalidField(f"budget.{name}", f"is {value}; 0 or more is allowed")
    seconds = seconds_from_pb(message.max_duration, "budget.max_duration")
    return Budget(message.candidates, seconds, message.image_tokens)


def _score_to_pb(score: float | str) -> pb.JudgedScore:
    return pb.JudgedScore(problem=score) if isinstance(score, str) else pb.JudgedScore(score=score)


def _trust(info: JudgeInfo, query_modality: Modality) -> pb.Trust:
    def weight(modality: Modality) -> float:
        return info.weights.get(modality, 0.0) * info.query_weights.get(query_modality, 0.0)

    return pb.Trust(
        query_modality=wire.modality_to_pb(query_modality),
        text_weight=weight(Modality.TEXT),
        image_weight=weight(Modality.IMAGE),
        image_text_weight=weight(Modality.IMAGE_TEXT),
    )
