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

from mmesh.local.mesh import LocalMesh
from mmesh.local.plan import MeshFailed

LOOK_S = 0.2


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
        raise MeshFailed(f"no mesh runs on {data}; `mmesh up --data {data}` starts one")
    order = ScaleOrder(uuid.uuid4().hex, shards, replicas)
    _place_order(data, order)
    told = 0
    while True:
        is_over = not _is_running(data)
        lines = _report_of(data, order)
        for line in lines[told:]:
            if "error" in line:
                raise MeshFailed(line["error"])
            if "done" in line:
                return
            yield line["line"]
        told = len(lines)
        if is_over:
            raise MeshFailed("the mesh was stopped before it was scaled")
        time.sleep(LOOK_S)


async def carry_out_orders(mesh: LocalMesh) -> None:
    """Do what is ordered, one order after the other, without end."""
    path = _order_path(mesh.settings.data)
    path.unlink(missing_ok=True)  # one that a mesh before this one has left undone
    while True:
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
    _report_path(data).write_text("")

    def report(**line: object) -> None:
        with _report_path(data).open("a") as file:
            file.write(json.dumps({"order": order.id, **line}) + "\n")

    def tell(line: str) -> None:
        mesh.say(line)
        report(line=line)

    try:
        await mesh.scale(order.shards, order.replicas, tell)
    except Exception as failure:  # the mesh must outlive an order, whatever is wrong with it
        known = isinstance(failure, MeshFailed)
        reason = str(failure) if known else f"{type(failure).__name__}: {failure}"
        mesh.say(f"not scaled: {reason}")
        report(error=reason)
    else:
        report(done=True)
    finally:
        _order_path(data).unlink(missing_ok=True)


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
    draft.write_text(json.dumps(asdict(order)))
    try:
        os.link(draft, _order_path(data))  # whole from the first moment, and one at a time
    except FileExistsError:
        raise MeshFailed("the mesh is being scaled already; wait until that is done") from None
    finally:
        draft.unlink()


def _report_of(data: Path, order: ScaleOrder) -> list[dict[str, str]]:
    with contextlib.suppress(FileNotFoundError):
        # The last piece is a line that is being written, or nothing.
        lines = map(json.loads, _report_path(data).read_text().split("\n")[:-1])
        return [line for line in lines if line["order"] == order.id]
    return []


def _order_path(data: Path) -> Path:
    return data / "scale.json"


def _report_path(data: Path) -> Path:
    return data / "scale-report.jsonl"
