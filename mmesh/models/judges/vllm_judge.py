"""A multimodal LLM as a judge, on vLLM's engine: one forward pass per pair of query and candidate.

What differs between models is a `JudgeFamily`: how it is asked, where its score is read, and how
it takes pictures. See `zero_shot`, `qwen3_vl_reranker` and `jina_reranker`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import PIL.Image

from mmesh.content import Content, Image, Modality
from mmesh.errors import InputTooLong, InvalidField, InvalidImage, Unavailable
from mmesh.models import hub, images
from mmesh.models.content_threads import ContentThreads
from mmesh.models.judges.prompts import MIN_CANDIDATE_TOKENS, PairPrompts
from mmesh.models.judges.vllm_engine import Pictures, VllmEngine, VllmSettings
from mmesh.models.protocol import JudgeInfo

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

PREPARED_AT_A_TIME = 8
"""Pairs whose pictures are decoded but not yet in the model's form: up to 150 MB a picture."""


class RenderedPrompt(Protocol):
    """A prompt in the form that its engine takes."""

    @property
    def tokens(self) -> int:
        """Its length with the pictures."""


class PairEngine(Protocol):
    """What runs the model: `VllmEngine` in this process, or a server; see there."""

    @property
    def has_died(self) -> bool:
        """Whether it is gone for good."""

    @property
    def unfinished_requests(self) -> int:
        """Requests that are worked on or queued."""

    async def render(self, ids: Sequence[int], pictures: Pictures, path: str) -> RenderedPrompt:
        """Make a prompt and its pictures ready; `path` is the content's."""

    async def word_probability(self, rendered: Any, word: int, other: int) -> float:
        """Return P(word) / (P(word) + P(other)) of two tokens as the first after the prompt."""

    async def class_probability(self, rendered: Any) -> float:
        """Return what the model's own head says of the prompt, in 0..1."""

    async def shutdown(self) -> None:
        """Free what it holds."""

    def errors(self, path: str) -> AbstractContextManager[None]:
        """Translate what is raised by work on the pair of the content at `path`."""


class Route(Protocol):
    """Where a pair's score is read from the engine."""

    @property
    def engine_arguments(self) -> Mapping[str, Any]:
        """What vLLM's `AsyncEngineArgs` needs for it."""

    async def score(self, engine: PairEngine, rendered: RenderedPrompt) -> float:
        """Return the score in 0..1; higher is better."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """Reads the probability of one word of the answer against another, by their token ids."""

    true_id: int
    false_id: int
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)

    async def score(self, engine: PairEngine, rendered: RenderedPrompt) -> float:
        """Return P(true) / (P(true) + P(false))."""
        return await engine.word_probability(rendered, self.true_id, self.false_id)


@dataclass(frozen=True, slots=True)
class Classifier:
    """Reads the model's own head; vLLM then loads the model as a sequence classifier."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the model's config that make it a classifier."""

    @property
    def engine_arguments(self) -> Mapping[str, Any]:
        """What vLLM's `AsyncEngineArgs` needs for it."""
        return {"runner": "pooling", "hf_overrides": dict(self.overrides)}

    async def score(self, engine: PairEngine, rendered: RenderedPrompt) -> float:
        """Return the head's probability."""
        return await engine.class_probability(rendered)


def _unchanged(picture: PIL.Image.Image) -> PIL.Image.Image:
    return picture


@dataclass(frozen=True, slots=True)
class JudgeFamily:
    """How one kind of model judges."""

    name: str
    revision: int
    """Raised when code changes a score that the model's files do not."""
    prompts: PairPrompts
    route: Route
    template: str
    """Name, version and hash of the prompt."""
    weights: Mapping[Modality, float]
    compares_modalities: bool
    image_tokens: Callable[[int, int], int]
    """Tokens of a picture by width and height; may raise `ValueError` for sizes it refuses."""
    resized: Callable[[PIL.Image.Image], PIL.Image.Image] = _unchanged
    """Applied to decoded pictures; may raise `ValueError`."""
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)
    vllm_reverses_pictures: bool = False
    """vLLM hands the pictures to the model in reverse order."""

    @property
    def identity(self) -> tuple[object, ...]:
        """What a score depends on besides the model's files and the engine."""
        return self.name, self.revision, self.route, self.template

    def info(self, name: str, fingerprint: str) -> JudgeInfo:
        """Describe the judge that a model of this family makes."""
        return JudgeInfo(
            name=name,
            fingerprint=fingerprint,
            template=self.template,
            weights=self.weights,
            query_weights=dict.fromkeys(Modality, 1.0),
            compares_modalities=self.compares_modalities,
        )


