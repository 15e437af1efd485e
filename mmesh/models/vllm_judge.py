"""A judge on vLLM: any instruct model asked for True or False, zero-shot.

The method is that of MM-Embed (arXiv 2411.02571, section on zero-shot reranking with multimodal
LLMs): one forward pass per pair, and the score is the probability of the word True against the word
False as the first word of the answer. Nothing is generated beyond that word.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import itertools
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import PIL.Image

from mmesh.content import Content, Modality
from mmesh.errors import (
    FailedPrecondition,
    InternalError,
    InvalidField,
    InvalidImage,
    MmeshError,
    Unavailable,
)
from mmesh.models import images
from mmesh.models.compat import check_plugin, declare_torchvision_operators
from mmesh.models.prompts import (
    MIN_CANDIDATE_TOKENS,
    Prompt,
    PromptBuilder,
    load_prompt_builder,
)
from mmesh.models.protocol import JudgeInfo, JudgeModel
from mmesh.models.templates import Template

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How the engine is opened; everything that changes a score is part of the fingerprint."""

    dtype: str = "auto"
    """`auto` takes the checkpoint's; `float32` is for comparisons."""
    max_model_len: int = 4096
    """Tokens of a prompt with its pictures, and one of answer; longer candidates are cut."""
    max_num_seqs: int = 32
    """Pairs in one step of the engine; twice as many are prepared at a time."""
    kv_cache_bytes: int = 1 << 30
    """Memory for prompts and shared prefixes; vLLM's own default is nearly all there is."""
    images_per_prompt: int = 4
    """Pictures of query and candidate together."""
    block_size: int = 32
    """Tokens per cached block: prefixes are shared in whole blocks. CPUs need multiples of 32."""
    enforce_eager: bool = False
    """Compile nothing: starts sooner, runs slower."""
    processor_cache_gb: float = 0.5
    """Memory for pictures that are ready for the model, kept for the next candidate or call."""
    canary_tolerance: float = 1e-3
    """Largest difference allowed between a pair's scores alone and in a batch, when opening."""
    close_grace_s: float = 5.0
    """Time for running calls when closing; then they fail with `Unavailable`."""


@dataclass(frozen=True, slots=True)
class _Pictures:
    """The decoded pictures of one content, with what identifies them in vLLM's caches."""

    decoded: tuple[PIL.Image.Image, ...] = field(repr=False)
    keys: tuple[str, ...]


async def open_vllm_judge(
    model_dir: Path, template: Template, settings: VllmSettings | None = None
) -> VllmJudge:
    """Load the model in `model_dir` and return a judge that has scored its first pairs.

    Call it before anything imports vLLM or transformers, from a program that guards its entry with
    `if __name__ == "__main__"`: vLLM starts processes that import the main module again.

    Raises:
        FailedPrecondition: vLLM is not installed, the model does not suit the template, or its
            scores depend on the batch.
        Unavailable: the engine does not start.
    """
    settings = settings or VllmSettings()
    set_environment(settings)
    _check_installation(model_dir)
    declare_torchvision_operators()
    builder = await asyncio.to_thread(load_prompt_builder, model_dir, template)
    fingerprint = await asyncio.to_thread(_fingerprint, model_dir, template, settings)
    engine = await _started(model_dir, settings)
    info = JudgeInfo(
        name=model_dir.name,
        fingerprint=fingerprint,
        template=template.identity,
        weights=template.weights,
        query_weights=dict.fromkeys(Modality, 1.0),
        compares_modalities=template.compares_modalities,
    )
    judge = VllmJudge(engine, builder, info, settings)
    try:
        with_image = judge.reads_images and settings.images_per_prompt > 0
        await check_canary(judge, with_image=with_image, tolerance=settings.canary_tolerance)
    except BaseException:
        await judge.close()
        raise
    logger.info("judge opened", extra={"model": info.name, "template": info.template})
    return judge


