"""Manifests: what kustomize renders, and how objects and pods are found in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


class RenderFailed(Exception):
    """kustomize refuses a folder; the message is what it says."""


def kubectl_path() -> str | None:
    """Return the path of kubectl: of this environment, else of the machine; None without."""
    return shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")


def render(folder: Path) -> list[Object]:
    """Return the objects that `kubectl apply -k FOLDER` would send.

    Raises:
        RenderFailed: the folder is no valid kustomization.
    """
    command = [kubectl_path() or "kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RenderFailed(done.stderr.strip())
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [one for one in yaml.load_all(done.stdout, loader) if one]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with which object."""

    where: str
    what: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Pod:
    """The pods of a workload."""

    owner: Object
    spec: Object
    labels: dict[str, str]

    @property
    def containers(self) -> list[Object]:
        """Containers, those that run before the others included."""
        return [*self.spec.get("initContainers", ()), *self.spec.get("containers", ())]

    @cached_property
    def ports(self) -> dict[int | str, int]:
        """Ports of all containers, by number and by name."""
        ports = [port for one in self.containers for port in one.get("ports", ())]
        numbers: dict[int | str, int] = {p["containerPort"]: p["containerPort"] for p in ports}
        return numbers | {p["name"]: p["containerPort"] for p in ports if "name" in p}

    def matches(self, labels: dict[str, str] | None) -> bool:
        """Tell whether a selector with these labels picks the pods."""
        return (labels or {}).items() <= self.labels.items()


@dataclass(frozen=True)
class Manifests:
    """The objects of one combination."""

    objects: Sequence[Object]

    def of(self, *kinds: str) -> Iterator[Object]:
        """Yield the objects of some kinds."""
        return (one for one in self.objects if one.get("kind") in kinds)

    def has(self, kind: str, name: str) -> bool:
        """Tell whether there is an object."""
        return any(name_of(one) == name for one in self.of(kind))

    @cached_property
    def pods(self) -> list[Pod]:
        """The pods of all workloads."""
        found = []
        for owner in self.of(*WORKLOADS):
            template = owner.get("spec", {}).get("template", {})
            labels = template.get("metadata", {}).get("labels", {})
            found.append(Pod(owner, template.get("spec", {}), labels))
        return found

    def picked(self, labels: dict[str, str] | None) -> list[Pod]:
        """Return the pods that a selector picks."""
        return [pod for pod in self.pods if pod.matches(labels)]


def name_of(one: Object) -> str:
    """Return the name of an object."""
    return str(one.get("metadata", {}).get("name", ""))


def place(one: Object) -> str:
    """Return kind and name of an object."""
    return f"{one.get('kind')}/{name_of(one)}"