def limit_pixels(least: int, most: int) -> dict[str, Any]:
    """Return the engine's arguments for Qwen's processors to scale pictures into this range."""
    return {"mm_processor_kwargs": {"size": {"shortest_edge": least, "longest_edge": most}}}


async def open_vllm_judge(
    folder: Path, family: JudgeFamily, settings: VllmSettings | None = None, name: str = ""
) -> VllmJudge:
    """Load the model in `folder`; `name` is shown in place of the folder's.

    See `VllmEngine.start` for when to call it.

    Raises:
        FailedPrecondition: vLLM refuses the model.
        Unavailable: the engine does not start.
    """
    settings = settings or VllmSettings()
    name = name or folder.name
    parts = (*family.identity, settings.dtype, settings.max_model_len)
    fingerprint = await asyncio.to_thread(hub.fingerprint_of, folder, name, parts)
    arguments = {**family.engine_arguments, **family.route.engine_arguments}
    engine = await VllmEngine.start(folder, settings, arguments)
    logger.info("judge opened", extra={"model": name, "family": family.name})
    return VllmJudge(engine, family, family.info(name, fingerprint), settings)


class VllmJudge:
    """Implements `JudgeModel`; made by `open_vllm_judge`, used on the event loop that opened it."""

    def __init__(
        self, engine: PairEngine, family: JudgeFamily, info: JudgeInfo, settings: VllmSettings
    ) -> None:
        self._engine = engine
        self._family = family
        self._prompts = family.prompts
        self._info = info
        self._settings = settings
        self._slots = asyncio.Semaphore(2 * settings.max_num_seqs)
        self._preparing = asyncio.Semaphore(PREPARED_AT_A_TIME)
        self._threads = ContentThreads(2, "judge")
        self._calls: set[asyncio.Task[list[float]]] = set()
        self._closed = False

    @property
    def info(self) -> JudgeInfo:
        """Name, fingerprint, template and weights; constant."""
        return self._info

    @property
    def reads_images(self) -> bool:
        """Whether the model takes pictures."""
        return self._prompts.reads_images

    @property
    def running_requests(self) -> int:
        """Pairs that the engine is working on or has queued."""
        return 0 if self._closed else self._engine.unfinished_requests

    def is_healthy(self) -> bool:
        """Tell whether the engine lives; a dead one never returns: restart the process."""
        return not self._closed and not self._engine.has_died

    def image_tokens(self, content: Content) -> int:
        """Return how many tokens the pictures of `content` take, by the model's own resizing.

        Read from their headers; a picture that the model would refuse counts nothing.
        """
        return sum(self._tokens_of(image) for image in content.images)

    async def score(
        self, query: Content, instruction: str, candidates: Sequence[Content]
    ) -> list[float]:
        """Return one score in 0..1 for each candidate, in order.

        Candidates whose text does not fit are judged by its beginning. Cancelling the call ends
        its requests in the engine.

        Raises:
            InvalidField: a part cannot be read or does not fit, named by a path that starts with
                `query` or `candidates[i]`.
            Unavailable: the engine is gone.
        """
        if not self.is_healthy():
            raise Unavailable("the judge's engine has stopped")
        call = asyncio.create_task(self._score_all(query, instruction, candidates))
        self._calls.add(call)
        try:
            return await call
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            raise Unavailable("the judge was closed") from None
        finally:
            self._calls.discard(call)

    async def close(self) -> None:
        """Let running calls end, or fail them with `Unavailable`; then free the engine."""
        if self._closed:
            return
        self._closed = True
        if calls := set(self._calls):
            _, late = await asyncio.wait(calls, timeout=self._settings.close_grace_s)
            for call in late:
                call.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._engine.shutdown()
        self._threads.close()

    async def _score_all(
        self, query: Content, instruction: str, candidates: Sequence[Content]
    ) -> list[float]:
        asked = await self._read(query, "query")
        await self._check_query(query, asked, instruction)
        return await _all_or_first_error(
            self._score_one(query, asked, instruction, candidate, f"candidates[{number}]")
            for number, candidate in enumerate(candidates)
        )

    async def _check_query(self, query: Content, asked: Pictures, instruction: str) -> None:
        """Raise `InvalidField` for what is wrong with the query, whatever the candidates."""
        least = Content.of("x")
        self._check_picture_count(query, least, "query")
        ids = await self._offload(self._prompts.build, query, instruction, least)
        with self._engine.errors("query"):
            rendered = await self._engine.render(ids, self._in_order(asked, _NONE), "query")
        if rendered.tokens + MIN_CANDIDATE_TOKENS > self._settings.max_model_len:
            raise InputTooLong("query", "is too long for this judge; shorten it or its instruction")

    async def _score_one(
        self, query: Content, asked: Pictures, instruction: str, candidate: Content, path: str
    ) -> float:
        async with self._slots:
            self._check_picture_count(query, candidate, path)
            with self._engine.errors(path):
                async with self._preparing:
                    pictures = self._in_order(asked, await self._read(candidate, path))
                    rendered = await self._fitted(query, instruction, candidate, pictures, path)
                    del pictures
                return await self._family.route.score(self._engine, rendered)

    async def _fitted(
        self, query: Content, instruction: str, candidate: Content, pictures: Pictures, path: str
    ) -> RenderedPrompt:
        """Return the prompt of a pair, with the candidate's text cut if it is too long."""
        limit = self._settings.max_model_len - 1
        ids = await self._offload(self._prompts.build, query, instruction, candidate)
        placed = sum(map(self.image_tokens, (query, candidate))) - len(pictures.keys)
        excess = len(ids) + placed - limit
        while True:
            if excess > 0:
                candidate = await self._offload(self._prompts.shortened, candidate, excess, path)
                ids = await self._offload(self._prompts.build, query, instruction, candidate)
            rendered = await self._engine.render(ids, pictures, path)
            excess = rendered.tokens - limit
            if excess <= 0:
                return rendered

    def _check_picture_count(self, query: Content, candidate: Content, path: str) -> None:
        limit = self._settings.images_per_prompt if self.reads_images else 0
        total = len(query.images) + len(candidate.images)
        if total > limit:
            raise InvalidField(
                f"{path}.parts", f"make it {total} pictures; this judge takes {limit} in a pair"
            )

    def _in_order(self, asked: Pictures, shown: Pictures) -> Pictures:
        """Return the pictures of query and candidate as vLLM must be given them."""
        pictures = shown + asked if self._prompts.candidate_first else asked + shown
        return pictures.reversed() if self._family.vllm_reverses_pictures else pictures

    async def _read(self, content: Content, path: str) -> Pictures:
        resized = self._family.resized
        return await self._threads.run([content], _read_pictures, content, resized, path)

    async def _offload(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._threads.run((), function, *args, **kwargs)

    def _tokens_of(self, image: Image) -> int:
        try:
            return self._family.image_tokens(*images.read_size(image.data, ""))
        except (InvalidImage, ValueError):
            return 0


_NONE = Pictures((), ())


def _read_pictures(
    content: Content, resized: Callable[[PIL.Image.Image], PIL.Image.Image], path: str
) -> Pictures:
    decoded = []
    for number, part in enumerate(content.parts):
        if isinstance(part, Image):
            where = f"{path}.parts[{number}].image.data"
            try:
                decoded.append(resized(images.decode(part.data, where)))
            except ValueError as error:
                raise InvalidImage(where, f"is refused by the model: {error}") from error
    keys = (hashlib.sha256(image.data).hexdigest() for image in content.images)
    return Pictures(tuple(decoded), tuple(keys))


async def _all_or_first_error(
    coroutines: Iterator[Coroutine[Any, Any, float]],
) -> list[float]:
    """Await all of them; the first error cancels the others and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures.exceptions[0].__cause__
    return [task.result() for task in tasks]


def _cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
