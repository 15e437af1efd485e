"""vLLM's engine as judges use it: prompts of ids and pictures in, one probability out.

All that is known of vLLM's interface is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import PIL.Image

from mmesh.errors import (
    FailedPrecondition,
    InternalError,
    InvalidField,
    InvalidImage,
    MmeshError,
    Unavailable,
)
from mmesh.models.compat import check_plugin, declare_torchvision_operators
from mmesh.models.orphans import end_children_with_this

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
    close_grace_s: float = 5.0
    """Time for running calls when closing; then they fail with `Unavailable`."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Decoded pictures in the order of the prompt, with what names them in vLLM's caches."""

    decoded: tuple[PIL.Image.Image, ...] = field(repr=False)
    keys: tuple[str, ...]

    def __add__(self, other: Pictures) -> Pictures:
        """Return these pictures and then the others."""
        return Pictures(self.decoded + other.decoded, self.keys + other.keys)

    def reversed(self) -> Pictures:
        """Return the same pictures, the last one first."""
        return Pictures(self.decoded[::-1], self.keys[::-1])


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as the engine takes it: placeholders expanded, pixels ready."""

    inputs: Any = field(repr=False)

    @property
    def tokens(self) -> int:
        """Length of the prompt with its pictures."""
        return len(self.inputs["prompt_token_ids"])


class VllmEngine:
    """A running engine; used on the event loop that started it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._numbers = itertools.count()

    @classmethod
    async def start(
        cls, folder: Path, settings: VllmSettings, extra: Mapping[str, Any]
    ) -> VllmEngine:
        """Load the model in `folder`; `extra` are arguments of vLLM's `AsyncEngineArgs`.

        Call it before anything imports vLLM or transformers, from a program that guards its entry
        with `if __name__ == "__main__"`: vLLM starts processes that import the main module again.

        Raises:
            FailedPrecondition: vLLM refuses the model.
            Unavailable: the engine does not start.
        """
        return cls(await _started(folder, settings, extra))

    @property
    def has_died(self) -> bool:
        """Whether the engine's process is gone; it never returns."""
        return bool(self._engine.errored)

    @property
    def unfinished_requests(self) -> int:
        """Requests that the engine works on or has queued."""
        return int(self._engine.get_num_unfinished_requests())

    async def render(self, ids: Sequence[int], pictures: Pictures, path: str) -> Rendered:
        """Expand placeholders and make pixels ready, without vLLM's own limit on length.

        vLLM's shared cache must be skipped: it takes for granted that each rendered prompt reaches
        the engine, but some are only measured here, and calls are cancelled in between.

        Raises:
            InvalidImage: the model's processor refuses a picture of the content at `path`.
        """
        from vllm.renderers.params import TokenizeParams

        request: dict[str, Any] = {"prompt_token_ids": list(ids)}
        if pictures.keys:
            request["multi_modal_data"] = {"image": list(pictures.decoded)}
            request["multi_modal_uuids"] = {"image": list(pictures.keys)}
        try:
            (inputs,) = await self._engine.renderer.render_cmpl_async(
                [request], TokenizeParams(max_total_tokens=None), skip_mm_cache=True
            )
        except ValueError as error:
            if not pictures.keys:
                raise
            reason = error.__cause__ or error
            raise InvalidImage(path, f"has a picture that the model refuses: {reason}") from error
        found = len(inputs.get("mm_placeholders", {}).get("image", ()))
        if found != len(pictures.keys):
            raise InternalError(f"vLLM placed {found} of {len(pictures.keys)} pictures")
        return Rendered(inputs)

    async def word_probability(self, rendered: Rendered, word: int, other: int) -> float:
        """Return P(word) / (P(word) + P(other)) of two tokens as the first after the prompt."""
        from vllm import SamplingParams

        sampling = SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=[word, other], detokenize=False
        )
        outputs = self._engine.generate(rendered.inputs, sampling, self._next_id())
        answer = (await _last(outputs)).outputs[0]
        if not answer.logprobs:
            raise InternalError(f"vLLM ended a request without an answer: {answer.finish_reason}")
        logprobs = answer.logprobs[0]
        return _sigmoid(_finite(logprobs[word].logprob - logprobs[other].logprob))

    async def class_probability(self, rendered: Rendered) -> float:
        """Return what the model's own head says of the prompt, in 0..1."""
        from vllm import PoolingParams

        outputs = self._engine.encode(
            rendered.inputs, PoolingParams(task="classify"), self._next_id()
        )
        return _finite(float((await _last(outputs)).outputs.data.item()))

    async def shutdown(self) -> None:
        """End the engine's processes and free what they hold."""
        engine, self._engine = self._engine, None
        await asyncio.to_thread(engine.shutdown, timeout=1.0)

    @contextlib.contextmanager
    def errors(self, path: str) -> Iterator[None]:
        """Translate what vLLM raises while it works on the pair of the content at `path`."""
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
            if self.has_died:
                raise Unavailable("the judge's engine has died") from error
            raise InternalError(f"vLLM failed: {error.__cause__ or error}") from error

    def _next_id(self) -> str:
        return f"judge-{next(self._numbers)}"


def check_installation() -> None:
    """Raise `FailedPrecondition` unless vLLM is installed and its processes will work."""
    if find_spec("vllm") is None:
        raise FailedPrecondition("vLLM is not installed; run `make setup-vllm`")
    check_plugin()


def set_environment(settings: VllmSettings) -> None:
    """Make this process ready to import transformers and vLLM.

    Both stay offline and silent to third parties, unless told otherwise. What vLLM starts ends with
    this process.
    """
    wanted = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if settings.enforce_eager:  # vLLM compiles a helper of its sampler even so
        wanted["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    declare_torchvision_operators()
    end_children_with_this()


async def _started(folder: Path, settings: VllmSettings, extra: Mapping[str, Any]) -> Any:
    """Start the engine on a thread, so that health checks are answered meanwhile.

    A cancelled start is waited for and undone, as the engine's processes would stay otherwise.
    """
    start = asyncio.create_task(asyncio.to_thread(_start, folder, settings, extra))
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


def _start(folder: Path, settings: VllmSettings, extra: Mapping[str, Any]) -> list[Any]:
    """Return the engine in a list, to be taken out of it.

    A thread's frame keeps what the thread returned; an engine kept until the interpreter exits
    prints an error from its destructor.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=str(folder),
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        kv_cache_memory_bytes=settings.kv_cache_bytes,
        limit_mm_per_prompt={"image": settings.images_per_prompt, "video": 0},
        block_size=settings.block_size,
        enforce_eager=settings.enforce_eager,
        enable_prefix_caching=True,
        mm_processor_cache_gb=settings.processor_cache_gb,
        **extra,
    )
    return [AsyncLLM.from_engine_args(arguments)]


async def _last(outputs: AsyncIterator[_T]) -> _T:
    received = [output async for output in outputs]
    if not received:
        raise InternalError("vLLM ended a request without an output")
    return received[-1]


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise InternalError("the model's answer has no finite probability")
    return number


def _sigmoid(logit: float) -> float:
    """Return 1 / (1 + exp(-logit)) without overflow."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    return math.exp(logit) / (1.0 + math.exp(logit))
