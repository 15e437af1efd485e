"""Examples from files: pairs in JSONL, data sets that `mmesh evaluate` reads, mined negatives.

    {"query": "sleeping pets", "instruction": "Find a picture.", "positive": {"image": "cat.jpg"},
     "negatives": ["a dog runs", {"id": "c7", "text": "a sofa", "image": "sofa.jpg"}]}

A query and a candidate are a text or an object of `text`, `image` and `id`. A folder is a data set:
its queries, its judgements, and the candidates of its pool that these or mined negatives name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo

from mmesh.errors import MmeshError
from mmesh.evaluation.datasets.dataset import Broken, Dataset, DatasetError, PoolRow
from mmesh.evaluation.datasets.mbeir import PROMPTS
from mmesh.evaluation.datasets.opening import KINDS, Choice, open_dataset
from mmesh.evaluation.datasets.rows import Row, json_rows, text_of
from mmesh.training.errors import TrainingError
from mmesh.training.examples import Example, Item
from mmesh.training.mining.files import read_negatives
from mmesh.training.mining.questions import Question, questions_of_dataset

FOLDER = "folder"
"""Key of the context in which a recipe is read: what its paths are relative to."""


def _beside(path: Path, info: ValidationInfo) -> Path:
    folder: Path = (info.context or {}).get(FOLDER, Path())
    return folder / path


def _one_of(names: Sequence[str], value: str) -> str:
    if value not in names:
        raise ValueError(f"one of {', '.join(map(repr, names))} is due")
    return value


FilePath = Annotated[Path, AfterValidator(_beside)]


_NO_UNICODE = "a text holds a lone surrogate, no Unicode, as where an emoji was cut in two"


@dataclass(frozen=True, slots=True)
class Source:
    """Where examples are."""

    path: FilePath
    """A JSONL file of pairs, or the folder of a data set."""
    split: str = "train"
    kind: Annotated[str, AfterValidator(partial(_one_of, ("", *KINDS)))] = ""
    prompt: Annotated[str, AfterValidator(partial(_one_of, PROMPTS))] = "1"
    negatives: FilePath | None = None
    """What `mmesh negatives` wrote."""
    instruction: str = ""
    """For queries without one of their own."""
    skip_broken: bool = False
    """Leave out what cannot be read, instead of refusing all."""

    @property
    def root(self) -> Path:
        """The folder that the paths of its pictures are relative to."""
        return self.path.parent if self.path.is_file() else self.path


@dataclass
class Loaded:
    """The examples of a source, and what was left out."""

    examples: list[Example]
    broken: list[str] = field(default_factory=list)
    root: Path = Path()
    """Of the source."""

    def digest(self) -> str:
        """Return the SHA-256 of what the examples say, the same wherever their files lie."""
        return digest_of(
            [
                one.id,
                one.query.spelt(self.root),
                [item.spelt(self.root) for item in one.positives],
                [item.spelt(self.root) for item in one.negatives],
                one.instruction,
            ]
            for one in self.examples
        )


def digest_of(rows: Iterable[Any]) -> str:
    """Return the SHA-256 of rows of JSON."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return sha.hexdigest()


def load(source: Source) -> Loaded:
    """Return the examples of a source, in the order of its files.

    Raises:
        TrainingError: a row, positive or picture is missing or broken, unless these are skipped;
            or nothing is left.
    """
    try:
        loaded = _pairs(source) if source.path.is_file() else _dataset(source)
    except DatasetError as error:
        raise TrainingError(str(error)) from None
    except MmeshError as error:
        raise TrainingError(error.message) from None
    loaded = _with_pictures(_with_texts(loaded), source.root)
    _check_broken(source, loaded.broken)
    if not loaded.examples:
        raise TrainingError(f"{source.path} gives no example")
    return loaded


def _check_broken(source: Source, broken: Sequence[str]) -> None:
    if broken and not source.skip_broken:
        raise TrainingError(
            f"{len(broken)} examples of {source.path} cannot be used, such as "
            f"{broken[0]}; mend them, or set skip_broken"
        )


