"""Shard set of an overlay: one StatefulSet a shard, written as kustomizations (docs/adr/0022).

The number of shards changes by a new set beside the old one, see `scaling`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HEAD = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
NOTE = "# Written by `mmesh k8s scale`; do not edit.\n"
FOLDER = "shards"
"""The folder of an overlay that has its shard sets."""
NAMESPACE = "mmesh"
MOST_SHARDS = 256
MOST_REPLICAS = 8
"""Up to which an autoscaler goes."""
AUTOSCALERS = ("none", "hpa", "keda")


@dataclass(frozen=True)
class ShardSet:
    """So many shards, each held by so many pods."""

    shards: int
    replicas: int
    autoscaler: str = "none"
    """none, hpa or keda; with one of these `replicas` is the least."""
    namespace: str = NAMESPACE
    """Where the pods are that KEDA asks for; nothing else of a set says so."""

    def write(self, folder: Path, k8s: Path) -> None:
        """Write the set into `folder/N`, in place of what is there.

        Args:
            folder: `shards` of an overlay.
            k8s: the project's folder of that name.
        """
        target = folder / str(self.shards)
        shutil.rmtree(target, ignore_errors=True)
        for shard in range(self.shards):
            place = target / str(shard)
            place.mkdir(parents=True)
            root = os.path.relpath(k8s.resolve(), place.resolve())
            (place / "kustomization.yaml").write_text(self._shard(shard, root))
        (target / "kustomization.yaml").write_text(_list_of(range(self.shards)))

    @classmethod
    def read(cls, folder: Path, shards: int, namespace: str = NAMESPACE) -> ShardSet:
        """Return the set that was written into `folder/N`.

        Args:
            folder: `shards` of an overlay.
            shards: N.
            namespace: of the overlay, and so of a set that names none.
        """
        text = (folder / str(shards) / "0" / "kustomization.yaml").read_text()
        scaler = re.search(r"components/(\w+)/index-shard$", text, re.MULTILINE)
        autoscaler = scaler[1] if scaler else "none"
        replicas = int(_REPLICAS[autoscaler].search(text)[1])  # type: ignore[index]  # we wrote it
        named = _NAMED.search(text)
        return cls(shards, replicas, autoscaler, named[1] if named else namespace)

    def _shard(self, shard: int, root: str) -> str:
        parts = [f"{NOTE}# Shard {shard} of {self.shards}.\n{HEAD}"]
        parts.append(f"resources:\n  - {root}/base/index-shard\n")
        if self.autoscaler != "none":
            parts.append(f"components:\n  - {root}/components/{self.autoscaler}/index-shard\n")
        parts.append(f"nameSuffix: -{self.shards}-{shard}\nlabels:\n  - pairs:\n")
        parts.append(f'      mmesh.dev/shard: "{shard}"\n')
        parts.append(f'      mmesh.dev/shard-count: "{self.shards}"\n    includeSelectors: true\n')
        parts.append(_SIZE[self.autoscaler].format(s=self, shard=shard, most=self._most))
        return "".join(parts)

    @property
    def _most(self) -> int:
        return max(self.replicas, MOST_REPLICAS)


_SIZE = {
    "none": "replicas:\n  - name: mmesh-index\n    count: {s.replicas}\n",
    "hpa": """patches:
  - target:
      kind: HorizontalPodAutoscaler
    patch: |
      - op: replace
        path: /spec/minReplicas
        value: {s.replicas}
      - op: replace
        path: /spec/maxReplicas
        value: {most}
      - op: add
        path: /spec/metrics/0/external/metric/selector/matchLabels/shard
        value: "{shard}"
      - op: add
        path: /spec/metrics/0/external/metric/selector/matchLabels/shard_count
        value: "{s.shards}"
""",
    "keda": """patches:
  - target:
      kind: ScaledObject
    patch: |
      - op: replace
        path: /spec/scaleTargetRef/name
        value: mmesh-index-{s.shards}-{shard}
      - op: replace
        path: /spec/minReplicaCount
        value: {s.replicas}
      - op: replace
        path: /spec/maxReplicaCount
        value: {most}
      - op: replace
        path: /spec/triggers/0/metadata/query
        value: >-
          mmesh:index_searches:demand{{namespace="{s.namespace}",shard="{shard}",shard_count="{s.shards}"}}
""",
}
"""How the number of pods of a shard is said, by autoscaler."""
_REPLICAS = {
    "none": re.compile(r"count: (\d+)"),
    "hpa": re.compile(r"minReplicas\n +value: (\d+)"),
    "keda": re.compile(r"minReplicaCount\n +value: (\d+)"),
}
_NAMED = re.compile(r'namespace="([^"]*)"')


def sizes_of(folder: Path) -> list[int]:
    """Return how many shards the sets in `folder` have, rising."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.is_dir() and path.name.isdecimal())


def write_list(folder: Path) -> list[int]:
    """Write `folder/kustomization.yaml`, a list of the sets that there are; return their sizes."""
    sets = sizes_of(folder)
    (folder / "kustomization.yaml").write_text(_list_of(sets))
    return sets


def _list_of(names: Iterable[int]) -> str:
    return f"{NOTE}{HEAD}resources:\n" + "".join(f'  - "{name}"\n' for name in names)
