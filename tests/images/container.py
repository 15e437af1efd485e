"""A process in the root of an image, as compose would start it, without a container engine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_MOUNTS = """
mount --bind "$0" "$0"
mount -o remount,bind,ro "$0"
mount -t tmpfs -o mode=1777 tmpfs "$0/tmp"
mount --rbind /proc "$0/proc"
mount --rbind /dev "$0/dev"
exec "$@"
"""


@dataclass(frozen=True)
class Container:
    """What images are started in: root read-only, /tmp empty, no privileges that could be got.

    It has the user, the variables and the folder that the image asks for. Of namespaces it has
    that of mounts; network and processes are those of the machine.
    """

    root: Path
    configuration: Mapping[str, Any]

    def start(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        output: IO[Any] | int | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command, by default the entry point; the process that is returned is its own."""
        return subprocess.Popen(
            [*self._sandbox(), *(command or self.configuration["Entrypoint"])],
            env=dict(pair.split("=", 1) for pair in self.configuration["Env"]) | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Run a command; return its exit code and what it printed."""
        process = self.start(*command, env=env, output=subprocess.PIPE)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed

    def _sandbox(self) -> list[str]:
        unshare, shell, setpriv, chroot = map(_program, ("unshare", "sh", "setpriv", "chroot"))
        root, user = str(self.root), self.configuration["User"]
        return [
            unshare, "--mount", "--propagation", "private", shell, "-ec", _MOUNTS, root,
            setpriv, "--no-new-privs",
            chroot, f"--userspec={user}", "--groups=", root,
            "env", "-C", self.configuration["WorkingDir"],
        ]  # fmt: skip


def _program(name: str) -> str:
    """Return the path of a program of this machine: PATH is already that of the image."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert found, name
    return found
