r"""nvidia/MM-Embed (arXiv 2411.02571) without the code that comes with it.

Prompts, pooling and pictures follow that code (`modeling_nvmmembed.py`, for transformers 4.42):

    query, instructed    Instruct: {instruction}\nQuery: <image>\n{text}
    query                Query: <image>\n{text}
    candidate            <image>\n{text}

`<image>\n` is there only with a picture, of which there is one at most, seen whole and squashed to
a square. A sequence starts with BOS and ends with EOS. With an instruction, the mean leaves out all
that comes before `Query:`. Candidates have no instruction.

Differences in text: special tokens stay text; a text with `\nQuery: ` in it loses nothing, whereas
the published code leaves out of the mean what comes before that; an instruction of white space is
none; several texts of one content are joined by line feeds.

Differences in pictures, none with `published_preprocessing`: EXIF's orientation is applied,
transparency is laid over white, 16-bit samples are scaled. The published code takes Pillow's
`convert("RGB")`: as stored, what is under transparency, clipped.

The published weights (CC-BY-NC-4.0) were not at hand, so no vector is checked against theirs. The
tensors' names are from public code that lists them, and with these sizes they make up the bytes of
the published files; a name or shape that differs is refused. What no shape shows is taken from
public ports of NV-Embed: 8 heads of the pooling, RoPE's base 10,000 and epsilon 1e-5.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow

from mmesh.content import Content, Image, Modality, Role
from mmesh.errors import FailedPrecondition, InvalidField
from mmesh.models import hub, images
from mmesh.models.compat import declare_torchvision_operators
from mmesh.models.cuda_graphs import Recorder
from mmesh.models.encoders.families import EncoderChoice
from mmesh.models.encoders.mm_embed_network import (
    Architecture,
    PromptBatch,
    load_network,
    read_architecture,
)
from mmesh.models.encoders.packed import Decoder, Packing, padded
from mmesh.models.protocol import EncoderInfo, FloatMatrix, Prepared
from mmesh.models.text.instructions import check_instruction_length
from mmesh.models.text.plain import PlainText, ids_of
from mmesh.models.torch_runtime import Runtime

FAMILY = "mm-embed"
# Raised when code changes a vector that the files do not: prompts, pooling, resizing.
REVISION = 1
MAX_TEXT_TOKENS = 4096
"""As in the model card; special tokens count, a picture as one."""
MIN_TEXT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Prompt:
    """A sequence of token ids, not padded."""

    ids: NDArray[np.int64] = field(repr=False)
    """A picture is the image token once for each place that it takes."""
    pooled_from: int
    """The first place that counts in the mean."""
    truncated: bool


class PromptWriter:
    """Writes prompts that nobody's text can forge; safe to use from several threads.

    Raises:
        FailedPrecondition: the tokenizer has no BOS, EOS or image token.
    """

    def __init__(
        self, tokenizer: Any, image_token: int, image_tokens: int, max_tokens: int
    ) -> None:
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        added = tokenizer.added_tokens_decoder
        if None in (self._bos, self._eos) or image_token not in added:
            raise FailedPrecondition("the tokenizer must have BOS, EOS and the image token")
        self._backend = _whole_texts(tokenizer.backend_tokenizer)
        self._plain = PlainText(tokenizer)
        self._reserved = added.keys() - {tokenizer.unk_token_id}
        self._image_token = image_token
        self._image_text = str(added[image_token])
        self._image_tokens = image_tokens
        self._room = max_tokens - 2

    def write(self, text: str, role: Role, instruction: str, *, with_image: bool) -> Prompt:
        """Return the prompt; what is too long loses the end of `text`.

        Raises:
            InputTooLong: the instruction takes more than half of what the model reads.
        """
        head, left_out = self._head(role, instruction)
        ids = self._ids(head, text, with_image)
        kept = np.array([self._bos, *ids[: self._room], self._eos], np.int64)
        places = np.where(kept == self._image_token, self._image_tokens, 1)
        return Prompt(np.repeat(kept, places), left_out, truncated=len(ids) > self._room)

    def _head(self, role: Role, instruction: str) -> tuple[str, int]:
        """Return what comes before picture and text, and how many tokens the mean leaves out."""
        if role is Role.CANDIDATE:
            return "", 0
        if not instruction.strip():
            return "Query: ", 0
        lead = f"Instruct: {instruction}"
        # The published code counts the tokens of this text alone, with BOS and EOS.
        left_out = len(self._plain.ids(lead)) + 2
        check_instruction_length(left_out, self._room)
        return f"{lead}\nQuery: ", left_out

    def _ids(self, head: str, text: str, with_image: bool) -> list[int]:
        """Tokenise the prompt as one string, since parts alone may give other tokens.

        Where somebody wrote special tokens, the parts are tokenised apart, as plain text.
        """
        image = f"{self._image_text}\n" if with_image else ""
        ids = ids_of(self._backend, head + image + text)
        special = [token for token in ids if token in self._reserved]
        if special == [self._image_token] * with_image:
            return ids
        if not with_image:
            return self._plain.ids(head + text)
        return [*self._plain.ids(head), self._image_token, *self._plain.ids(f"\n{text}")]


class GlobalView:
    """Turns a picture into the one view of it that MM-Embed sees."""

    def __init__(self, side: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self._side = side
        self._mean = np.array(mean, np.float32)
        self._std = np.array(std, np.float32)

    def __call__(self, picture: Pillow.Image) -> NDArray[np.float32]:
        """Return the picture squashed to a square and normalised (3, side, side)."""
        square = picture.resize((self._side, self._side), Pillow.Resampling.BICUBIC)
        pixels = (np.asarray(square, np.float32) / 255 - self._mean) / self._std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@dataclass(frozen=True, slots=True)
class Input:
    """What `collate` needs of one input: its tokens and its picture (3, side, side)."""

    prompt: Prompt
    pixels: NDArray[np.float32] | None = field(repr=False)


def _places(prompt: Prompt) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the positions of the tokens, and 1 for those that count in the mean, else 0."""
    positions = np.arange(len(prompt.ids))
    return positions, (positions >= prompt.pooled_from).astype(np.float32)


