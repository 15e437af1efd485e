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

import PIL.Image
import torch

from mmesh.content import Content, Image, Modality, Role
from mmesh.errors import FailedPrecondition, InputTooLong, InvalidField, InvalidImage
from mmesh.models import hub, images
from mmesh.models.compat import declare_torchvision_operators
from mmesh.models.families import EncoderChoice
from mmesh.models.plain_text import PlainText
from mmesh.models.protocol import EncoderInfo, FloatMatrix, Prepared
from mmesh.models.torch_runtime import Runtime, unit

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

    ids: list[int] = field(repr=False)
    """Token ids, with one placeholder for each 32 x 32 pixels of a picture."""
    pictures: tuple[PIL.Image.Image, ...] = field(repr=False)
    """Scaled pictures in RGB; as floats they take eight times the memory."""


class Qwen3VLEmbedding:
    """Implements `EncoderModel`; `pixels` is the model's image processor, None for texts only."""

    def __init__(
        self, network: Any, chat: Chat, pixels: Any, runtime: Runtime, info: EncoderInfo
    ) -> None:
        self._network = network
        self._chat = chat
        self._pixels = pixels
        self._runtime = runtime
        self._info = info
        self._picture_work = _picture_work(network) if pixels is not None else 0.0

    @property
    def info(self) -> EncoderInfo:
        """Name, fingerprint, dim and limits; constant."""
        return self._info

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """Decode and scale the pictures, write the chat; thread-safe.

        Raises:
            InvalidImage: a picture cannot be decoded, or is too narrow.
            InputTooLong: the pictures leave no room for the text, or do not fit at all.
        """
        del role  # The instruction alone tells queries from candidates.
        if content.images and self._pixels is None:
            raise InvalidField("content", "holds a picture; this encoder was opened for text")
        pictures = tuple(
            _picture(part.data, f"content.parts[{number}].image.data")
            for number, part in enumerate(content.parts)
            if isinstance(part, Image)
        )
        tokens = [picture.width * picture.height // PATCH**2 for picture in pictures]
        ids, truncated = self._chat.ids(instruction, tokens, content.text)
        cost = len(ids) + math.ceil(self._picture_work * sum(tokens))
        return Prepared("chat", cost, ChatInput(ids, pictures), truncated)

    def collate(self, batch: Sequence[Prepared]) -> dict[str, torch.Tensor]:
        """Pad on the right, where causal attention cannot see it, and stack pixels; thread-safe."""
        inputs: list[ChatInput] = [prepared.payload for prepared in batch]
        lengths = torch.tensor([len(one.ids) for one in inputs])
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(one.ids) for one in inputs], batch_first=True
        )
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        tensors = {"input_ids": ids, "attention_mask": mask.long(), "last": lengths - 1}
        if pictures := [picture for one in inputs for picture in one.pictures]:
            tensors |= self._pixels(images=pictures, do_resize=False, return_tensors="pt")
            # Here and not in the network, where it would hold the device up.
            tensors["position_ids"], _ = self._network.get_rope_index(
                ids,
                (ids == self._chat.placeholder).int(),
                tensors["image_grid_thw"],
                attention_mask=tensors["attention_mask"],
            )
        return tensors

    def forward(self, collated: dict[str, torch.Tensor]) -> FloatMatrix:
        """Return unit rows (n, dim), in order: the hidden states of the last tokens."""
        with self._runtime.forward_pass():
            tensors = self._runtime.moved(collated)
            last = tensors.pop("last")
            hidden = self._network(**tensors, use_cache=False).last_hidden_state
            return unit(hidden[torch.arange(len(last), device=hidden.device), last])


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
        head = [*self._opening, *self._plain.ids(_SYSTEM + finished(instruction)), *self._turn]
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

    runtime = Runtime(choice.device, choice.dtype, choice.threads, compile_network=choice.compile)
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
    )
    if text_only:
        names = {r"^(model\.)?language_model\.": ""}
        network = runtime.read(
            transformers.Qwen3VLTextModel, folder, config=config.text_config, key_mapping=names
        )
        return Qwen3VLEmbedding(runtime.placed(network), chat, None, runtime, info)
    pixels = transformers.AutoImageProcessor.from_pretrained(
        folder, local_files_only=True, backend="pil"
    )
    _check_patches(pixels)
    network = runtime.read(transformers.Qwen3VLModel, folder)
    return Qwen3VLEmbedding(runtime.placed(network), chat, pixels, runtime, info)


def _picture_work(network: Any) -> float:
    """Return the work on a placeholder's pixels, as a share of that on a token of text.

    Both grow with the parameters: four patches pass the picture tower for each placeholder.
    """

    def parameters(part: Any) -> int:
        return sum(parameter.numel() for parameter in part.parameters())

    patches = int(network.visual.spatial_merge_size) ** 2
    return patches * parameters(network.visual.blocks) / parameters(network.language_model.layers)


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
    if pixels.patch_size * pixels.merge_size != PATCH:
        raise FailedPrecondition(f"the model's pictures are not cut into {PATCH} pixels a side")
