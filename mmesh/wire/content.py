"""Content and modalities to protobuf and back."""

from __future__ import annotations

from typing import cast

from mmesh.api.content.v1 import content_pb2
from mmesh.content import Content, Image, Modality, Part, check_parts
from mmesh.errors import InvalidField
from mmesh.wire.enums import by_number, enum_from_pb

_MODALITIES = {
    Modality.TEXT: content_pb2.MODALITY_TEXT,
    Modality.IMAGE: content_pb2.MODALITY_IMAGE,
    Modality.IMAGE_TEXT: content_pb2.MODALITY_IMAGE_TEXT,
}
_MODALITY_OF = by_number(_MODALITIES)


def modality_to_pb(modality: Modality | None) -> content_pb2.Modality.ValueType:
    """Return the wire value; None is unspecified."""
    if modality is None:
        return content_pb2.MODALITY_UNSPECIFIED
    return _MODALITIES[modality]


def modality_from_pb(value: int, path: str = "modality") -> Modality | None:
    """Return the modality, or None when unspecified."""
    return cast("Modality | None", enum_from_pb(_MODALITY_OF, value, path))


def content_to_pb(content: Content) -> content_pb2.Content:
    """Return the message of `content`."""
    return content_pb2.Content(parts=[_part_to_pb(part) for part in content.parts])


def _part_to_pb(part: Part) -> content_pb2.Part:
    if isinstance(part, str):
        return content_pb2.Part(text=part)
    return content_pb2.Part(image=content_pb2.Image(data=part.data, media_type=part.media_type))


def content_from_pb(message: content_pb2.Content, path: str = "content") -> Content:
    """Return the content of `message`; limits are checked by `check_content`.

    Raises:
        InvalidField: it has too many parts to look at, or one is empty.
    """
    check_parts(message.parts, path)
    parts = [_part_from_pb(part, f"{path}.parts[{n}]") for n, part in enumerate(message.parts)]
    return Content(tuple(parts))


def _part_from_pb(message: content_pb2.Part, path: str) -> Part:
    kind = message.WhichOneof("kind")
    if kind == "text":
        return message.text
    if kind == "image":
        return Image(message.image.data, message.image.media_type)
    raise InvalidField(path, "is empty; set its text or its image")
