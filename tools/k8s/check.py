"""Check of everything in k8s/: `make k8s-check`; nothing is done again while no file changes."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.k8s.manifests import Manifests, Object, Problem, RenderFailed, kubectl_path, render

ROOT = Path(__file__).parents[2]
PASSED = ROOT / ".k8s_cache" / "passed"
"""Holds the hash of what passed last."""
MODULES = ("kubernetes_validate", "cloudcoil", "promql_parser", "grafana_foundation_sdk")
READ = (
    "k8s",
    "tools/k8s",
    "tools/dashboards",
    "docs/reference/metrics.md",
    "docs/reference/settings.md",
    "docs/runbooks",
)


def missing() -> str:
    """Return which tool is not installed; empty when all are."""
    absent = [name for name in MODULES if importlib.util.find_spec(name) is None]
    return ", ".join([*absent, *([] if kubectl_path() else ["kubectl"])])


def combinations() -> list[Path]:
    """Return the folders that are rendered."""
    found = [*(ROOT / "k8s" / "overlays").iterdir(), *(ROOT / "k8s" / "tests").iterdir()]
    return sorted(folder for folder in found if (folder / "kustomization.yaml").is_file())


def check() -> bool:
    """Render and check everything; print what is wrong."""
    state = _hash_of_inputs()
    if PASSED.is_file() and PASSED.read_text() == state:
        return True
    problems = list(_problems())
    for problem in problems:
        print(problem)
    if not problems:
        PASSED.parent.mkdir(exist_ok=True)
        PASSED.write_text(state)
    return not problems


def _hash_of_inputs() -> str:
    paths = [path for name in READ for path in _files(ROOT / name)]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [one for one in path.rglob("*") if one.is_file() and "__pycache__" not in one.parts]


def _problems() -> Iterator[str]:
    from tools.dashboards.files import stale
    from tools.k8s import rules

    if not rules.is_current():
        yield "prometheusrules.yaml is stale: make k8s"
    yield from (f"dashboard {name} is stale: make k8s" for name in stale())
    folders = combinations()
    known: set[str] = set()
    with ThreadPoolExecutor(2) as pool:
        for folder, objects in zip(folders, pool.map(_rendered, folders), strict=True):
            where = folder.relative_to(ROOT)
            found = [objects] if isinstance(objects, str) else problems_of(objects, known)
            yield from (f"{where}: {one}" for one in found)


def _rendered(folder: Path) -> list[Object] | str:
    try:
        return render(folder)
    except RenderFailed as failure:
        return str(failure)


def problems_of(objects: list[Object], known: set[str] | None = None) -> list[Problem]:
    """Return what is wrong with a combination; each distinct object's schema is looked at once.

    Args:
        objects: what was rendered.
        known: objects that passed before; this one's are added.
    """
    from tools.k8s import calls, pods, queries, references, schemas, values

    manifests = Manifests(objects)
    seen = set() if known is None else known
    new = [one for one in objects if repr(one) not in seen]
    bad = [problem for one in new for problem in schemas.problems_of(one)]
    if bad:
        return bad  # the other checks read what a schema promises
    seen.update(map(repr, new))
    rules = (values, references, calls, pods, queries)
    return list(itertools.chain.from_iterable(rule.problems_of(manifests) for rule in rules))


if __name__ == "__main__":
    if absent := missing():
        sys.exit(f"missing: {absent}; `make setup-k8s` installs them")
    sys.exit(not check())
