"""Shard set of an overlay: one StatefulSet a shard, written as kustomizations (docs/adr/0022).

The number of shards changes by a new set beside the old one: write it, apply, wait for the switch,
drop the old one, apply. Gateways move by themselves as soon as the new set is whole.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

HEAD = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
NOTE = "# Written by `python -m tools.k8s.shards`; do not edit.\n"
ROOT = "../../../../.."
"""The folder k8s, seen from the kustomization of a shard."""
MOST_REPLICAS = 8
"""Up to which an autoscaler goes."""
SWITCHES = "mmesh_gateway_shard_set_switches_total"


@dataclass(frozen=True)
class ShardSet:
    """So many shards, each held by so many pods."""

    shards: int
    replicas: int
    autoscaler: str = "none"
    """none, hpa or keda; with one of these `replicas` is the least."""

    def write(self, folder: Path) -> None:
        """Write the set into `folder/N`, in place of what is there."""
        target = folder / str(self.shards)
        shutil.rmtree(target, ignore_errors=True)
        for shard in range(self.shards):
            place = target / str(shard)
            place.mkdir(parents=True)
            (place / "kustomization.yaml").write_text(self._shard(shard, ROOT))
        (target / "kustomization.yaml").write_text(_list_of(range(self.shards)))

    def _shard(self, shard: int, root: str) -> str:
        parts = [f"{NOTE}# Shard {shard} of {self.shards}.\n{HEAD}"]
        parts.append(f"resources:\n  - {root}/base/index-shard\n")
        if self.autoscaler != "none":
            parts.append(f"components:\n  - {root}/components/{self.autoscaler}/index-shard\n")
        parts.append(f"nameSuffix: -{self.shards}-{shard}\nlabels:\n  - pairs:\n")
        parts.append(f'      mmesh.dev/shard: "{shard}"\n')
        parts.append(f'      mmesh.dev/shard-count: "{self.shards}"\n    includeSelectors: true\n')
        parts.append(_SIZE[self.autoscaler].format(s=self, shard=shard, most=MOST_REPLICAS))
        return "".join(parts)


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
          mmesh:index_searches:demand{{namespace="mmesh",shard="{shard}",shard_count="{s.shards}"}}
""",
}
"""How the number of pods of a shard is said, by autoscaler."""


def write_list(folder: Path) -> list[int]:
    """Write `folder/kustomization.yaml`, a list of the sets that there are; return their sizes."""
    sets = sorted(int(path.name) for path in folder.iterdir() if path.is_dir())
    (folder / "kustomization.yaml").write_text(_list_of(sets))
    return sets


def _list_of(names: range | list[int]) -> str:
    return f"{NOTE}{HEAD}resources:\n" + "".join(f'  - "{name}"\n' for name in names)


def main(arguments: list[str] | None = None) -> None:
    """Write or drop a set of an overlay, and say what comes next."""
    parser = argparse.ArgumentParser(prog="python -m tools.k8s.shards", description=__doc__)
    parser.add_argument("overlay", type=Path, help="folder such as k8s/overlays/production")
    parser.add_argument("--shards", type=int, required=True, help="1 to 256")
    parser.add_argument("--replicas", type=int, default=1, help="pods of each shard")
    parser.add_argument("--autoscaler", choices=sorted(_SIZE), default="none")
    parser.add_argument("--drop", action="store_true", help="remove the set of so many shards")
    given = parser.parse_args(arguments)
    if not 1 <= given.shards <= 256:
        parser.error("--shards is from 1 to 256")
    folder = given.overlay / "shards"
    if given.drop:
        shutil.rmtree(folder / str(given.shards))
    else:
        folder.mkdir(exist_ok=True)
        ShardSet(given.shards, given.replicas, given.autoscaler).write(folder)
    sets = ", ".join(map(str, write_list(folder))) or "no"
    print(f"{given.overlay} has sets of {sets} shards; next:")
    for step in _next_steps(given.overlay, given.shards if given.drop else 0):
        print(f"  {step}")


def _next_steps(overlay: Path, dropped: int) -> list[str]:
    if dropped:
        kinds = "statefulset,poddisruptionbudget,horizontalpodautoscaler"
        return [f"kubectl delete -n mmesh {kinds} -l mmesh.dev/shard-count={dropped}"]
    return [
        f"kubectl apply -k {overlay}",
        f"wait until {SWITCHES} has risen on every gateway, if another set was there before",
        f"python -m tools.k8s.shards {overlay} --drop --shards OLD",
    ]


if __name__ == "__main__":
    main()
