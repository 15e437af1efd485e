"""The scores of an MLLM by transformers alone: what an engine that batches must agree with.

One pair at a time, in float32, without padding, cache or batch: slow, and with little that could
go wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers

from mmesh.content import Content
from mmesh.errors import FailedPrecondition
from mmesh.models import hub, images
from mmesh.models.compat import declare_torchvision_operators
from mmesh.models.containment import contained
from mmesh.models.judges.choice import JudgeChoice
from mmesh.models.judges.families import IN_PROCESS, load_family
from mmesh.models.judges.vllm_judge import JudgeFamily, Logprob


def open_reference_judge(model: str, template: str = "auto") -> ReferenceJudge:
    """Load a folder, or `hf:ORG/NAME@REVISION`, whose score is read from the answer's first word.

    Raises:
        InvalidField: there is no such template, or the family cannot be asked so.
        FailedPrecondition: there is no such model.
    """
    declare_torchvision_operators()
    folder = hub.local_folder(model)
    choice = JudgeChoice(IN_PROCESS + model, route="logprob", template=template)
    family = load_family(folder, choice)
    if not isinstance(family.route, Logprob):
        raise FailedPrecondition(f"{family.name} has no reference in transformers; use --stored")
    kind = "AutoModelForImageTextToText" if family.prompts.reads_images else "AutoModelForCausalLM"
    network = getattr(transformers, kind).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    return ReferenceJudge(network.eval(), processor, family, family.route)


class ReferenceJudge:
    """Made by `open_reference_judge`."""

    def __init__(self, network: Any, processor: Any, family: JudgeFamily, words: Logprob) -> None:
        self._network, self._processor = network, processor
        self._family, self._words = family, words
        config = network.config
        self._image_id = getattr(config, "image_token_id", getattr(config, "image_token_index", -1))

    async def score(
        self, query: Content, instruction: str, candidates: Sequence[Content]
    ) -> list[float]:
        """Return P(true) / (P(true) + P(false)) for each candidate, in order.

        Raises:
            InvalidField: a part cannot be read, or pictures to a model of texts.
        """
        return [
            await asyncio.to_thread(self._score_one, query, instruction, candidate)
            for candidate in candidates
        ]

    @contained()
    def _score_one(self, query: Content, instruction: str, candidate: Content) -> float:
        ids = self._family.prompts.build(query, instruction, candidate)
        pictures = [
            self._family.resized(images.decode(image.data, "pair"))
            for image in (*query.images, *candidate.images)
        ]
        sizes = iter([picture.size for picture in pictures])
        expanded = torch.tensor([[*self._expanded(ids, sizes)]])
        inputs = {"input_ids": expanded, "attention_mask": torch.ones_like(expanded)}
        if pictures:
            scaling = self._family.engine_arguments.get("mm_processor_kwargs", {})
            inputs |= self._processor.image_processor(pictures, return_tensors="pt", **scaling)
            inputs["mm_token_type_ids"] = (expanded == self._image_id).int()
        with torch.inference_mode():
            logits = self._network(**inputs).logits[0, -1].double()
        return float(torch.sigmoid(logits[self._words.true_id] - logits[self._words.false_id]))

    def _expanded(self, ids: Sequence[int], sizes: Iterator[tuple[int, int]]) -> Iterator[int]:
        """Yield the ids with each placeholder as often as its picture has tokens."""
        for token in ids:
            is_picture = token == self._image_id
            yield from [token] * (self._family.image_tokens(*next(sizes)) if is_picture else 1)