def open_source(source: Source) -> Dataset:
    """Return the data set of a folder.

    Raises:
        DatasetError: it is none, or incomplete.
    """
    choice = Choice(source.split, prompt=source.prompt, instruction=source.instruction)
    return open_dataset(source.path, source.kind, choice)


def same_rows(one: Source, other: Source) -> bool:
    """Tell whether two sources are the same rows of the same files."""
    return one.path.resolve() == other.path.resolve() and _shown(one) == _shown(other)


def _shown(source: Source) -> str:
    """Return what tells the splits of a data set apart; not all have splits."""
    if source.path.is_file():
        return ""
    try:
        return open_source(source).name
    except DatasetError:
        return source.split


def pool_of(
    source: Source, examples: Iterable[Example], broken: list[str] | None = None
) -> Iterator[Item]:
    """Yield all candidates that a query of a source may be searched among, each once.

    What is left out goes to `broken`.

    Raises:
        TrainingError: a candidate cannot be read or has the id of another, unless these are
            skipped; or a file cannot be read.
    """
    rows = _pairs_pool(examples) if source.path.is_file() else _dataset_pool(source)
    for row in rows:
        if isinstance(row, Item):
            yield row
            continue
        reason = f"{row.where}: {row.reason}"
        if not source.skip_broken:
            raise TrainingError(f"{reason}; mend it, or set skip_broken")
        if broken is not None:
            broken.append(reason)


def _pairs_pool(examples: Iterable[Example]) -> Iterator[Item | Broken]:
    seen: set[Item] = set()
    ids: set[str] = set()
    for one in examples:
        for item in (*one.positives, *one.negatives):
            if item in seen:
                continue
            seen.add(item)
            if item.id and item.id in ids:
                yield Broken(one.where, f"the id {item.id!r} was that of another candidate before")
            else:
                ids.add(item.id)
                yield item


def _dataset_pool(source: Source) -> Iterator[Item | Broken]:
    ids: set[str] = set()
    try:
        for row in open_source(source).pool():
            yield row if isinstance(row, Broken) else _candidate(row, ids)
    except DatasetError as error:
        raise TrainingError(str(error)) from None


def _candidate(row: PoolRow, ids: set[str]) -> Item | Broken:
    """Return a row of a pool, unless it has an id of those before or its picture is missing."""
    if row.id in ids:
        return Broken(row.where, f"the id {row.id!r} is in the pool twice")
    ids.add(row.id)
    if row.image is not None and not row.image.is_file():
        return Broken(row.where, f"the picture {row.image} is missing")
    if _is_no_unicode(row.text):
        return Broken(row.where, _NO_UNICODE)
    return Item(row.text, row.image, row.id)


def questions_of(source: Source, broken: list[str] | None = None) -> list[Question]:
    """Return the queries of a data set, each with what answers it, once.

    What is left out goes to `broken`.

    Raises:
        TrainingError: a row cannot be read or a query has no answer, unless these are skipped; or
            a file cannot be read.
    """
    try:
        questions, left_out = _questions(source)
    except DatasetError as error:
        raise TrainingError(str(error)) from None
    _check_broken(source, left_out)
    if broken is not None:
        broken += left_out
    return questions


def _questions(source: Source) -> tuple[list[Question], list[str]]:
    """Return the queries, and what is broken."""
    questions: list[Question] = []
    broken: dict[str, None] = {}
    for one in questions_of_dataset(open_source(source)):
        if isinstance(one, Broken):
            broken[f"{one.where}: {one.reason}"] = None
        elif _is_no_unicode(one.query.text + one.query.instruction):
            broken[f"{one.query.where}: {_NO_UNICODE}"] = None
        else:
            questions.append(one)
    return questions, list(broken)


def _with_texts(loaded: Loaded) -> Loaded:
    """Leave out examples whose texts no model can be given."""
    kept, broken = [], list(loaded.broken)
    for one in loaded.examples:
        items = (one.query, *one.positives, *one.negatives)
        if any(map(_is_no_unicode, (one.instruction, *(item.text for item in items)))):
            broken.append(f"{one.where}: {_NO_UNICODE}")
        else:
            kept.append(one)
    return Loaded(kept, broken)