class VllmJudge:
    """Implements `JudgeModel`; made by `open_vllm_judge`, used on the event loop that opened it."""

    def __init__(
        self, engine: Any, builder: PromptBuilder, info: JudgeInfo, settings: VllmSettings
    ) -> None:
        self._engine = engine
        self._builder = builder
        self._info = info
        self._settings = settings
        self._slots = asyncio.Semaphore(2 * settings.max_num_seqs)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="judge")
        self._numbers = itertools.count()
        self._calls: set[asyncio.Task[list[float]]] = set()
        self._closed = False

    @property
    def info(self) -> JudgeInfo:
        """Name, fingerprint, template and weights; constant."""
        return self._info

    @property
    def reads_images(self) -> bool:
        """Whether the model takes pictures."""
        return self._builder.reads_images

    @property
    def running_requests(self) -> int:
        """Pairs that the engine is working on or has queued."""
        return 0 if self._closed else int(self._engine.get_num_unfinished_requests())

    def is_healthy(self) -> bool:
        """Tell whether the engine lives; a dead one never returns: restart the process."""
        return not self._closed and not self._engine.errored

    async def score(
        self, query: Content, instruction: str, candidates: Sequence[Content]
    ) -> list[float]:
        """Return P(True) / (P(True) + P(False)) for each candidate, in order.

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
        await asyncio.to_thread(self._engine.shutdown, timeout=1.0)
        self._engine = None
        self._threads.shutdown(wait=False)

    async def _score_all(
        self, query: Content, instruction: str, candidates: Sequence[Content]
    ) -> list[float]:
        asked = await self._read(query, "query")
        await self._check_query(query, asked, instruction)
        return await _all_or_first_error(
            self._score_one(query, asked, instruction, candidate, f"candidates[{number}]")
            for number, candidate in enumerate(candidates)
        )

    async def _check_query(self, query: Content, asked: _Pictures, instruction: str) -> None:
        """Raise `InvalidField` for what is wrong with the query, whatever the candidates."""
        least = Content.of("x")
        self._check_picture_count(query, least, "query")
        prompt = await self._offload(self._builder.build, query, instruction, least)
        with _engine_errors(self._engine, "query"):
            rendered = await self._rendered(prompt, asked, "query")
        if len(rendered["prompt_token_ids"]) + MIN_CANDIDATE_TOKENS > self._settings.max_model_len:
            raise InvalidField("query", "is too long for this judge; shorten it or its instruction")

    async def _score_one(
        self, query: Content, asked: _Pictures, instruction: str, candidate: Content, path: str
    ) -> float:
        async with self._slots:
            self._check_picture_count(query, candidate, path)
            shown = await self._read(candidate, path)
            prompt = await self._offload(self._builder.build, query, instruction, candidate)
            with _engine_errors(self._engine, path):
                rendered = await self._fitted(prompt, _joined(asked, shown), path)
                return await self._probability(rendered)

    def _check_picture_count(self, query: Content, candidate: Content, path: str) -> None:
        limit = self._settings.images_per_prompt if self.reads_images else 0
        total = len(query.images) + len(candidate.images)
        if total > limit:
            raise InvalidField(
                f"{path}.parts", f"make it {total} pictures; this judge takes {limit} in a pair"
            )

    async def _read(self, content: Content, path: str) -> _Pictures:
        return await self._offload(_read_pictures, content, path)

    async def _offload(self, function: Callable[..., _T], *arguments: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)

    async def _fitted(self, prompt: Prompt, pictures: _Pictures, path: str) -> Any:
        """Return the prompt as vLLM renders it, with the candidate cut if it is too long.

        How many tokens a picture takes is known only after rendering.
        """
        limit = self._settings.max_model_len - 1
        prompt = prompt.shortened(len(prompt.ids) - limit, path)
        rendered = await self._rendered(prompt, pictures, path)
        excess = len(rendered["prompt_token_ids"]) - limit
        if excess <= 0:
            return rendered
        return await self._rendered(prompt.shortened(excess, path), pictures, path)

    async def _rendered(self, prompt: Prompt, pictures: _Pictures, path: str) -> Any:
        """Expand placeholders and make pixels ready, without vLLM's own limit on length.

        vLLM's shared cache must be skipped: it takes for granted that each rendered prompt reaches
        the engine, but prompts are rendered twice here, and calls are cancelled in between.

        Raises:
            InvalidImage: the model's processor refuses a picture.
        """
        from vllm.renderers.params import TokenizeParams

        request: dict[str, Any] = {"prompt_token_ids": prompt.ids}
        if pictures.keys:
            request["multi_modal_data"] = {"image": list(pictures.decoded)}
            request["multi_modal_uuids"] = {"image": list(pictures.keys)}
        try:
            (rendered,) = await self._engine.renderer.render_cmpl_async(
                [request], TokenizeParams(max_total_tokens=None), skip_mm_cache=True
            )
        except ValueError as error:
            if not pictures.keys:
                raise
            reason = error.__cause__ or error
            raise InvalidImage(path, f"has a picture that the model refuses: {reason}") from error
        found = len(rendered.get("mm_placeholders", {}).get("image", ()))
        if found != len(pictures.keys):
            raise InternalError(f"vLLM placed {found} of {len(pictures.keys)} pictures")
        return rendered

    async def _probability(self, rendered: Any) -> float:
        """Return P(True) against P(False) as the first token after the prompt."""
        from vllm import SamplingParams

        true, false = self._builder.answer_ids
        sampling = SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=[true, false], detokenize=False
        )
        outputs = self._engine.generate(rendered, sampling, f"judge-{next(self._numbers)}")
        answer = (await _last(outputs)).outputs[0]
        if not answer.logprobs:
            raise InternalError(f"vLLM ended a request without an answer: {answer.finish_reason}")
        logprobs = answer.logprobs[0]
        difference = logprobs[false].logprob - logprobs[true].logprob
        if not math.isfinite(difference):
            raise InternalError("the model's answer has no finite probability")
        return _sigmoid(-difference)


def set_environment(settings: VllmSettings) -> None:
    """Keep vLLM and transformers offline and silent to third parties, unless told otherwise."""
    wanted = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if settings.enforce_eager:  # vLLM compiles a helper of its sampler even so
        wanted["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def _check_installation(model_dir: Path) -> None:
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise FailedPrecondition("vLLM is not installed; run `make setup-vllm`")
    if not (model_dir / "config.json").is_file():
        raise FailedPrecondition(f"{model_dir} holds no config.json; give a model's directory")
    check_plugin()


async def _started(model_dir: Path, settings: VllmSettings) -> Any:
    """Start the engine on a thread, so that health checks are answered meanwhile.

    A cancelled start is waited for and undone, as the engine's processes would stay otherwise.
    """
    start = asyncio.create_task(asyncio.to_thread(_start, model_dir, settings))
    try:
        return (await asyncio.shield(start)).pop()
    except asyncio.CancelledError:
        await asyncio.wait([start])
        if start.exception() is None:
            await asyncio.to_thread(start.result().pop().shutdown, timeout=1.0)
        raise
    except ValueError as error:
        raise FailedPrecondition(f"vLLM refuses this model or setting: {error}") from error
    except (RuntimeError, OSError) as error:
        raise Unavailable(f"vLLM does not start: {error}") from error


def _start(model_dir: Path, settings: VllmSettings) -> list[Any]:
    """Return the engine in a list, to be taken out of it.

    A thread's frame keeps what the thread returned; an engine kept until the interpreter exits
    prints an error from its destructor.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=str(model_dir),
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        kv_cache_memory_bytes=settings.kv_cache_bytes,
        limit_mm_per_prompt={"image": settings.images_per_prompt, "video": 0},
        block_size=settings.block_size,
        enforce_eager=settings.enforce_eager,
        enable_prefix_caching=True,
        mm_processor_cache_gb=settings.processor_cache_gb,
    )
    return [AsyncLLM.from_engine_args(arguments)]


