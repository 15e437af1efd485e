"""Load balancing over all encoders: several models, and several encoders of one model.

Encoders with the same fingerprint share a space, so any of them may answer. A text-only encoder
beside a multimodal one is preferred for texts, which keeps these out of the queue of pictures.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from itertools import count

import numpy as np

from mmesh.content import Content, Modality, Role
from mmesh.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidField,
    MmeshError,
    ModelMismatch,
    ResourceExhausted,
    Unavailable,
)
from mmesh.mesh_status import ServiceRole, ServiceState, ServiceStatus
from mmesh.serving.deadline import Deadline
from mmesh.serving.supervision import Supervised
from services.gateway.encoders.encoder_backend import EncoderBackend
from services.gateway.interfaces import EncodedBatch, ServedModel
from services.gateway.rpc import MOST_PARTS, first_answer

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between calls to encoders that have not said what they serve."""
ASK_S = 2.0
_OF_THE_ENCODER = (
    Unavailable,
    DeadlineExceeded,
    ResourceExhausted,
    ModelMismatch,
    InternalError,
)
"""Errors that another encoder need not have."""
Inputs = Sequence[tuple[Content, str]]


class Encoders:
    """The encoders at some addresses; once started it looks for the models of all."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._backends = [EncoderBackend(address) for address in addresses]
        self._turn = count()
        self._looking: asyncio.Task[list[ServedModel | MmeshError]] | None = None
        self._looked_at = -LOOK_S
        self._finder = Supervised("encoder discovery", self._keep_looking)

    async def start(self) -> None:
        """Follow the addresses of the encoders, and begin to ask what they serve."""
        for backend in self._backends:
            backend.start()
        self._finder.start()

    async def close(self) -> None:
        """End the asking and close all channels."""
        await self._finder.aclose()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        await asyncio.gather(*(backend.close() for backend in self._backends))

    async def status(self, deadline: Deadline) -> list[ServiceStatus]:
        """Return the state of every encoder: what it serves, or why it does not answer."""
        answers = await _ask(self._backends, deadline)
        return [_status(b.address, one) for b, one in zip(self._backends, answers, strict=True)]

    # -- models

    async def model(self, fingerprint: str, deadline: Deadline) -> ServedModel:
        """Return the model with this fingerprint; its reference pool is that of all its encoders.

        Raises:
            ModelMismatch: no encoder serves it.
            Unavailable: none that answers serves it, and one does not answer.
        """
        backends = await self._serving(fingerprint, deadline)
        models = [backend.model for backend in backends if backend.model is not None]
        if len(models) == 1:
            return models[0]
        reference = {kind: rows for model in models for kind, rows in model.reference.items()}
        return replace(models[0], reference=reference)

    async def find(self, wanted: str, deadline: Deadline) -> ServedModel:
        """Return the model with this name or fingerprint; with "", that of the first encoder.

        Raises:
            InvalidField: several models have this name.
            ModelMismatch, Unavailable: see `model`.
        """
        if not wanted:
            return await self._backends[0].ask_model(deadline)
        await self._look(deadline)
        found = {m.fingerprint: m for m in self._known() if wanted in (m.fingerprint, m.name)}
        if not found:
            raise self._unknown(wanted)
        if len(found) > 1 and wanted not in found:
            problem = f"is {wanted!r}, the name of several; give one of {', '.join(found)}"
            raise InvalidField("model", problem)
        return found.get(wanted) or next(iter(found.values()))

    async def _serving(self, fingerprint: str, deadline: Deadline) -> list[EncoderBackend]:
        """Return the encoders of a model; ask them all when it seems that there are none."""
        found = self._with(fingerprint)
        if not found:
            await self._look(deadline)
            found = self._with(fingerprint)
        if not found:
            raise self._unknown(fingerprint)
        return found

    def _with(self, fingerprint: str) -> list[EncoderBackend]:
        return [b for b in self._backends if b.model and b.model.fingerprint == fingerprint]

    def _known(self) -> list[ServedModel]:
        return [backend.model for backend in self._backends if backend.model is not None]

    def _unknown(self, wanted: str) -> MmeshError:
        if len(self._known()) < len(self._backends):
            return Unavailable(f"an encoder is away, and no other one serves the model {wanted!r}")
        served = ", ".join(dict.fromkeys(f"{m.name} ({m.fingerprint})" for m in self._known()))
        message = f"no encoder serves the model {wanted[:200]!r}; they serve {served}"
        return ModelMismatch(message, {"model_fingerprint": wanted[:200]})

    async def _look(self, deadline: Deadline) -> None:
        """Ask all encoders, unless that was done just now; those who want it share the calls."""
        if self._looking is None:
            if time.monotonic() < self._looked_at + LOOK_S:
                return
            self._looking = asyncio.create_task(_ask(self._backends, Deadline.after(ASK_S)))
            self._looking.add_done_callback(self._note_look)
        await asyncio.wait({self._looking}, timeout=deadline.remaining())

    def _note_look(self, look: asyncio.Task[list[ServedModel | MmeshError]]) -> None:
        self._looking, self._looked_at = None, time.monotonic()
        if not look.cancelled() and (defect := look.exception()) is not None:
            logger.error("encoders could not be asked", exc_info=defect)

    async def _keep_looking(self) -> None:
        while True:
            unknown = [backend for backend in self._backends if backend.model is None]
            for model in await _ask(unknown, Deadline.after(ASK_S)):
                if isinstance(model, ServedModel):
                    extra = {"model": model.name, "fingerprint": model.fingerprint}
                    logger.info("encoder found", extra=extra)
            self._finder.progress()
            await asyncio.sleep(LOOK_S)

    # -- encoding

    async def encode(
        self, fingerprint: str, inputs: Inputs, role: Role, deadline: Deadline
    ) -> EncodedBatch:
        """Encode (content, instruction) pairs with the model that has this fingerprint.

        Raises: see `model`.
        """
        backends = await self._serving(fingerprint, deadline)
        first = next(self._turn) % len(backends)
        shares = _share_out(inputs, [*backends[first:], *backends[:first]])
        calls = (
            _encode(order, fingerprint, [inputs[place] for place in places], role, deadline)
            for order, places in shares.items()
        )
        return _joined(await asyncio.gather(*calls), list(shares.values()))


def _share_out(
    inputs: Inputs, backends: Sequence[EncoderBackend]
) -> dict[tuple[EncoderBackend, ...], list[int]]:
    """Return places of inputs by the encoders that can read them, in the order of preference."""
    orders = {modality: _order(modality, backends) for modality in Modality}
    shares: dict[tuple[EncoderBackend, ...], list[int]] = {}
    for place, (content, _) in enumerate(inputs):
        shares.setdefault(orders[content.modality], []).append(place)
    return shares


def _order(modality: Modality, backends: Sequence[EncoderBackend]) -> tuple[EncoderBackend, ...]:
    """Return the encoders that read a modality, the narrowest first; all of them if none does."""

    def read_by(backend: EncoderBackend) -> frozenset[Modality]:
        return backend.model.modalities if backend.model else frozenset()

    able = [backend for backend in backends if modality in read_by(backend)] or backends
    return tuple(sorted(able, key=lambda b: (not b.is_trusted, len(read_by(b)))))


async def _encode(
    order: Sequence[EncoderBackend],
    fingerprint: str,
    inputs: Inputs,
    role: Role,
    deadline: Deadline,
) -> EncodedBatch:
    """Return the answer of the first encoder that has one.

    A batch of candidates may take all the time that there is: another would have to begin anew.
    """

    def ask(backend: EncoderBackend, part: Deadline) -> Awaitable[EncodedBatch]:
        return backend.encode(fingerprint, inputs, role, part)

    parts = 1 if role is Role.CANDIDATE else MOST_PARTS
    goes_on = lambda _, error: isinstance(error, _OF_THE_ENCODER)  # noqa: E731
    return await first_answer(order, ask, deadline, goes_on, parts)


def _joined(answers: Sequence[EncodedBatch], shares: Sequence[Sequence[int]]) -> EncodedBatch:
    """Return the answers as one; `shares` are the places of their inputs."""
    if len(answers) == 1:
        return answers[0]
    rows = np.zeros((sum(map(len, shares)), answers[0].vectors.shape[1]), np.float32)
    problems: dict[int, MmeshError] = {}
    truncated: set[int] = set()
    notices: dict[int, frozenset[str]] = {}
    for answer, places in zip(answers, shares, strict=True):
        rows[places] = answer.vectors
        problems |= {places[number]: error for number, error in answer.problems.items()}
        truncated |= {places[number] for number in answer.truncated}
        notices |= {places[number]: reasons for number, reasons in answer.notices.items()}
    return EncodedBatch(
        rows,
        answers[0].fingerprint,
        problems,
        frozenset(truncated),
        max(answer.batch_size for answer in answers),
        max(answer.service_s for answer in answers),
        notices,
        max(answer.max_text_tokens for answer in answers),
    )


async def _ask(
    backends: Sequence[EncoderBackend], deadline: Deadline
) -> list[ServedModel | MmeshError]:
    """Return the model of each, or why it does not answer."""
    return await asyncio.gather(*(_model_of(backend, deadline) for backend in backends))


def _status(address: str, answer: ServedModel | MmeshError) -> ServiceStatus:
    if isinstance(answer, MmeshError):
        state, detail = ServiceState.of(answer), answer.message
    else:
        state, detail = ServiceState.SERVING, f"{answer.name} ({answer.dim} wide)"
    return ServiceStatus(ServiceRole.ENCODER, state, address, detail=detail)


async def _model_of(backend: EncoderBackend, deadline: Deadline) -> ServedModel | MmeshError:
    try:
        return await backend.ask_model(deadline)
    except MmeshError as error:
        return error
