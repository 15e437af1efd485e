"""Answers to the queries of a task, appended to a file as they come, so that a run can go on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from mmesh.content import Modality
from mmesh.evaluation.datasets.dataset import DatasetError
from mmesh.evaluation.whole_files import naming


@dataclass(frozen=True, slots=True)
class Found:
    """A hit."""

    id: str
    score: float
    modality: Modality


@dataclass(frozen=True, slots=True)
class Answer:
    """What the mesh answered to one query, or why it refused it."""

    query: str
    hits: tuple[Found, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds in the gateway by stage, and in `total`."""
    judged: int = 0
    """Hits that the judge scored."""
    outcome: str = ""
    """How much was judged: "full", "partial" or "skipped"; empty when nothing should be."""
    degradations: tuple[str, ...] = ()
    target_source: str = ""
    """Where the modality came from: "requested", "instruction" or "any"."""
    encoder: str = ""
    judge: str = ""
    """Fingerprints of the models."""
    refusal: str = ""
    """Why the mesh did not answer; empty when it did."""

    def as_line(self) -> str:
        """Return a line of JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}  # asdict copies each hit
        values["hits"] = [[one.id, one.score, one.modality.value] for one in self.hits]
        return json.dumps(values) + "\n"

    @classmethod
    def from_line(cls, line: bytes) -> Answer:
        """Return what `as_line` gave.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        values = json.loads(line)
        hits = tuple(Found(name, score, Modality(kind)) for name, score, kind in values["hits"])
        values |= {"hits": hits, "degradations": tuple(values["degradations"])}
        return cls(**values)


class AnswerLog:
    """A file of answers; what was written before a kill is kept, a line that was cut off is not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with naming(self._path):  # what a full disk did not take is tried once more
            self._file.close()

    def _drop_torn_line(self) -> None:
        """Cut off what follows the last line that is whole."""
        if not self._path.exists():
            return
        with self._path.open("rb+") as file:
            whole = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
            file.truncate(whole)

    def append(self, answers: Iterable[Answer]) -> None:
        """Write answers at once.

        Raises:
            OSError: they cannot be written; the next log of this file cuts off what is torn.
        """
        with naming(self._path):
            self._file.write("".join(answer.as_line() for answer in answers))
            self._file.flush()


def read_answers(path: Path) -> dict[str, Answer]:
    """Return the answers of a file by query; a last line that was cut off is none.

    Raises:
        DatasetError: a line is damaged.
    """
    if not path.exists():
        return {}
    found: dict[str, Answer] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                answer = _answer(line, f"{path}:{number}")
                found[answer.query] = answer
    return found


def _answer(line: bytes, where: str) -> Answer:
    try:
        return Answer.from_line(line)
    except (ValueError, KeyError, TypeError) as error:
        problem = "is damaged; without this line its query is asked again"
        raise DatasetError(f"{where} {problem}: {error!r}") from None
