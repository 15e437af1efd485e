"""Qwen3-VL-Embedding: texts, pictures and both, with an instruction, as vectors of one space.

Follows the published code of Qwen/Qwen3-VL-Embedding-2B and -8B (arXiv 2601.04720): a chat whose
system message is the instruction and whose user message is the pictures and then the text; the
vector is the last token's hidden state. Two things differ on purpose. A text that is too long loses
its own end, not the chat's, where the vector is read. And special tokens in what users write are
plain text.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from mmesh.content import Content, Image, Modality, Role
from mmesh.errors import FailedPrecondition, InputTooLong, InvalidField, InvalidImage
from mmesh.models import hub, images
from mmesh.models.compat import declare_torchvision_operators
from mmesh.models.cuda_graphs import Recorder, Slots
from mmesh.models.encoders.families import EncoderChoice
from mmesh.models.encoders.packed import Packing, padded
from mmesh.models.encoders.qwen3_vl_network import (
    MERGE,
    Grid,
    PictureLayout,
    Qwen3VLNetwork,
    patches_of,
    picture_layout,
    positions_of,
)
from mmesh.models.protocol import EncoderInfo, FloatMatrix, Prepared
from mmesh.models.text.instructions import check_instruction_length
from mmesh.models.text.plain import PlainText
from mmesh.models.torch_runtime import Runtime

FAMILY = "qwen3-vl-embedding"
# Raised when code changes a vector that the files do not: format, resizing, cutting, pooling.
REVISION = 1
DEFAULT_INSTRUCTION = "Represent the user's input."
NO_CONTENT = "NULL"
MAX_LENGTH = 8192
"""Tokens of an input with its pictures."""
PATCH = 32
"""Pixels a side that become one token."""
MIN_PIXELS, MAX_PIXELS = 4 * PATCH**2, 1800 * PATCH**2
"""A picture is scaled into this range."""
MAX_RATIO = 200
"""A picture's longer side against its shorter one."""

# The chat in pieces, cut behind special tokens: what follows one is tokenised with the text.
_OPENING, _SYSTEM = "<|im_start|>", "system\n"
_TURN, _USER = "<|im_end|>\n<|im_start|>", "user\n"
_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
_ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class ChatInput:
    """What `collate` needs of one input."""

    ids: NDArray[np.int64] = field(repr=False)
    """Token ids (n,), with one placeholder for each 32 x 32 pixels of a picture."""
    positions: NDArray[np.int64] = field(repr=False)
    """Of the tokens, in time, down and across (3, n)."""
    patches: tuple[NDArray[np.uint8], ...] = field(repr=False)
    """Pixels by picture and patch (p, 3 * 16 * 16); as floats they take eight times as much."""
    grids: tuple[Grid, ...]


@dataclass(frozen=True, slots=True)
class ChatBatch:
    """What `forward` needs of n inputs with `total` tokens, end to end."""

    ids: torch.Tensor
    positions: torch.Tensor
    packing: Packing
    last: torch.Tensor
    """Where each input ends (n,)."""
    pictures: PictureLayout | None
    count: int
    slots: Slots | None
    """What all of this is padded to, for a recording."""


