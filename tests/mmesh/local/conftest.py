"""A service of a few lines, beside the real ones: `services` is a namespace package."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmesh.local.plan import Service

ROOT = Path(__file__).parents[3]


@pytest.fixture
def make_service(tmp_path, monkeypatch) -> Callable[..., Service]:
    """Make a service of a name, whose `main()` has this body; `top` is run by its import."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))

    def make(name: str, body: str, *arguments: str, top: str = "") -> Service:
        folder = tmp_path / "services" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        lines = ["import os, signal, sys, threading, time", top, "def main():"]
        lines += [f"    {line}" for line in body.splitlines()]
        lines += ['if __name__ == "__main__":', "    main()"]
        (folder / "__main__.py").write_text("\n".join(lines) + "\n")
        return Service(name, 1, "a.b.Service", arguments)

    return make