class MMEmbedEncoder:
    """Texts, pictures and illustrated texts in one space; queries follow instructions.

    Without a `view` it reads texts only.
    """

    def __init__(
        self,
        network: Any,
        writer: PromptWriter,
        view: GlobalView | None,
        runtime: Runtime,
        info: EncoderInfo,
        *,
        bare_pictures: bool = False,
    ) -> None:
        self._network = network
        self._record = Recorder(network)
        self._writer = writer
        self._view = view
        self._runtime = runtime
        self._info = info
        self._bare_pictures = bare_pictures

    @property
    def info(self) -> EncoderInfo:
        """Name, fingerprint, dim and limits; constant."""
        return self._info

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """Tokenise the prompt and decode the picture; thread-safe.

        Raises:
            InvalidField: there is a second picture, or one cannot be decoded, or none is read.
            InputTooLong: the instruction is too long.
        """
        pixels = self._pixels(content)
        prompt = self._writer.write(content.text, role, instruction, with_image=pixels is not None)
        return Prepared(FAMILY, len(prompt.ids), Input(prompt, pixels), prompt.truncated)

    def collate(self, batch: Sequence[Prepared]) -> PromptBatch:
        """Lay the sequences end to end and stack the pictures; thread-safe."""
        inputs: list[Input] = [prepared.payload for prepared in batch]
        ids = torch.from_numpy(np.concatenate([part.prompt.ids for part in inputs]))
        pictures = [part.pixels for part in inputs if part.pixels is not None]
        lengths = [len(part.prompt.ids) for part in inputs]
        slots = None if pictures else self._runtime.slots(lengths)
        packing = Packing.of(lengths, slots)
        positions, pooled = (
            torch.cat([torch.from_numpy(rows) for rows in each])
            for each in zip(*(_places(part.prompt) for part in inputs), strict=True)
        )
        pixels = torch.from_numpy(np.stack(pictures)) if pictures else None
        places = torch.nonzero(ids == self._network.image_token).squeeze(1)
        ids[places] = 0  # the image token has no row among the embeddings
        ids, positions, pooled = (padded(row, slots) for row in (ids, positions, pooled))
        return self._runtime.staged(
            PromptBatch(ids, positions, pooled, packing, pixels, places, len(inputs), slots)
        )

    def forward(self, collated: PromptBatch) -> FloatMatrix:
        """Return unit rows (n, dim) in order.

        Raises:
            OutOfDeviceMemory: the batch is too large for the device.
        """
        return self._runtime.unit_rows(self.rows, collated)

    @property
    def runtime(self) -> Runtime:
        """Where the network runs."""
        return self._runtime

    @property
    def network(self) -> torch.nn.Module:
        """The network, whose parameters a trainer may change."""
        return self._network

    def rows(self, batch: PromptBatch) -> torch.Tensor:
        """Return rows (n, dim) on the device, not of unit length, of what `collate` made."""
        if batch.slots is None:
            rows: torch.Tensor = self._network(batch)
            return rows
        return self._record(batch, batch.slots)[: batch.count]

    def _pixels(self, content: Content) -> NDArray[np.float32] | None:
        found = None
        for number, part in enumerate(content.parts):
            path = f"content.parts[{number}].image.data"
            if not isinstance(part, Image):
                continue
            if self._view is None:
                raise InvalidField(path, "is a picture; this encoder reads texts only")
            if found is not None:
                raise InvalidField(path, "is a second picture; MM-Embed reads one at most")
            found = self._view(images.decode(part.data, path, bare=self._bare_pictures))
        return found


