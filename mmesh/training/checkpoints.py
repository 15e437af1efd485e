"""Checkpoints: all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mmesh.training.errors import TrainingError

KEPT = 2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a run between two steps."""

    step: int
    """Steps done."""
    digest: str
    """Names configuration and data; another one means another run."""
    parameters: dict[str, Any]
    optimiser: dict[str, Any]
    random: list[Any]
    """Random numbers of each process."""


class Checkpoints:
    """The checkpoints of a stage in a folder; the last two are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            TrainingError: it cannot be written; those before it are kept.
        """
        path = self._folder / f"step-{checkpoint.step:08}.pt"
        part = path.with_suffix(".part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(asdict(checkpoint), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as the latter
            part.unlink(missing_ok=True)
            raise TrainingError(
                f"the checkpoint of step {checkpoint.step} cannot be written: {_reason(error)}; "
                f"{self._advice()}"
            ) from error
        for old in self._paths()[:-KEPT]:
            old.unlink(missing_ok=True)

    def last(self, digest: str) -> Checkpoint | None:
        """Return the last checkpoint of the same run; None when there is none.

        Raises:
            TrainingError: the folder holds those of another run.
        """
        for path in reversed(self._paths()):
            try:
                found = Checkpoint(**torch.load(path, weights_only=True))
            except (OSError, RuntimeError, EOFError, TypeError, ValueError):
                continue  # torn by a crash of the machine; the one before it is whole
            if found.digest != digest:
                raise TrainingError(
                    f"{path} was made with another configuration or other data; "
                    "--restart begins anew"
                )
            return found
        return None

    def forget(self) -> None:
        """Delete all of them."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.pt"))

    def _advice(self) -> str:
        paths = self._paths()
        if not paths:
            return "no checkpoint was written yet"
        return f"the same command goes on from {paths[-1].name} once there is room"


def _reason(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return "the disk is full"
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]
