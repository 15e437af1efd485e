"""Another number of shards for a mesh on Kubernetes: a new set beside the old one, then without it.

What a mesh uses is asked of its gateways, as `mmesh scale` does on one machine.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmesh.errors import MmeshError
from mmesh.kubernetes.overlay import OverlayFailed, find_k8s
from mmesh.kubernetes.shard_set import FOLDER, ShardSet, sizes_of, write_list
from mmesh.mesh_status import MeshStatus, ServiceRole

LOOK_S = 0.5
_NAMESPACE = re.compile(r"""^namespace: *["']?([-a-z0-9]+)""", re.MULTILINE)
_OWN_SETS = re.compile(rf"^ *- *(\./)?{FOLDER}/? *$", re.MULTILINE)
_SCALERS = {"none": (), "hpa": ("horizontalpodautoscaler",), "keda": ("scaledobject",)}
Ask = Callable[[str], MeshStatus]
"""Asks the gateway at an address for its status."""


@dataclass(frozen=True)
class Overlay:
    """A folder of kustomizations with shard sets."""

    path: Path

    def __post_init__(self) -> None:
        """Raise `OverlayFailed` where there is no overlay."""
        if not self._kustomization.is_file():
            raise OverlayFailed(f"{self.path} has no kustomization.yaml; give --overlay of one")
        if not _OWN_SETS.search(self._kustomization.read_text()):
            raise OverlayFailed(
                f"{self._kustomization} does not list `{FOLDER}` among its resources, so sets "
                "there would be of no effect"
            )

    @property
    def _kustomization(self) -> Path:
        return self.path / "kustomization.yaml"

    @property
    def _sets(self) -> Path:
        return self.path / FOLDER

    @property
    def namespace(self) -> str:
        """Namespace of its objects."""
        found = _NAMESPACE.search(self._kustomization.read_text())
        return found[1] if found else "default"

    @property
    def sizes(self) -> list[int]:
        """How many shards its sets have, rising."""
        return sizes_of(self._sets)

    def set_of(self, shards: int) -> ShardSet:
        """Return the set of so many shards."""
        try:
            return ShardSet.read(self._sets, shards, self.namespace)
        except (OSError, TypeError):
            raise OverlayFailed(
                f"{self._sets / str(shards)} was not written by `mmesh k8s scale`; remove it first"
            ) from None

    def wanted(self, shards: int, replicas: int | None, autoscaler: str | None) -> ShardSet:
        """Return a set as the one of that size is, else as the largest, but for what is given."""
        like = self._like(shards)
        scaler = autoscaler or like.autoscaler
        return ShardSet(shards, replicas or like.replicas, scaler, self.namespace)

    def _like(self, shards: int) -> ShardSet:
        sizes = self.sizes
        if not sizes:
            return ShardSet(shards, 1)
        return self.set_of(shards if shards in sizes else sizes[-1])

    def add(self, added: ShardSet) -> None:
        """Write a set beside the others."""
        self._sets.mkdir(exist_ok=True)
        added.write(self._sets, find_k8s(self.path))
        write_list(self._sets)

    def drop(self, shards: int) -> None:
        """Remove the set of so many shards."""
        shutil.rmtree(self._sets / str(shards))
        write_list(self._sets)

    def apply_command(self) -> list[str]:
        """Return the command that brings the cluster to what the overlay says."""
        return ["kubectl", "apply", "-k", str(self.path)]

    def delete_command(self, gone: ShardSet) -> list[str]:
        """Return the command that deletes what the cluster has of a set; applying does not."""
        kinds = ["statefulset", "poddisruptionbudget", *_SCALERS[gone.autoscaler]]
        return self._delete(kinds, gone.shards)

    def delete_autoscaler_command(self, scaled: ShardSet) -> list[str]:
        """Return the command that deletes the autoscalers of a set, which runs on."""
        return self._delete(_SCALERS[scaled.autoscaler], scaled.shards)

    def _delete(self, kinds: Sequence[str], shards: int) -> list[str]:
        label = f"mmesh.dev/shard-count={shards}"
        return ["kubectl", "delete", "-n", self.namespace, ",".join(kinds), "-l", label]


@dataclass
class Switch:
    """The moment from which every gateway searches a new shard set."""

    shards: int
    replicas: int
    address: str
    ask: Ask
    seen: dict[str, str] = field(default_factory=dict)
    """What each gateway lacks, by address; empty where nothing."""

    @property
    def is_done(self) -> bool:
        """Ask all gateways, and tell whether each searches the whole set."""
        self.seen = {one: self._lack(one) for one in addresses_of(self.address)}
        return not any(self.seen.values())

    def _lack(self, address: str) -> str:
        try:
            status = self.ask(address)
        except MmeshError as error:  # a gateway may be replaced meanwhile
            return error.message
        serving = [
            one.shard
            for one in status.services
            if one.role is ServiceRole.INDEX and one.shard_count == self.shards and one.is_serving
        ]
        whole = sum(serving.count(shard) >= self.replicas for shard in range(self.shards))
        if status.shard_count == self.shards and whole == self.shards:
            return ""
        return (
            f"{whole} of {self.shards} shards have {self.replicas} ready; searches go to the set "
            f"of {status.shard_count}"
        )

    def wait(self, timeout_s: float) -> Iterator[str]:
        """Wait until it is done; yield a line when something has changed.

        Raises:
            OverlayFailed: it takes too long.
        """
        until, told = time.monotonic() + timeout_s, None
        while not self.is_done:
            line = next(f"{one}: {lack}" for one, lack in self.seen.items() if lack)
            if line != told:
                yield line
            told = line
            if time.monotonic() > until:
                raise OverlayFailed(
                    f"not switched after {timeout_s:g} s, {line}; nothing is lost: look at the "
                    "new pods, then wait on with --wait"
                )
            time.sleep(LOOK_S)
        count = len(self.seen)
        yield f"{count} gateway{'s'[: count > 1]} search{'es'[: 2 * (count == 1)]} the new set"


def addresses_of(address: str) -> list[str]:
    """Return the address of each gateway that a name stands for, as `dns:///name:port` does."""
    name, _, port = address.removeprefix("dns:///").rpartition(":")
    if not address.startswith("dns:///"):
        return [address]
    try:
        found = socket.getaddrinfo(name, int(port), type=socket.SOCK_STREAM)
    except OSError as problem:
        raise OverlayFailed(
            f"{name} has no address here ({problem}); from outside the cluster run `kubectl "
            "port-forward` and give its address"
        ) from None
    hosts = sorted({str(one[4][0]) for one in found})
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]


def run(command: Sequence[str]) -> None:
    """Run a command that changes the cluster; its output goes to the terminal.

    Raises:
        OverlayFailed: it is missing, or fails.
    """
    try:
        done = subprocess.run(command, check=False)
    except FileNotFoundError:
        raise OverlayFailed(f"{command[0]} is not installed; leave out --apply") from None
    if done.returncode:
        raise OverlayFailed(f"`{shlex.join(command)}` ended with {done.returncode}")
