"""The recipe: a TOML file that says what is trained on what, stage by stage."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from mmesh.training.errors import TrainingError
from mmesh.training.learners.learner import Adapting
from mmesh.training.sources import FOLDER, FilePath, Source, same_rows

BASE, STAGES, WORK, EVENTS = "base", "stages", "work", "events"
RESERVED = {BASE, STAGES, WORK, EVENTS}
"""Folders of a run that hold no result."""
_SEPARATORS = {"/", "\\", "\0"}
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
Above0 = Annotated[FiniteFloat, Field(gt=0)]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: from a model, on data, for some steps."""

    name: str
    data: Mapping[str, Above0]
    """Weights of data sets by name."""
    begin: str = BASE
    """`base`, or the name of a stage before it."""
    epochs: Above0 = 1.0
    steps: Amount = 0
    """In place of epochs."""
    batch: Count = 64
    negatives: Amount = 0
    """Hard negatives of each query."""
    mine: bool = False
    """Mine them now, with the model of the stage before, exactly."""
    mine_margin: Above0 | None = None
    mixed: bool = True
    """Mix data sets in each batch; else each batch is of one."""
    learning_rate: Above0 = 1e-4
    warmup: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] = 0.01
    clip: Above0 = 1.0
    temperature: Above0 = 0.05
    learn_temperature: bool = False
    chunk: Amount = 0
    checkpoint_every: Count = 100
    max_text_tokens: Amount = 0


@dataclass(frozen=True, slots=True)
class Evaluating:
    """How held-out data are measured."""

    mesh: bool = False
    """Through a local mesh that serves the model; else by exact search in this process."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All of a training run."""

    out: FilePath
    """Folder of the run; a folder in it, called like the model, is what came out."""
    data: Mapping[str, Source]
    stages: tuple[Stage, ...]
    model: str = "lite"
    """`lite`, a folder, or `hf:ORG/NAME[@REVISION]`."""
    family: str = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    reads_instructions: bool = True
    """`lite` and CLIP read the instruction before the text; other families do as they are made."""
    gradient_checkpointing: bool = False
    """Compute layers again on the way back, instead of keeping what they held."""
    device: str = "cpu"
    dtype: str = "auto"
    threads: Count = 2
    adapters: Adapting = field(default_factory=Adapting)
    held_out: Mapping[str, Source] = field(default_factory=dict)
    """Data sets that each stage is measured on; in a file their split is `test` unless it says."""
    evaluate: Evaluating = field(default_factory=Evaluating)
    name: str = ""
    """What to call the trained model; empty: as the folder of the run."""

    @property
    def result(self) -> Path:
        """The folder that is served in the end."""
        return self.out / self._called

    @property
    def written(self) -> list[Path]:
        """The folders that a run writes, and deletes to begin anew."""
        return [self.out / part for part in (*sorted(RESERVED), self._called)]

    @property
    def _called(self) -> str:
        return self.name or self.out.resolve().name


_RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)
_TABLES = {"stages": Stage, "data": Source, "held_out": Source, "adapters": Adapting,
           "evaluate": Evaluating}  # fmt: skip


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a TOML file; paths in it are relative to the file.

    Raises:
        TrainingError: it cannot be read, or says something that is not known.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read: {error}") from None
    try:
        recipe = _RECIPE.validate_json(
            json.dumps(values, default=str),
            strict=True,
            extra="forbid",
            context={FOLDER: path.parent},
        )
    except ValidationError as error:
        raise TrainingError(f"{path}: {_said(error)}") from None
    held_out = {
        name: source if "split" in values["held_out"][name] else replace(source, split="test")
        for name, source in recipe.held_out.items()
    }
    recipe = replace(recipe, held_out=held_out)
    if not Path(recipe.model).exists() and (path.parent / recipe.model).is_dir():
        recipe = replace(recipe, model=str(path.parent / recipe.model))
    _check(recipe)
    return recipe


def _said(error: ValidationError) -> str:
    """Return the first thing that is wrong with a recipe, and where."""
    wrong = error.errors()[0]
    place, key = wrong["loc"][:-1], wrong["loc"][-1]
    where = ".".join(str(one + 1) if isinstance(one, int) else one for one in place)
    match wrong["type"]:
        case "unexpected_keyword_argument":
            kind = _TABLES[str(place[0])] if place else Recipe
            known = sorted(one.name for one in fields(kind))
            said = f"{key!r} is not known; known: {', '.join(known)}"
        case "missing":
            said = f"{key!r} is missing"
        case _:
            said = f"{key!r} is {wrong['input']!r}. {wrong['msg']}"
    return f"{where}: {said}" if where else said


def _check(recipe: Recipe) -> None:
    if not recipe.stages:
        raise TrainingError("the recipe has no stage")
    _check_folders(recipe)
    _check_apart(recipe)
    before = [BASE]
    for stage in recipe.stages:
        unknown = sorted(stage.data.keys() - recipe.data.keys())
        if unknown or not stage.data:
            raise TrainingError(f"stage {stage.name!r}: there is no data {unknown or ''}")
        if stage.begin not in before:
            raise TrainingError(f"stage {stage.name!r} begins with {stage.begin!r}, not one before")
        if stage.name in before or not stage.name.replace("-", "").isalnum():
            raise TrainingError(f"stage {stage.name!r} needs a name of its own, letters and digits")
        if stage.mine and not stage.negatives:
            raise TrainingError(f"stage {stage.name!r} mines negatives and takes none of them")
        before.append(stage.name)


def _check_folders(recipe: Recipe) -> None:
    """Refuse a result, and data, where a run would delete what is not its own."""
    name = recipe.name or recipe.out.resolve().name
    if name in RESERVED or not name or name.startswith(".") or _SEPARATORS & set(name):
        raise TrainingError(f"a model cannot be called {name!r}; give it another `name`")
    for where, sources in (("data", recipe.data), ("held_out", recipe.held_out)):
        for key, source in sources.items():
            for path in filter(None, (source.path, source.negatives)):
                if any(lies_in(path, folder) for folder in recipe.written):
                    raise TrainingError(f"{where}.{key}: the run itself writes where {path} lies")


def _check_apart(recipe: Recipe) -> None:
    """Refuse to measure on what is trained on."""
    for name, held in recipe.held_out.items():
        for other, source in recipe.data.items():
            if same_rows(held, source):
                raise TrainingError(
                    f"held_out.{name} holds the rows of data.{other}; figures on what was trained "
                    "on say nothing: name another `path` or `split`"
                )


def lies_in(path: Path, folder: Path) -> bool:
    """Tell whether a path is a folder, or below it, whatever links lead there."""
    return path.resolve().is_relative_to(folder.resolve())
