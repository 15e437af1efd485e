"""Prompt templates for judges: TOML files, versioned by name and identified by hash.

A template is one file, or a folder with `base.toml` and one file per task family of M-BEIR, such as
`image_text-to-text.toml`, which puts other words in the base's place. Nothing here knows a model:
`mmesh.models.judges.zero_shot` turns a template into token ids.
"""

from __future__ import annotations

import dataclasses
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
_BASE = "base"

TaskFamily = tuple[Modality, Modality]
"""The modalities of query and candidate."""


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


@dataclass(frozen=True, slots=True)
class TemplateSet:
    """A template for each task family; those that have none of their own share `base`."""

    base: Template
    by_task: Mapping[TaskFamily, Template]
    sha256: str
    """Of one file, or for a folder what `sha256sum *.toml | sha256sum` prints in it."""

    @property
    def identity(self) -> str:
        """Name, version and hash, such as `mbeir@1:abcdef123456`."""
        return f"{self.base.name}@{self.base.version}:{self.sha256[:12]}"

    def choose(self, query: Modality, candidate: Modality) -> Template:
        """Return the template that asks about such a pair in fitting words."""
        return self.by_task.get((query, candidate), self.base)


def template_names() -> list[str]:
    """Return the names of the templates that come with mmesh, such as `mbeir.v1`."""
    return sorted(path.name.removesuffix(".toml") for path in _FOLDER.iterdir())


def load_template_set(name: str | Path) -> TemplateSet:
    """Read templates that come with mmesh by their name, or any by the path of a file or folder.

    Raises:
        InvalidField: there are no such templates, or they have a fault; the field is named.
    """
    path = _path(name)
    try:
        if path.is_dir():
            return _parse_folder({file.stem: file.read_bytes() for file in path.glob("*.toml")})
        template = parse_template(path.read_bytes())
    except OSError as error:
        raise InvalidField("template", f"cannot be read: {error}") from error
    return TemplateSet(template, {}, template.sha256)


def load_template(name: str | Path) -> Template:
    """Return the template for pairs that have none of their own; see `load_template_set`."""
    return load_template_set(name).base


def parse_template(data: bytes) -> Template:
    """Read a template from the bytes of a TOML file.

    Raises:
        InvalidField: the file has a fault; the field is named.
    """
    table = _table(data)
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


def _path(name: str | Path) -> Path:
    if str(name) in template_names():
        path = _FOLDER / str(name)
        return path if path.is_dir() else _FOLDER / f"{name}.toml"
    path = Path(name)
    if path.suffix != ".toml" and not path.is_dir():
        known = ", ".join(template_names())
        raise InvalidField("template", f"{str(name)!r} is unknown; give a path or one of: {known}")
    return path


def _parse_folder(files: Mapping[str, bytes]) -> TemplateSet:
    """Read `files` by their names without `.toml`."""
    if _BASE not in files:
        raise InvalidField("template", f"is a folder without {_BASE}.toml")
    base = parse_template(files[_BASE])
    tasks = {name: data for name, data in files.items() if name != _BASE}
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}.toml\n" for name in sorted(files))
    return TemplateSet(
        base,
        {_task_family(name): _reworded(base, data) for name, data in tasks.items()},
        hashlib.sha256("".join(lines).encode()).hexdigest(),
    )


def _task_family(name: str) -> TaskFamily:
    query, _, candidate = name.partition("-to-")
    try:
        return Modality(query), Modality(candidate)
    except ValueError:
        known = ", ".join(modality.value for modality in Modality)
        raise InvalidField(
            "template", f"has {name}.toml, which is not QUERY-to-CANDIDATE.toml of: {known}"
        ) from None


def _reworded(base: Template, data: bytes) -> Template:
    """Return `base` with the words for one task family: its instruction and its user text."""
    table = _table(data)
    if extra := table.keys() - {"instruction", "user"}:
        raise InvalidField(f"template.{min(extra)}", f"belongs into {_BASE}.toml")
    words = {key: _get(table, key, str).strip() for key in ("instruction", "user")}
    _check_slots(words["user"])
    return dataclasses.replace(base, **words, sha256=hashlib.sha256(data).hexdigest())


def _table(data: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except ValueError as error:
        raise InvalidField("template", f"is not valid TOML: {error}") from error


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
