"""Runs the steps of `make setup-all`, each whether or not one before it failed.

What a step says is shown as it comes. In the end each is listed with its time, and for one that
failed the first errors it told; the exit status is that of the required ones.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

ERRORS, MOST_ERRORS = ("error", "npm error"), 3
HAS_VLLM = (platform.system(), platform.machine()) == ("Linux", "x86_64")


@dataclass(frozen=True)
class Step:
    """A target of the Makefile."""

    target: str
    required: bool
    """Whether it must work; if not, tests that need it are skipped and say so."""


STEPS = (
    Step("setup-vllm", required=HAS_VLLM),
    Step("setup-models", required=True),
    Step("setup-training", required=True),
    Step("setup-mteb", required=True),
    Step("setup-extras", required=True),
    Step("setup-storage", required=False),
    Step("setup-k8s", required=False),
    Step("setup-node", required=False),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    step: Step
    status: int
    seconds: float
    errors: str
    """The first lines of its output that tell an error."""

    def __str__(self) -> str:
        word = "ok" if self.status == 0 else "FAILED" if self.step.required else "absent"
        line = f"  {word:6} {self.step.target:14} {self.seconds:5.0f} s"
        return line if self.status == 0 else f"{line}  {self.errors or 'see above'}"


def run(step: Step, make: str) -> Outcome:
    """Run a step and pass on what it says."""
    print(f"== {step.target}", flush=True)
    start, errors = time.monotonic(), list[str]()
    with subprocess.Popen(
        [make, "--no-print-directory", step.target],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            if line.lower().startswith(ERRORS) and len(errors) < MOST_ERRORS:
                errors.append(line.strip())
    return Outcome(step, running.returncode, time.monotonic() - start, " | ".join(errors))


def main(arguments: Sequence[str]) -> int:
    """Run all steps with the program `make`; return 1 if a required one failed."""
    outcomes = [run(step, *arguments) for step in STEPS]
    print("setup-all:", *outcomes, sep="\n")
    return int(any(one.status and one.step.required for one in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
