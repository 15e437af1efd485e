"""A judge whose model runs on a vLLM server, by the server's address.

The server gets token ids, never text: prompts are made here, exactly as for an engine in this
process, so nobody's text becomes a special token and the scores are the same. That takes the
model's tokenizer and chat template here, not its weights. Pictures go beside the ids through
`/inference/v1/generate`, which a server offers that was started with `--enable-scale-out`. Others,
and those that run a classifier (`--runner pooling`), are asked about texts only: they take pictures
in messages alone, where what users write would be read as part of the prompt.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import PIL.Image

from mmesh.errors import (
    FailedPrecondition,
    InternalError,
    InvalidField,
    InvalidImage,
    Overloaded,
    Unavailable,
)
from mmesh.models import hub
from mmesh.models.compat import declare_torchvision_operators
from mmesh.models.judges.choice import JudgeChoice
from mmesh.models.judges.vllm_engine import Pictures, VllmSettings
from mmesh.models.judges.vllm_judge import JudgeFamily, VllmJudge

SCHEME = "vllm+"
GENERATE, COMPLETE, CLASSIFY = "/inference/v1/generate", "/v1/completions", "/classify"
CONNECT_S, ANSWER_S = 5.0, 120.0
_LOST = frozenset((404, 500, 502, 503, 504))
"""Longest waits for a connection and for an answer; deadlines of calls are mostly shorter."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says of itself."""

    model: str
    """Name by which its model is asked for."""
    root: str
    """Where the server has the model from."""
    max_model_len: int
    paths: frozenset[str] = field(repr=False)
    """Of its API."""

    @property
    def route(self) -> str:
        """The only route of a judge that the server can go."""
        return "classifier" if CLASSIFY in self.paths else "logprob"


Load = Callable[[Path, JudgeChoice], JudgeFamily]
"""Opens the family of the model whose tokenizer is in a folder."""


async def open_remote_judge(choice: JudgeChoice, load: Load) -> VllmJudge:
    """Return a judge that asks the server at `choice.model`, such as `vllm+http://host:8000`.

    `choice.tokenizer` names the folder, or the model of the hub, with the tokenizer. The server
    goes by the ids that it is given, so its model must be that one: stored scores find out if it
    is not.

    Raises:
        InvalidField: the family has no such route or template.
        FailedPrecondition: the tokenizer is missing, or the server has no API that is known here.
        Unavailable: the server does not answer.
    """
    if not choice.tokenizer:
        raise FailedPrecondition("a vLLM server needs --tokenizer: the folder of its model")
    connection = Connection(choice.model.removeprefix(SCHEME), choice.api_key)
    try:
        served = await connection.describe()
        return await asyncio.to_thread(_opened, connection, served, choice, load)
    except BaseException:
        await connection.close()
        raise


def _opened(connection: Connection, served: Served, choice: JudgeChoice, load: Load) -> VllmJudge:
    folder = hub.tokenizer_folder(choice.tokenizer)
    declare_torchvision_operators()
    route = served.route if choice.route == "auto" else choice.route
    family = load(folder, replace(choice, route=route))
    parts = (*family.identity, served.root, served.max_model_len)
    fingerprint = hub.fingerprint_of(folder, served.model, parts)
    settings = VllmSettings(
        max_model_len=served.max_model_len, images_per_prompt=choice.images_per_prompt
    )
    engine = RemoteEngine(connection, served, family)
    return VllmJudge(engine, family, family.info(served.model, fingerprint), settings)


