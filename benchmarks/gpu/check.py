"""Measures the encoder and the index's structures on the GPU of this machine, in under 8 minutes.

Each section runs in a process of its own, one after the other, forked from one that has imported
everything; one that fails is reported and the others go on. Models have real sizes and random
weights, so nothing is downloaded:

    benchmarks/gpu/check.sh --out results          # all of it
    benchmarks/gpu/check.sh --only serving-2b      # one section
    benchmarks/gpu/check.sh --device cpu --small   # that the script works, on any machine
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Nothing heavy is imported here: the clients' processes import this module, too.

QWEN_2B, QWEN_8B = "qwen3-vl-embedding-2b", "qwen3-vl-embedding-8b"
SECTIONS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "ceilings": ("ceilings", "measure", {}),
    "passes-2b": ("passes", "measure", {"name": QWEN_2B}),
    "serving-2b": ("serving", "measure", {"name": QWEN_2B, "gated": True}),
    "passes-8b": ("passes", "measure", {"name": QWEN_8B, "dtypes": ("bfloat16",)}),
    "passes-mm-embed": ("passes", "measure", {"name": "mm-embed-7b", "dtypes": ("bfloat16",)}),
    "memory": ("memory", "measure", {"name": QWEN_2B}),
    "faiss": ("vectors", "measure", {}),
    "compiling-2b": ("passes", "measure_compiling", {"name": QWEN_2B}),
    "decoding": ("serving", "decoding", {"name": QWEN_2B}),
    "passes-clip": ("passes", "measure", {"name": "clip-vit-l-14"}),
    "serving-clip": ("serving", "measure", {"name": "clip-vit-l-14", "gated": False}),
    "passes-minilm": ("passes", "measure", {"name": "minilm-l6"}),
    "serving-minilm": ("serving", "measure", {"name": "minilm-l6", "gated": False}),
    "emulated": ("emulated", "measure", {}),
}
"""Module, function and arguments by name, the most wanted first."""
PACKAGES = (
    "torch", "triton", "transformers", "sentence-transformers", "tokenizers", "numpy", "grpcio",
    "protobuf", "uvloop", "faiss-gpu", "faiss-cpu", "nvidia-cudnn-cu13",
)  # fmt: skip
PRELOADED = (
    "torch",
    "sentence_transformers",
    "transformers.models.clip.modeling_clip",
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "transformers.models.bert.modeling_bert",
    "transformers.models.mistral.modeling_mistral",
    "transformers.models.llava_next",
)
FOLDER = Path(__file__).resolve().parent


def main() -> int:
    """Run sections as asked; exit with 1 if a rule is broken or a section fails."""
    options = _parsed()
    begun = time.monotonic()
    about = {"machine": machine(options.device), "versions": versions()}
    for kind, values in about.items():
        print(f"{kind}:", *(f"{k}={v}" for k, v in values.items()), sep="  ", flush=True)
    _preload()
    method = _start_method(options.device)
    print(f"sections: {method}ed after {time.monotonic() - begun:.1f} s", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    path: Path = options.out / f"{options.name}.json"
    report: dict[str, Any] = about | {
        "options": {k: v for k, v in vars(options).items() if not isinstance(v, Path)}
    }
    report["sections"] = {}
    for name in options.only or SECTIONS:
        left = options.budget - (time.monotonic() - begun)
        report["sections"][name] = _run(options, method, name, left)
        report["seconds"] = round(time.monotonic() - begun, 1)
        path.write_text(json.dumps(report, indent=1) + "\n")
    return _print_summary(report, path)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--small", action="store_true", help="sizes that suit a CPU")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rate (default: 5)")
    parser.add_argument("--budget", type=float, default=460.0, help="seconds in all (default: 460)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder for the JSON")
    parser.add_argument("--name", default="gpu_check", help="name of the JSON file")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, help="sections to run")
    return parser.parse_args()


def _preload() -> None:
    """Import what sections need, without touching the device: a fork must find it untouched."""
    from mmesh.models.compat import declare_torchvision_operators

    declare_torchvision_operators()
    for module in PRELOADED:
        importlib.import_module(module)


def _start_method(device: str) -> str:
    """Return `fork` where a fork can use the device: an import may have touched it."""
    if device.startswith("cuda"):
        process = multiprocessing.get_context("fork").Process(target=_touch, args=(device,))
        process.start()
        process.join(60)
        if process.exitcode != 0:
            process.kill()
            return "spawn"
    return "fork"


def _touch(device: str) -> None:
    import torch

    torch.zeros(1, device=device)


def _run(options: argparse.Namespace, method: str, name: str, left: float) -> dict[str, Any]:
    """Run one section and return what it found, with its seconds and error if any."""
    if left < 10:
        return {"rows": [], "gates": [], "error": "left out: the time is up", "seconds": 0.0}
    print(f"\n== {name}", flush=True)
    begun = time.monotonic()
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process: Any = context.Process(target=_section, args=(options, name, theirs))  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    try:
        # What was found last is sent with every row, so a section that is cut off keeps its rows.
        found: dict[str, Any] = {"rows": [], "gates": [], "error": "nothing was measured"}
        while not ours.closed:
            if not ours.poll(max(0.0, left - (time.monotonic() - begun))):
                found["error"] = "the time is up"
                break
            found = ours.recv()
    except EOFError:
        pass
    finally:
        process.join(5)
        process.kill()
    if process.exitcode and not found["error"]:
        found["error"] = f"ended with {process.exitcode}"
    return found | {"seconds": round(time.monotonic() - begun, 1)}


def _section(options: argparse.Namespace, name: str, results: Any) -> None:
    from section import Found, Options

    module, function, arguments = SECTIONS[name]
    found = Found(on_change=lambda: results.send(found.as_json() | {"error": None}))
    error = None
    try:
        measure: Callable[..., None] = getattr(importlib.import_module(module), function)
        measure(Options(options.device, options.small, options.seconds), found, **arguments)
    except Exception as failure:
        traceback.print_exc()
        error = f"{type(failure).__name__}: {failure}"[:500]
    results.send(found.as_json() | {"error": error})
    results.close()


def _print_summary(report: dict[str, Any], path: Path) -> int:
    from section import text_of

    print("\n" + "=" * 100)
    broken = 0
    for name, section in report["sections"].items():
        state = section["error"] or "ok"
        print(f"{name:18} {section['seconds']:6.1f} s  {state}")
        broken += bool(section["error"]) and "left out" not in section["error"]
    for section in report["sections"].values():
        for gate in section["gates"]:
            broken += not gate["passed"]
            mark = "PASS" if gate["passed"] else "FAIL"
            print(f"{mark}  {gate['rule']}  (measured {text_of(gate['value'])})")
    print(f"stored {path.name} after {report['seconds']} s")
    return 1 if broken else 0


def machine(device: str) -> dict[str, Any]:
    """Return what the figures depend on: card, driver, memory, cores."""
    about: dict[str, Any] = {"cores": os.cpu_count(), "system": platform.platform()}
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about["cpu"] = next(one.split(": ")[1] for one in lines if one.startswith("model name"))
    if device.startswith("cuda"):
        command = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        try:
            told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            return about
        card, driver, memory = told.stdout.splitlines()[0].split(", ")
        about |= {"card": card, "driver": driver, "memory": memory}
    return about


def versions() -> dict[str, str]:
    """Return the versions of Python, of what does the work, and of mmesh."""
    found = {"python": platform.python_version(), "commit": os.environ.get("MMESH_COMMIT", "")}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if not found["commit"]:
        command = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty", "--abbrev=10"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        found["commit"] = told.stdout.strip() or "unknown"
    return found


if __name__ == "__main__":
    sys.exit(main())
