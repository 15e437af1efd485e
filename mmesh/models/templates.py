"""Prompt templates for judges: TOML files, versioned by name and identified by hash.

Nothing here knows a model: `mmesh.models.prompts` turns a template into token ids.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmesh.content import Modality
from mmesh.errors import InvalidField

SLOTS = ("instruction", "query", "candidate")
_FOLDER = Path(__file__).with_name("templates")


@dataclass(frozen=True, slots=True)
class Template:
    """How a judge is asked, and how far its answer counts."""

    name: str
    version: int
    system: str
    user: str
    """Holds `{instruction}`, `{query}` and `{candidate}`, once each and in this order."""
    instruction: str
    """Stands in when the request has none."""
    answer_true: str
    answer_false: str
    weights: Mapping[Modality, float]
    compares_modalities: bool
    note: str
    sha256: str
    """Of the file's bytes, so `sha256sum` can check it."""

    @property
    def identity(self) -> str:
        """Name, version and hash, such as `true-false@1:abcdef123456`."""
        return f"{self.name}@{self.version}:{self.sha256[:12]}"

    def filled(self, slots: Mapping[str, str]) -> str:
        """Return the user text with each slot replaced; what is put in is not searched again."""
        text = self.user
        pieces = []
        for slot in SLOTS:
            before, _, text = text.partition("{" + slot + "}")
            pieces += [before, slots[slot]]
        return "".join([*pieces, text])


def template_names() -> list[str]:
    """Return the names of the templates that come with mmesh, such as `true-false.v1`."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_template(name: str | Path) -> Template:
    """Read a template that comes with mmesh by its name, or any by a path that ends in `.toml`.

    Raises:
        InvalidField: there is no such template, or it has a fault; the field is named.
    """
    given = str(name).endswith(".toml")
    path = Path(name) if given else _FOLDER / f"{name}.toml"
    if not given and str(name) not in template_names():
        known = ", ".join(template_names())
        raise InvalidField("template", f"{str(name)!r} is unknown; give a path or one of: {known}")
    try:
        return parse_template(path.read_bytes())
    except OSError as error:
        raise InvalidField("template", f"cannot be read: {error}") from error


def parse_template(data: bytes) -> Template:
    """Read a template from the bytes of a TOML file.

    Raises:
        InvalidField: the file has a fault; the field is named.
    """
    try:
        table = tomllib.loads(data.decode())
    except ValueError as error:
        raise InvalidField("template", f"is not valid TOML: {error}") from error
    answers = _get(table, "answers", dict)
    template = Template(
        name=_get(table, "name", str),
        version=_get(table, "version", int),
        system=_get(table, "system", str).strip(),
        user=_get(table, "user", str).strip(),
        instruction=_get(table, "instruction", str).strip(),
        answer_true=_get(answers, "true", str, "answers."),
        answer_false=_get(answers, "false", str, "answers."),
        weights=_weights(_get(table, "weights", dict)),
        compares_modalities=_get(table, "compares_modalities", bool),
        note=_get(table, "note", str).strip(),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    _check_slots(template.user)
    if template.answer_true == template.answer_false:
        raise InvalidField("template.answers", "are equal; give two words")
    return template


def _get(table: Mapping[str, Any], key: str, kind: type, prefix: str = "") -> Any:
    value = table.get(key)
    if type(value) is not kind:
        raise InvalidField(f"template.{prefix}{key}", f"is missing or not of type {kind.__name__}")
    return value


def _weights(table: Mapping[str, Any]) -> Mapping[Modality, float]:
    weights = {}
    for modality in Modality:
        share = table.get(modality.value)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise InvalidField(f"template.weights.{modality.value}", "is missing or not in 0..1")
        weights[modality] = float(share)
    return weights


def _check_slots(user: str) -> None:
    places = [user.find("{" + slot + "}") for slot in SLOTS]
    once = all(user.count("{" + slot + "}") == 1 for slot in SLOTS)
    if not once or places != sorted(places):
        wanted = ", ".join("{" + slot + "}" for slot in SLOTS)
        raise InvalidField("template.user", f"must hold {wanted}, once each and in this order")
