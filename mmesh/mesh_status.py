"""Service status: which services of a mesh answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """Whether a service of the mesh answers, and what it serves."""

    name: str
    serving: bool
    detail: str


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """The services of a mesh."""

    services: tuple[ServiceStatus, ...]
    version: str
