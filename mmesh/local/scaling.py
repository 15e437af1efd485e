"""Orders to scale a local mesh, from one process to the one that runs it, as files in its folder.

The order is a file that exists until it is carried out; how that goes is written to another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmesh.local.mesh import ORDER, LocalMesh
from mmesh.local.plan import MeshFailed

LOOK_S = 0.2
_CALM_S = 5.0
"""Until orders are looked for again when that has failed."""


@dataclass(frozen=True, slots=True)
class ScaleOrder:
    """How many shards a mesh shall have, and how many processes each."""

    id: str
    shards: int
    replicas: int


def order_scaling(data: Path, shards: int, replicas: int) -> Iterator[str]:
    """Let the mesh that runs on a folder scale itself; yield a line for every step that it takes.

    Raises:
        MeshFailed: no mesh runs there, it is scaling already, or it could not do it.
    """
    if not _is_running(data):
        raise MeshFailed(
            f"no mesh runs on {data}: give --data of one that does, or start one by "
            f"`mmesh up --data {data}`"
        )
    order = ScaleOrder(uuid.uuid4().hex, shards, replicas)
    _place_order(data, order)
    told = 0
    while True:
        is_over, is_left = not _is_running(data), _is_placed(data, order)
        lines = _report_of(data, order)
        for line in lines[told:]:
            if "error" in line:
                raise MeshFailed(line["error"])
            if "done" in line:
                return
            if "line" in line:
                yield line["line"]
        told = len(lines)
        if is_over:
            raise MeshFailed("the mesh was stopped before it was scaled")
        if not is_left:
            raise MeshFailed("the mesh cannot tell how it went; see what `mmesh up` says")
        time.sleep(LOOK_S)


async def carry_out_orders(mesh: LocalMesh) -> None:
    """Do what is ordered, one order after the other, without end."""
    while True:
        try:
            await _carry_out_next(mesh)
        except Exception as error:  # nobody would see that this task has ended
            mesh.say(f"no orders are taken for {_CALM_S:.0f} s: {_words_of(error)}")
            await asyncio.sleep(_CALM_S)


async def _carry_out_next(mesh: LocalMesh) -> None:
    path = _order_path(mesh.settings.data)
    try:
        order = ScaleOrder(**json.loads(path.read_text()))
    except FileNotFoundError:
        await asyncio.sleep(LOOK_S)
    except (ValueError, TypeError):
        mesh.say(f"{path} is no order; it is removed")
        path.unlink()
    else:
        await _carry_out(mesh, order)


async def _carry_out(mesh: LocalMesh, order: ScaleOrder) -> None:
    data = mesh.settings.data

    def report(mode: str = "a", **line: object) -> None:
        with contextlib.suppress(OSError), _report_path(data).open(mode) as file:
            file.write(json.dumps({"order": order.id, **line}) + "\n")

    def tell(line: str) -> None:
        mesh.say(line)
        report(line=line)

    report("w", begun=True)
    try:
        await mesh.scale(order.shards, order.replicas, tell)
    except Exception as failure:  # the mesh must outlive an order, whatever is wrong with it
        reason = str(failure) if isinstance(failure, MeshFailed) else _words_of(failure)
        mesh.say(f"not scaled: {reason}")
        report(error=reason)
    else:
        report(done=True)
    finally:
        _order_path(data).unlink(missing_ok=True)


def _words_of(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}"


def _is_running(data: Path) -> bool:
    """Tell whether a mesh holds the folder."""
    try:
        with (data / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _place_order(data: Path, order: ScaleOrder) -> None:
    draft = data / f"scale-{order.id}.json"
    try:
        draft.write_text(json.dumps(asdict(order)))
        os.link(draft, _order_path(data))  # whole from the first moment, and one at a time
    except FileExistsError:
        raise MeshFailed("the mesh is being scaled already; wait until that is done") from None
    except OSError as error:
        raise MeshFailed(f"the order cannot be written: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _is_placed(data: Path, order: ScaleOrder) -> bool:
    """Tell whether an order waits or is carried out; its last report is there before it is not."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return ScaleOrder(**json.loads(_order_path(data).read_text())) == order
    return False


def _report_of(data: Path, order: ScaleOrder) -> list[dict[str, Any]]:
    reports = []
    with contextlib.suppress(OSError):
        # The last piece is a line that is being written, or nothing.
        for line in _report_path(data).read_text().split("\n")[:-1]:
            with contextlib.suppress(ValueError):  # what a full disk has left of one
                reports.append(json.loads(line))
    return [report for report in reports if report["order"] == order.id]


def _order_path(data: Path) -> Path:
    return data / ORDER


def _report_path(data: Path) -> Path:
    return data / "scale-report.jsonl"
