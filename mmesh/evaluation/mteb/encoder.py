"""An encoder service as an encoder of mteb's, for its tasks without a mesh around it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import grpc
import numpy as np
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from mteb.types import PromptType
from numpy.typing import NDArray

from mmesh import wire
from mmesh.api.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from mmesh.content import Content
from mmesh.errors import MmeshError, ModelMismatch
from mmesh.evaluation.live.flight import in_batches
from mmesh.evaluation.live.patience import PatientCalls
from mmesh.evaluation.mteb import rows
from mmesh.evaluation.mteb.describing import describe
from mmesh.evaluation.mteb.running import progress_bar, wait_for
from mmesh.evaluation.options import Effort
from mmesh.evaluation.rejections import Rejections
from mmesh.wire.errors import error_of
from mmesh.wire.transport import check_target, open_channel

logger = logging.getLogger(__name__)

Vector = NDArray[np.float32]


class MeshEncoder:
    """An encoder service, without index and reranker: mteb's `EncoderProtocol`.

    Args:
        address: of the encoder, host:port; for a mesh of `mmesh up`, `mesh.json` in its data folder
            names it.
        effort: inputs in a call, calls at a time, deadlines, patience.
        name: what mteb files the results under, ORGANISATION/MODEL; empty: mmesh/ and the model's.

    Example:
        mteb.evaluate(MeshEncoder("localhost:50560"), mteb.get_tasks(["STS12"]))
    """

    def __init__(self, address: str, *, effort: Effort | None = None, name: str = "") -> None:
        check_target(address)
        self._address, self._effort, self._name = address, effort or Effort(), name
        self.rejections = Rejections()
        """What could not be encoded, and why; its rows are zero."""

    @cached_property
    def mteb_model_meta(self) -> Any:
        """Description of the encoder's model."""
        model = self._model
        read = (wire.modality_from_pb(one) for one in model.modalities)
        kinds = {one.value for one in read if one}
        name = self._name or f"mmesh/{model.name.replace('/', '-')}"
        return describe(
            name,
            model.fingerprint,
            model.dim,
            kinds & {"text", "image"},
            max_tokens=model.max_text_tokens,
            use_instructions=model.follows_instructions,
        )

    @cached_property
    def _model(self) -> encoder_pb2.GetModelResponse:
        return wait_for(self._ask_model())

    async def _ask_model(self) -> encoder_pb2.GetModelResponse:
        async with open_channel(self._address) as channel:
            stub: Any = encoder_pb2_grpc.EncoderServiceStub(channel)
            request = encoder_pb2.GetModelRequest()
            try:
                return await stub.GetModel(request, timeout=self._effort.timeout_s)  # type: ignore[no-any-return]
            except grpc.aio.AioRpcError as failure:
                raise error_of(failure) from None

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **encode_kwargs: Any,
    ) -> NDArray[np.float32]:
        """Return a unit row for each input, (n, dim); documents are encoded as candidates.

        Raises:
            MmeshError: the encoder was away for too long, or has another model by now.
            ValueError: vectors of another precision than float32 are asked for.
        """
        precision = encode_kwargs.get("precision") or "float32"
        if precision != "float32":
            raise ValueError(f"the precision {precision!r} is asked for; vectors here are float32")
        _ = self._model  # asked for now, before a loop runs
        modalities = rows.modalities_of(task_metadata, prompt_type)
        contents = rows.contents_of_batches(inputs, modalities)
        instruction = rows.instruction_of(task_metadata, prompt_type)
        query = prompt_type is not PromptType.document
        role = encoder_pb2.ROLE_QUERY if query else encoder_pb2.ROLE_CANDIDATE
        title = f"Encoding {task_metadata.name}"
        with progress_bar(title, len(inputs.dataset), encode_kwargs) as bar:
            return wait_for(self._encode(contents, instruction, role, bar))

    async def _encode(
        self,
        contents: Iterator[Content],
        instruction: str,
        role: encoder_pb2.Role.ValueType,
        bar: Any,
    ) -> NDArray[np.float32]:
        found: dict[int, Vector | MmeshError] = {}
        async with open_channel(self._address) as channel:
            stub: Any = encoder_pb2_grpc.EncoderServiceStub(channel)

            async def call(some: Sequence[Content]) -> list[Vector | MmeshError]:
                inputs = [
                    encoder_pb2.Input(content=wire.content_to_pb(one), instruction=instruction)
                    for one in some
                ]
                return await self._call(stub, inputs, role)

            calls = PatientCalls(call, self._effort)

            async def work(batch: list[tuple[int, Content]]) -> None:
                numbers, some = zip(*batch, strict=True)
                found.update(zip(numbers, await calls.outcomes(some), strict=True))
                bar.update(len(batch))

            await in_batches(enumerate(contents), self._effort, work)
        return self._matrix(found)

    async def _call(
        self, stub: Any, inputs: Sequence[encoder_pb2.Input], role: encoder_pb2.Role.ValueType
    ) -> list[Vector | MmeshError]:
        request = encoder_pb2.EncodeRequest(
            inputs=inputs,
            role=role,
            priority=encoder_pb2.PRIORITY_BULK,
            on_problem=encoder_pb2.ON_PROBLEM_SKIP,
        )
        try:
            reply = await stub.Encode(request, timeout=self._effort.timeout_s)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from None
        if reply.model_fingerprint != self._model.fingerprint:
            raise ModelMismatch(f"{self._address} has the model {reply.model_fingerprint} by now")
        outcomes: list[Vector | MmeshError] = list(wire.vectors_from_pb(reply.vectors))
        for problem in reply.problems:
            outcomes[problem.input] = wire.problem_from_pb(problem.problem)
        return outcomes

    def _matrix(self, found: Mapping[int, Vector | MmeshError]) -> NDArray[np.float32]:
        matrix = np.zeros((len(found), self._model.dim), np.float32)
        refused = Rejections()
        for number, outcome in found.items():
            if isinstance(outcome, MmeshError):
                refused.add(str(number), outcome.reason, outcome.message)
            else:
                matrix[number] = outcome
        if refused.total:
            logger.warning("%s takes not all inputs: %s", self._address, dict(refused.counts))
            self.rejections.extend([refused])
        return matrix

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of each row of one matrix with each of another, (n, m)."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosines of rows with those in the same place, (n,)."""
        return pairwise_cos_sim(embeddings1, embeddings2)