def _fingerprint(model_dir: Path, template: Template, settings: VllmSettings) -> str:
    """Hash every file of the model, the template, and the settings that change scores."""
    sha = hashlib.sha256(template.sha256.encode())
    sha.update(f"{settings.dtype} {settings.max_model_len}".encode())
    for path in sorted(path for path in model_dir.iterdir() if path.is_file()):
        with path.open("rb") as file:
            sha.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:16]


def _read_pictures(content: Content, path: str) -> _Pictures:
    numbered = [(n, part) for n, part in enumerate(content.parts) if not isinstance(part, str)]
    return _Pictures(
        tuple(images.decode(image.data, f"{path}.parts[{n}].image.data") for n, image in numbered),
        tuple(hashlib.sha256(image.data).hexdigest() for _, image in numbered),
    )


def _joined(first: _Pictures, second: _Pictures) -> _Pictures:
    return _Pictures(first.decoded + second.decoded, first.keys + second.keys)


@contextlib.contextmanager
def _engine_errors(engine: Any, path: str) -> Iterator[None]:
    """Translate what vLLM raises while it works on the pair of the candidate at `path`."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except MmeshError:
        raise
    except EngineDeadError as error:
        raise Unavailable("the judge's engine has died") from error
    except VLLMValidationError as error:
        raise InvalidField(path, f"is refused by vLLM: {error}") from error
    except Exception as error:  # the engine's boundary: what else it raises is not documented
        if engine.errored:
            raise Unavailable("the judge's engine has died") from error
        raise InternalError(f"vLLM failed: {error.__cause__ or error}") from error


def _sigmoid(logit: float) -> float:
    """Return 1 / (1 + exp(-logit)) without overflow."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    return math.exp(logit) / (1.0 + math.exp(logit))


async def _last(outputs: AsyncIterator[_T]) -> _T:
    received = [output async for output in outputs]
    if not received:
        raise InternalError("vLLM ended a request without an output")
    return received[-1]


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


async def check_canary(judge: JudgeModel, *, with_image: bool, tolerance: float) -> None:
    """Raise `FailedPrecondition` unless pairs score the same alone and in a batch."""
    query, pairs = _canary(with_image=with_image)
    alone = [(await judge.score(query, "", [candidate]))[0] for candidate in pairs]
    fillers = [Content.of(f"number {number} " * (1 + number % 5)) for number in range(6)]
    together = (await judge.score(query, "", [*fillers, *pairs]))[len(fillers) :]
    worst = max(abs(a - b) for a, b in zip(alone, together, strict=True))
    if worst > tolerance:
        raise FailedPrecondition(
            f"a pair's score moves by {worst:.2g} between batches, more than "
            f"{tolerance:g}; try another dtype or version of vLLM"
        )


def _canary(*, with_image: bool) -> tuple[Content, list[Content]]:
    text = Content.of("A red square lies on a white table.")
    query = Content.of("something red")
    if not with_image:
        return query, [text]
    png = io.BytesIO()
    PIL.Image.linear_gradient("L").convert("RGB").save(png, "PNG")
    return query, [text, Content.of(png.getvalue(), "a grey gradient")]