class Qwen3VLEmbedding:
    """Implements `EncoderModel`; without a `visual` part the network reads texts only."""

    def __init__(
        self, network: Qwen3VLNetwork, chat: Chat, runtime: Runtime, info: EncoderInfo
    ) -> None:
        self._network = network
        self._chat = chat
        self._runtime = runtime
        self._info = info
        self._record = Recorder(self._launch)
        self._picture_work = _picture_work(network) if network.visual is not None else 0.0

    @property
    def info(self) -> EncoderInfo:
        """Name, fingerprint, dim and limits; constant."""
        return self._info

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """Decode, scale and cut the pictures, write the chat; thread-safe.

        Raises:
            InvalidImage: a picture cannot be decoded, or is too narrow.
            InputTooLong: the pictures leave no room for the text, or do not fit at all; or the
                instruction takes more than half of what the model reads.
        """
        del role  # The instruction alone tells queries from candidates.
        if content.images and self._network.visual is None:
            raise InvalidField("content", "holds a picture; this encoder was opened for text")
        pictures = [
            _picture(part.data, f"content.parts[{number}].image.data")
            for number, part in enumerate(content.parts)
            if isinstance(part, Image)
        ]
        side = PATCH // MERGE
        grids = tuple((picture.height // side, picture.width // side) for picture in pictures)
        tokens = [down * across // MERGE**2 for down, across in grids]
        written, truncated = self._chat.ids(instruction, tokens, content.text)
        ids = np.array(written)
        positions = positions_of(ids, self._chat.placeholder, grids)
        patches = tuple(patches_of(np.asarray(picture), side) for picture in pictures)
        cost = len(ids) + math.ceil(self._picture_work * sum(tokens))
        return Prepared("chat", cost, ChatInput(ids, positions, patches, grids), truncated)

    def collate(self, batch: Sequence[Prepared]) -> ChatBatch:
        """Lay inputs end to end, and pictures likewise; thread-safe."""
        inputs: list[ChatInput] = [prepared.payload for prepared in batch]
        ids = torch.from_numpy(np.concatenate([one.ids for one in inputs]))
        pictures = self._pictures(inputs, ids)
        lengths = [len(one.ids) for one in inputs]
        slots = None if pictures else self._runtime.slots(lengths)
        packing = Packing.of(lengths, slots)
        positions = torch.from_numpy(np.concatenate([one.positions for one in inputs], axis=1))
        return self._runtime.staged(
            ChatBatch(
                padded(ids, slots),
                padded(positions, slots),
                packing,
                packing.offsets[1:].long() - 1,
                pictures,
                len(inputs),
                slots,
            )
        )

    def _pictures(self, inputs: Sequence[ChatInput], ids: torch.Tensor) -> PictureLayout | None:
        grids = [grid for one in inputs for grid in one.grids]
        if not grids:
            return None
        return picture_layout(
            [patches for one in inputs for patches in one.patches],
            grids,
            self._network.visual.num_grid_per_side,
            torch.nonzero(ids == self._chat.placeholder).squeeze(1),
        )

    def forward(self, collated: ChatBatch) -> FloatMatrix:
        """Return unit rows (n, dim), in order: the hidden states of the last tokens."""
        return self._runtime.unit_rows(self.rows, collated)

    @property
    def runtime(self) -> Runtime:
        """Where the network runs."""
        return self._runtime

    @property
    def network(self) -> torch.nn.Module:
        """The network, whose parameters a trainer may change."""
        return self._network.module

    def rows(self, batch: ChatBatch) -> torch.Tensor:
        """Return rows (n, dim) on the device, not of unit length, of what `collate` made."""
        if batch.slots is None:
            return self._launch(batch)
        return self._record(batch, batch.slots)[: batch.count]

    def _launch(self, batch: ChatBatch) -> torch.Tensor:
        return self._network(batch.ids, batch.positions, batch.packing, batch.last, batch.pictures)


class Chat:
    """Writes the chat around what users give; safe to use from several threads.

    Raises:
        FailedPrecondition: the tokenizer's chat template is another one.
    """

    def __init__(self, tokenizer: Any, max_length: int, max_text_tokens: int) -> None:
        _check_template(tokenizer)

        def fixed(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        before, after = _added_around(tokenizer)
        self._plain = PlainText(tokenizer)
        self._opening = before + fixed(_OPENING)
        self._turn, self._user, self._answer = fixed(_TURN), fixed(_USER), fixed(_ANSWER) + after
        self._picture_start, self.placeholder, self._picture_end = fixed(_PICTURE)
        self._max_length = max_length
        self.max_text_tokens = min(max_text_tokens or max_length, max_length)

    def ids(
        self, instruction: str, picture_tokens: Sequence[int], text: str
    ) -> tuple[list[int], bool]:
        """Return the whole input as ids, and whether the text was cut.

        Raises:
            InputTooLong: see `Qwen3VLEmbedding.prepare`.
        """
        asked = self._plain.ids(_SYSTEM + finished(instruction))
        if instruction.strip():
            check_instruction_length(len(asked), self._max_length)
        head = [*self._opening, *asked, *self._turn]
        if picture_tokens:
            head += self._user
            for count in picture_tokens:
                head += [self._picture_start, *[self.placeholder] * count, self._picture_end]
            said, lead = self._plain.ids(text), 0
        else:
            said, lead = self._plain.ids(_USER + (text or NO_CONTENT)), len(self._user)
        room = self._max_length - len(head) - len(self._answer)
        if room < min(len(said), lead + 1):
            raise InputTooLong(
                "content", f"and its instruction take more than {self._max_length} tokens"
            )
        kept = said[: min(room, lead + self.max_text_tokens)]
        return [*head, *kept, *self._answer], len(kept) < len(said)


def finished(instruction: str) -> str:
    """Return the instruction with a full stop where it ends without punctuation."""
    text = instruction.strip() or DEFAULT_INSTRUCTION
    return text if unicodedata.category(text[-1]).startswith("P") else f"{text}."


def scaled(picture: PIL.Image.Image, path: str) -> PIL.Image.Image:
    """Return the picture with sides that are multiples of 32 and a size within the range.

    The rule is that of `smart_resize` in qwen-vl-utils 0.0.14.

    Raises:
        InvalidImage: the picture is too narrow.
    """
    width, height = picture.size
    if max(width, height) > MAX_RATIO * min(width, height):
        raise InvalidImage(path, f"has a side over {MAX_RATIO} times the other; crop it")
    sides = [max(1, round(side / PATCH)) for side in picture.size]
    pixels = math.prod(sides) * PATCH**2
    if pixels > MAX_PIXELS:
        shrink = math.sqrt(width * height / MAX_PIXELS)
        sides = [math.floor(side / shrink / PATCH) for side in picture.size]
    elif pixels < MIN_PIXELS:
        growth = math.sqrt(MIN_PIXELS / (width * height))
        sides = [math.ceil(side * growth / PATCH) for side in picture.size]
    size = (sides[0] * PATCH, sides[1] * PATCH)
    return picture.resize(size, PIL.Image.Resampling.BICUBIC)


def _picture(data: bytes, path: str) -> PIL.Image.Image:
    return scaled(images.decode(data, path), path)


def load(folder: Path, choice: EncoderChoice) -> Qwen3VLEmbedding:
    """Return the model in `folder`; without its picture tower if only text is to be answered.

    Raises:
        FailedPrecondition: weights are missing, or the folder or device does not suit.
    """
    declare_torchvision_operators()
    import transformers

    runtime = Runtime(choice.device, choice.dtype, choice.threads, compiling=choice.compile)
    text_only = choice.modalities == frozenset({Modality.TEXT})
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    max_length = min(MAX_LENGTH, config.text_config.max_position_embeddings)
    chat = Chat(tokenizer, max_length, choice.max_text_tokens)
    parts = (FAMILY, REVISION, runtime.dtype_name, choice.max_text_tokens)
    info = EncoderInfo(
        name=hub.display_name(choice.model, folder),
        fingerprint=hub.fingerprint_of(folder, FAMILY, parts),
        dim=config.text_config.hidden_size,
        modalities=frozenset({Modality.TEXT}) if text_only else frozenset(Modality),
        max_text_tokens=chat.max_text_tokens,
        follows_instructions=True,
        packs=True,
        passes=runtime.passes,
    )
    if text_only:
        names = {r"^(model\.)?language_model\.": ""}
        network = runtime.read(
            transformers.Qwen3VLTextModel, folder, config=config.text_config, key_mapping=names
        )
        return Qwen3VLEmbedding(
            Qwen3VLNetwork(runtime.placed(network), runtime), chat, runtime, info
        )
    pixels = transformers.AutoImageProcessor.from_pretrained(
        folder, local_files_only=True, backend="pil"
    )
    _check_patches(pixels)
    placed = runtime.placed(runtime.read(transformers.Qwen3VLModel, folder))
    network = Qwen3VLNetwork(placed, runtime, pixels.image_mean, pixels.image_std)
    return Qwen3VLEmbedding(network, chat, runtime, info)


def _picture_work(network: Qwen3VLNetwork) -> float:
    """Return the work on a placeholder's pixels, as a share of that on a token of text.

    Both grow with the parameters: four patches pass the picture tower for each placeholder.
    """

    def parameters(part: Any) -> int:
        return sum(parameter.numel() for parameter in part.parameters())

    return MERGE**2 * parameters(network.visual.blocks) / parameters(network.language.layers)


def _added_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after any text by itself."""
    marked = tokenizer("x")["input_ids"]
    bare = tokenizer("x", add_special_tokens=False)["input_ids"]
    start = marked.index(bare[0])
    return marked[:start], marked[start + len(bare) :]


def _check_template(tokenizer: Any) -> None:
    """Compare the model's own chat template with what `Chat` writes."""
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "!"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
    ]
    expected = f"{_OPENING}{_SYSTEM}!{_TURN}{_USER}{_PICTURE}?{_ANSWER}"
    found = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if found != expected:
        raise FailedPrecondition("the model's chat template is not that of Qwen3-VL-Embedding")


def _check_patches(pixels: Any) -> None:
    if (pixels.patch_size * pixels.merge_size, pixels.merge_size) != (PATCH, MERGE):
        raise FailedPrecondition(f"the model's pictures are not cut into {PATCH} pixels a side")