def _is_no_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _with_pictures(loaded: Loaded, root: Path) -> Loaded:
    """Leave out examples whose pictures are not there."""
    there: dict[Path, bool] = {}

    def gone(item: Item) -> bool:
        if item.image is None:
            return False
        if item.image not in there:
            there[item.image] = item.image.is_file()
        return not there[item.image]

    kept, broken = [], list(loaded.broken)
    for one in loaded.examples:
        missing = [i for i in (one.query, *one.positives, *one.negatives) if gone(i)]
        if missing:
            broken.append(f"{one.where}: the picture {missing[0].image} is missing")
        else:
            kept.append(one)
    return Loaded(kept, broken, root)


def _pairs(source: Source) -> Loaded:
    loaded = Loaded([])
    for row in json_rows(source.path):
        try:
            if isinstance(row, Broken):
                raise ValueError(row.reason)
            loaded.examples.append(_pair(row, source))
        except ValueError as error:
            loaded.broken.append(f"{row.where}: {error}")
    return loaded


def _pair(row: Row, source: Source) -> Example:
    values, folder = row.values, source.path.parent
    if "query" not in values:
        raise ValueError("has no query")
    positives = _items(values.get("positive") or values.get("positives") or [], folder)
    if not positives:
        raise ValueError("has no positive")
    name = str(values.get("id") or row.where.rpartition(":")[2])
    asked = text_of(values.get("instruction")) or source.instruction
    negatives = _items(values.get("negatives") or [], folder)
    return Example(name, _item(values["query"], folder), positives, negatives, asked, row.where)


def _items(values: Any, folder: Path) -> tuple[Item, ...]:
    several = values if isinstance(values, list) else [values]
    return tuple(_item(one, folder) for one in several)


def _item(value: Any, folder: Path) -> Item:
    given: Mapping[str, Any] = value if isinstance(value, dict) else {"text": value}
    text, image = text_of(given.get("text")), text_of(given.get("image"))
    if not text and not image:
        raise ValueError("holds a query or candidate without text and image")
    return Item(text, folder / image if image else None, str(given.get("id") or ""))


def _dataset(source: Source) -> Loaded:
    mined = _mined(source.negatives) if source.negatives else {}
    questions, broken = _questions(source)
    if mined and not any(one.query.id in mined for one in questions):
        raise TrainingError(f"{source.negatives} has no query of {source.path}")
    named = {name for one in questions for name in one.positives}
    named |= {name for names in mined.values() for name in names}
    items = _named(source, named)
    loaded = Loaded([], broken)
    for one in questions:
        try:
            loaded.examples.append(_example(one, items, mined.get(one.query.id, ())))
        except KeyError as error:
            loaded.broken.append(f"{one.query.where}: the candidate {error} is not in the pool")
    if source.instruction:
        loaded.examples = [
            one if one.instruction else replace(one, instruction=source.instruction)
            for one in loaded.examples
        ]
    return loaded


def _named(source: Source, names: set[str]) -> dict[str, Item]:
    """Return those candidates of the pool that have one of the names."""
    rows = open_source(source).pool()
    return {
        row.id: Item(row.text, row.image, row.id)
        for row in rows
        if not isinstance(row, Broken) and row.id in names
    }


def _example(one: Question, items: Mapping[str, Item], negatives: tuple[str, ...]) -> Example:
    query = one.query
    return Example(
        query.id,
        Item(query.text, query.image),
        tuple(items[name] for name in one.positives),
        tuple(items[name] for name in negatives),
        query.instruction,
        query.where,
    )


def _mined(path: Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for row in read_negatives(path):
        if row.query in found:
            problem = "several queries have this id, so whose negatives these are is not known"
            raise TrainingError(f"{path}: {row.query!r}: {problem}")
        found[row.query] = row.negatives
    return found