def load(folder: Path, choice: EncoderChoice) -> MMEmbedEncoder:
    """Return the encoder in `folder`; it has no vision tower where texts only are asked for.

    Raises:
        FailedPrecondition: a file is missing, or something in one is not as published.
    """
    declare_torchvision_operators()
    architecture = read_architecture(hub.read_config(folder))
    runtime = Runtime(choice.device, choice.dtype, choice.threads, compiling=choice.compile)
    reads_images = choice.modalities is None or choice.modalities != frozenset({Modality.TEXT})
    max_tokens = _max_tokens(choice, architecture)
    writer = PromptWriter(
        _tokenizer(folder), architecture.image_token, architecture.image_tokens, max_tokens
    )
    view = _view(folder, architecture.image_side) if reads_images else None
    network = load_network(folder, architecture, runtime.dtype, reads_images=reads_images)
    bare = choice.published_preprocessing
    parts = REVISION, runtime.dtype_name, max_tokens, *("published preprocessing",) * bare
    info = EncoderInfo(
        name=hub.display_name(choice.model, folder),
        fingerprint=hub.fingerprint_of(folder, FAMILY, parts),
        dim=architecture.dim,
        modalities=frozenset(Modality if reads_images else {Modality.TEXT}),
        max_text_tokens=max_tokens,
        follows_instructions=True,
        packs=True,
        passes=runtime.passes,
    )
    network = runtime.placed(network)
    network.decode = Decoder(network.language_model, causal=False, fused=runtime.fused)
    return MMEmbedEncoder(network, writer, view, runtime, info, bare_pictures=bare)


def _max_tokens(choice: EncoderChoice, architecture: Architecture) -> int:
    asked = choice.max_text_tokens or MAX_TEXT_TOKENS
    if not MIN_TEXT_TOKENS <= asked <= architecture.max_positions:
        raise FailedPrecondition(
            f"MM-Embed reads {MIN_TEXT_TOKENS} to {architecture.max_positions} tokens of text, "
            f"not {asked}"
        )
    return asked


def _tokenizer(folder: Path) -> Any:
    """Open tokenizer.json as it is; the class for Llama would put other rules in its place."""
    if not (folder / "tokenizer.json").is_file():
        raise FailedPrecondition(f"{folder} must hold tokenizer.json")
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _whole_texts(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return a copy that neither cuts nor pads, and that nobody else changes."""
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _view(folder: Path, side: int) -> GlobalView:
    path = folder / "preprocessor_config.json"
    try:
        settings = json.loads(path.read_text())
        return GlobalView(side, settings["image_mean"], settings["image_std"])
    except (OSError, ValueError, KeyError) as error:
        raise FailedPrecondition(f"{path} must tell image_mean and image_std: {error!r}") from error
