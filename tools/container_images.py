"""Container images of the services, built from the Containerfile: `make images`.

`Buildah` needs neither a registry nor a daemon: it builds on a Debian that mmdebstrap makes, tagged
as the official Python image, in a storage of its own. The tests use it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
TARGETS = ("gateway", "index", "encoder", "reranker")
"""Those that run on a CPU, in the order of the Containerfile."""
PROGRAMS = ("docker", "podman", "buildah")
DRIVERS = ("overlay", "vfs")
"""How layers are stored; the first that works is taken."""
BASE = "docker.io/library/python:3.11-slim-bookworm"
_SUITE = "bookworm"
_MMDEBSTRAP = (
    "--quiet",
    "--variant=minbase",
    "--include=python3,python3-venv,ca-certificates",
    '--aptopt=Acquire::Retries "1"',
    '--aptopt=Acquire::http::Timeout "20"',
)
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOST_BYTES = 8 << 30
"""Layers of earlier builds that are kept; with more, the next build begins anew."""
_CERTIFICATES = "/etc/pip-certificates.pem"


class ImagesImpossible(Exception):
    """This machine cannot build images; the message says why."""


def image_name(target: str, tag: str = "dev") -> str:
    """Return the name under which compose and the overlay `laptop` know an image."""
    return f"mmesh-{target}:{tag}"


@dataclass
class Buildah:
    """Images in a folder, built by root with chroot isolation."""

    folder: Path
    _command: list[str] = field(default_factory=list, init=False)
    _copies: bool = field(default=False, init=False)
    """Each layer is a copy of all below it, so none are kept."""

    def __post_init__(self) -> None:
        """Look for what it takes, and choose how layers are stored.

        Raises:
            ImagesImpossible: it is not there.
        """
        if os.geteuid() != 0:
            raise ImagesImpossible("it takes root")
        if absent := [
            name for name in ("buildah", "mmdebstrap", "unshare") if not shutil.which(name)
        ]:
            raise ImagesImpossible(f"no {', '.join(absent)}; install buildah and mmdebstrap")
        if _run("unshare", "--mount", "true").returncode:
            raise ImagesImpossible("nothing can be mounted")
        self.folder.mkdir(parents=True, exist_ok=True)
        places = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        for driver in DRIVERS:
            self._command = ["buildah", *places, "--storage-driver", driver]
            self._copies = driver == "vfs"
            if self._call("info").returncode == 0:
                return
        raise ImagesImpossible("buildah can store no layers here")

    def prepare(self) -> None:
        """Make the base unless it is there.

        Raises:
            ImagesImpossible: no mirror of Debian can be reached.
        """
        self("rm", "--all")
        if _bytes_in(self.folder / "storage") > _MOST_BYTES:
            self("rmi", "--all", "--force")
        if self._call("inspect", "--type", "image", BASE).returncode == 0:
            return
        base = self.folder / "base.tar"
        made = _run("mmdebstrap", *_MMDEBSTRAP, _SUITE, base)
        if made.returncode:
            raise ImagesImpossible(f"mmdebstrap makes no base: {_first_error(made.stderr)}")
        container = self("from", "scratch").strip()
        self("add", "--quiet", container, str(base), "/")
        self("config", "--env", f"PATH={_PATH}", "--cmd", "python3", container)
        self("commit", "--quiet", "--rm", container, BASE)
        base.unlink()

    def close(self) -> None:
        """Leave nothing mounted, after builds that failed, too: the folder can be deleted."""
        self._call("rm", "--all")
        _run("umount", "--recursive", self.folder / "storage" / "overlay")

    def build(self, target: str) -> None:
        """Build a target of the Containerfile, with the layers that are there already."""
        options = ["--pull-never", "--format", "docker", "--isolation", "chroot"]
        options += [] if self._copies else ["--layers"]
        self("bud", *options, *self._pip_mounts(), "--target", target, "--tag", image_name(target),
             "--file", str(ROOT / "Containerfile"), str(ROOT))  # fmt: skip

    def _pip_mounts(self) -> list[str]:
        """Let pip reach while it builds what it reaches here; nothing of it gets into an image."""
        known = pip_settings()
        mounts = []
        if certificates := known.pop("cert", None):
            mounts += ["--volume", f"{certificates}:{_CERTIFICATES}:ro"]
            known["cert"] = _CERTIFICATES
        file = self.folder / "pip.conf"
        file.write_text("\n".join(["[global]", *(f"{k} = {v}" for k, v in known.items())]) + "\n")
        return [*mounts, "--volume", f"{file}:/etc/pip.conf:ro"]

    def bytes_of(self, target: str) -> int:
        """Return the size of an image, with its base."""
        with self.root_of(target) as root:
            return _bytes_in(root)

    def configuration(self, target: str) -> dict[str, Any]:
        """Return what an image says of itself: `Env`, `User`, `Entrypoint`, `Healthcheck` ..."""
        said = json.loads(self("inspect", "--type", "image", image_name(target)))
        found: dict[str, Any] = said["Docker"]["config"]
        return found

    def names(self) -> set[str]:
        """Return the names of the images that are there, without a registry."""
        lines = self("images", "--format", "{{.Name}}:{{.Tag}}").splitlines()
        return {line.removeprefix("localhost/") for line in lines}

    @contextmanager
    def root_of(self, target: str) -> Iterator[Path]:
        """Give the files of an image, as those of a new container of it."""
        container = self("from", "--pull-never", image_name(target)).strip()
        try:
            yield Path(self("mount", container).strip())
        finally:
            self("umount", container)
            self("rm", container)

    def __call__(self, *arguments: str) -> str:
        """Run buildah and return what it prints.

        Raises:
            RuntimeError: it fails; with the end of what it said.
        """
        done = self._call(*arguments)
        if done.returncode:
            end = (done.stdout + done.stderr)[-4000:]
            raise RuntimeError(f"buildah {' '.join(arguments)}:\n{end}")
        return done.stdout

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _run(*self._command, *arguments)


def pip_settings() -> dict[str, str]:
    """Return how pip reaches an index on this machine; folders of this machine are left out."""
    wanted = {"index-url", "extra-index-url", "trusted-host", "proxy", "cert"}
    found: dict[str, str] = {}
    for line in _run(sys.executable, "-m", "pip", "config", "list").stdout.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in wanted and "file:" not in value:
            found[key] = value.strip("'")
    return found


def cache_folder() -> Path:
    """Return where images of tests are kept."""
    return Path(os.environ.get("MMESH_CACHE") or Path.home() / ".cache" / "mmesh") / "images"


def available() -> str:
    """Return the first program that can build.

    Raises:
        ImagesImpossible: there is none.
    """
    for name in PROGRAMS:
        if shutil.which(name) and _run(name, "info").returncode == 0:
            return name
    raise ImagesImpossible(f"none of {', '.join(PROGRAMS)} runs here")


@click.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--tag", default="dev", show_default=True)
@click.option("--base", default=BASE, show_default=True, help="Image to build on.")
def main(targets: Sequence[str], tag: str, base: str) -> None:
    """Build images with docker, podman or buildah; by default the four that run on a CPU."""
    try:
        program = available()
    except ImagesImpossible as problem:
        raise click.ClickException(str(problem)) from None
    known = ["--file", "Containerfile", "--build-arg", f"BASE={base}"]
    # Else they write images of the OCI's format, which has no health checks.
    known += [] if program == "docker" else ["--format", "docker", "--layers"]
    for target in targets or TARGETS:
        order = [
            program,
            "build",
            *known,
            "--target",
            target,
            "--tag",
            image_name(target, tag),
            ".",
        ]
        if subprocess.run(order, cwd=ROOT, check=False).returncode:
            sys.exit(1)
    subprocess.run([program, "images", "--filter", "reference=*mmesh-*"], check=True)


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def _first_error(said: str) -> str:
    return next((line for line in said.splitlines() if line.startswith("E: ")), said.strip())


def _bytes_in(folder: Path) -> int:
    counted = _run("du", "--summarize", "--bytes", "--one-file-system", folder).stdout
    return int(counted.split()[0]) if counted else 0


if __name__ == "__main__":
    main()