class Connection:
    """HTTP with one server: JSON there and back, failures as MmeshErrors."""

    def __init__(self, address: str, api_key: str) -> None:
        self._address = address
        self.was_lost = False
        """Whether it did not answer, or not as before, since it was described."""
        self._client = httpx.AsyncClient(
            base_url=address,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def describe(self) -> Served:
        """Return what the server serves.

        Raises:
            FailedPrecondition: the server has no API that is known here.
            Unavailable: it does not answer.
        """
        with self.errors("query"):
            models, api = await self._get("/v1/models"), await self._get("/openapi.json")
        with self.known_form():
            model, paths = models["data"][0], frozenset(api["paths"])
            served = Served(model["id"], model.get("root") or "", model["max_model_len"], paths)
        if served.paths.isdisjoint((GENERATE, COMPLETE, CLASSIFY)):
            raise FailedPrecondition(f"{self._address} is no vLLM server that this judge can ask")
        return served

    async def post(self, path: str, **body: Any) -> Any:
        """Return the answer to `body`; a caller that is cancelled hangs up."""
        return self._json(await self._client.post(path, json=body))

    async def close(self) -> None:
        """Hang up."""
        await self._client.aclose()

    @contextlib.contextmanager
    def errors(self, path: str) -> Iterator[None]:
        """Translate failures of calls about the content at `path`."""
        try:
            yield
        except httpx.HTTPStatusError as failure:
            self.was_lost |= failure.response.status_code in _LOST
            raise _error_of(failure.response, path) from None
        except httpx.HTTPError as failure:
            self.was_lost = True
            reason = str(failure) or type(failure).__name__
            raise Unavailable(f"{self._address} does not answer: {reason}") from None

    @contextlib.contextmanager
    def known_form(self) -> Iterator[None]:
        """Raise `InternalError` for an answer in which something is missing or odd."""
        try:
            yield
        except (LookupError, ValueError, TypeError) as error:
            raise InternalError(f"{self._address} answers in an unknown form: {error!r}") from error

    async def _get(self, path: str) -> Any:
        return self._json(await self._client.get(path))

    def _json(self, response: httpx.Response) -> Any:
        response.raise_for_status()
        with self.known_form():
            return response.json()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the server is to read."""

    ids: Sequence[int] = field(repr=False)
    """With one placeholder per picture."""
    pictures: Sequence[Mapping[str, str]] = field(repr=False)
    tokens: int
    """Length with the pictures, as the family counts them."""


class RemoteEngine:
    """Implements `PairEngine` with a server.

    A server that is away may come back, so it does not count as dead: calls fail meanwhile. One
    that comes back with another model does: scores and fingerprint are those of the model before.
    """

    def __init__(self, connection: Connection, served: Served, family: JudgeFamily) -> None:
        self._connection, self._served, self._family = connection, served, family
        self._running = 0
        self.has_died = False

    @property
    def unfinished_requests(self) -> int:
        """Requests that the server has not answered yet."""
        return self._running

    def errors(self, path: str) -> AbstractContextManager[None]:
        """Translate failures of the work on the pair of the content at `path`."""
        return self._connection.errors(path)

    async def render(self, ids: Sequence[int], pictures: Pictures, path: str) -> Prompt:
        """Return a prompt with one placeholder per picture, ready to be sent.

        Pictures go as PNG, which loses nothing, so the server sees the pixels that an engine in
        this process would.

        Raises:
            InvalidField: there are pictures, and the server takes none; `path` is the content's.
            InvalidImage: the model refuses a picture.
        """
        if pictures.keys and GENERATE not in self._served.paths:
            raise InvalidField(
                path,
                "holds a picture; a vLLM server takes them beside token ids only if it generates "
                "and was started with --enable-scale-out",
            )
        try:
            placed = sum(self._family.image_tokens(*one.size) - 1 for one in pictures.decoded)
        except ValueError as error:
            raise InvalidImage(path, f"has a picture that the model refuses: {error}") from error
        urls = await asyncio.to_thread(lambda: [_data_url(one) for one in pictures.decoded])
        parts = [
            {"type": "image_url", "url": url, "uuid": key}
            for url, key in zip(urls, pictures.keys, strict=True)
        ]
        return Prompt(ids, parts, len(ids) + placed)

    async def word_probability(self, rendered: Prompt, word: int, other: int) -> float:
        """Return P(word) / (P(word) + P(other)) of two tokens as the first after the prompt.

        Raises:
            FailedPrecondition: the server scales pictures to another number of tokens.
        """
        ask = self._generated if GENERATE in self._served.paths else self._completed
        logprobs = await ask(rendered, [word, other])
        with self._connection.known_form():
            difference = logprobs[word] - logprobs[other]
        return (1 + math.tanh(difference / 2)) / 2  # the sigmoid, without overflow

    async def class_probability(self, rendered: Prompt) -> float:
        """Return what the model's own head says of the prompt, in 0..1."""
        answer = await self._post(CLASSIFY, input=rendered.ids)
        with self._connection.known_form():
            (probability,) = answer["data"][0]["probs"]
            return float(probability)

    async def shutdown(self) -> None:
        """Hang up; the server gives up requests that still run."""
        await self._connection.close()

    async def _generated(self, prompt: Prompt, words: Sequence[int]) -> dict[int, float]:
        answer = await self._post(
            GENERATE,
            token_ids=prompt.ids,
            content_parts=prompt.pictures,
            sampling_params=_sampling(words),
            return_token_ids=True,
        )
        with self._connection.known_form():
            self._check_length(prompt, len(answer["prompt_token_ids"]))
            (token,) = answer["choices"][0]["logprobs"]["content"]
            return _finite({one["token_id"]: one["logprob"] for one in token["top_logprobs"]})

    async def _completed(self, prompt: Prompt, words: Sequence[int]) -> dict[int, float]:
        answer = await self._post(
            COMPLETE, prompt=prompt.ids, return_tokens_as_token_ids=True, **_sampling(words)
        )
        with self._connection.known_form():
            (named,) = answer["choices"][0]["logprobs"]["top_logprobs"]
            return _finite({int(name.removeprefix("token_id:")): p for name, p in named.items()})

    def _check_length(self, prompt: Prompt, tokens: int) -> None:
        if tokens == prompt.tokens:
            return
        wanted = self._family.engine_arguments.get("mm_processor_kwargs")
        hint = f": start it with --mm-processor-kwargs '{json.dumps(wanted)}'" if wanted else ""
        raise FailedPrecondition(
            f"the vLLM server makes {tokens} tokens of a prompt of {prompt.tokens}, so it scales "
            f"pictures otherwise than {self._family.name}{hint}"
        )

    async def _post(self, path: str, **body: Any) -> Any:
        self._running += 1
        try:
            if self._connection.was_lost:
                await self._check_same()
            return await self._connection.post(path, model=self._served.model, **body)
        finally:
            self._running -= 1

    async def _check_same(self) -> None:
        """Make sure that the server that is back serves what it served before."""
        served = await self._connection.describe()
        if served != self._served:
            self.has_died = True
            raise Unavailable(f"the vLLM server serves {served.model} by now; this restarts")
        self._connection.was_lost = False


def _sampling(words: Sequence[int]) -> dict[str, Any]:
    """Return the settings with which the logprobs of two tokens come back.

    As many come back as are asked for, first the sampled token's, so that has to be one of them.
    """
    return {
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": len(words),
        "logprob_token_ids": words,
        "allowed_token_ids": words,
    }


def _finite(logprobs: dict[int, float]) -> dict[int, float]:
    """Return `logprobs`, or raise `ValueError` if one is not finite: vLLM says -9999 then."""
    if not all(-9999 < logprob <= 0 for logprob in logprobs.values()):
        raise ValueError(f"the logprobs are {logprobs}")
    return logprobs


def _error_of(response: httpx.Response, path: str) -> Exception:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text
    said = f"{response.status_code}: {message[:300]}"
    if response.status_code in (400, 422):
        return InvalidField(path, f"is refused by the vLLM server: {said}")
    if response.status_code == 429:
        return Overloaded(f"the vLLM server has too much to do: {said}")
    if response.status_code >= 500:
        return Unavailable(f"the vLLM server failed: {said}")
    return FailedPrecondition(f"the vLLM server refuses: {said}")


def _data_url(picture: PIL.Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
