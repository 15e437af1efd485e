"""An overlay from a capacity plan: kustomizations that render to the pods that it says."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from mmesh.capacity import Gpu, Plan
from mmesh.capacity.planning import Pods
from mmesh.kubernetes.shard_set import FOLDER, HEAD, ShardSet, write_list

MIB, GIB = 1 << 20, 1 << 30
REGISTRY = "registry.example.com"
NUMBERS = "numbers"
"""The folder of an overlay that has the numbers of its pods.

A component of its own, the first one: `replicas` of an overlay would come after a component with
autoscalers, which takes the numbers out, and each `kubectl apply` would set them back.
"""
BLOBS = "s3://your-bucket/mmesh?region=eu-central-1"
"""What the reader of an overlay has to change, beside the registry."""
SCRATCH_SPARE = 2
"""GiB of disk beside segments: what the base allows for /tmp and logs."""
GPU_IMAGES = ("encoder-gpu", "reranker-gpu")


class OverlayFailed(Exception):
    """An overlay cannot be written or changed; the message says what to do."""


def find_k8s(start: Path) -> Path:
    """Return the project's folder `k8s`, in a folder or in one above.

    Raises:
        OverlayFailed: there is none.
    """
    for folder in (start.resolve(), *start.resolve().parents):
        for found in (folder, folder / "k8s"):
            if (found / "base" / "index-shard" / "kustomization.yaml").is_file():
                return found
    raise OverlayFailed(
        f"no folder k8s of mmesh is in {start} or above; overlays build on it, so write them "
        "into a checkout, such as k8s/overlays/NAME, or say where it is by --k8s"
    )


def write_overlay(plan: Plan, folder: Path, k8s: Path) -> None:
    """Write an overlay of what is planned.

    Raises:
        OverlayFailed: the folder has something in it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OverlayFailed(f"{folder} is not empty; give a new folder, or empty this one")
    shards = folder / FOLDER
    shards.mkdir(parents=True)
    ShardSet(plan.index.shards, plan.index.replicas).write(shards, k8s)
    write_list(shards)
    root = os.path.relpath(k8s.resolve(), folder.resolve())
    (folder / "kustomization.yaml").write_text("".join(_parts(plan, root)))
    (folder / NUMBERS).mkdir()
    (folder / NUMBERS / "kustomization.yaml").write_text("".join(_numbers(plan)))


def _parts(plan: Plan, root: str) -> Iterator[str]:
    wish = plan.wish
    shares = ",".join(f"{name}={share:g}" for name, share in wish.modalities.items())
    yield "# Written by `mmesh plan`; set images and MMESH_INDEX_BLOBS_URL, and it is yours.\n"
    yield f"# {wish.rows:,} rows of {wish.dim} ({shares}), {wish.qps:g} searches a second, "
    yield f"{wish.reranked} reranked.\n{HEAD}namespace: mmesh\n"
    yield f"resources:\n  - {root}/base\n  - {FOLDER}\ncomponents:\n  - {NUMBERS}\n"
    yield from (f"  - {root}/components/{name}\n" for name in _components(plan))
    yield "labels:\n  - pairs:\n      app.kubernetes.io/part-of: mmesh\n"
    yield "    includeTemplates: true\nimages:\n"
    for name in ("gateway", "encoder", "reranker", "index", *_gpu_images(plan)):
        yield f"  - name: mmesh-{name}\n    newName: {REGISTRY}/mmesh-{name}\n    newTag: 0.1.0\n"
    yield "configMapGenerator:\n  - name: mmesh-index\n    behavior: merge\n    literals:\n"
    yield f"      - MMESH_INDEX_BLOBS_URL={BLOBS}\n"
    if not wish.reranked:
        yield "  - name: mmesh-gateway\n    behavior: merge\n    literals:\n"
        yield "      - MMESH_GATEWAY_RERANKER=\n"
    yield "patches:\n"
    yield from (_patch(pods) for pods in plan.pods if not pods.gpus)


def _numbers(plan: Plan) -> Iterator[str]:
    yield "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\n"
    yield "replicas: # keda or hpa, listed after this component, takes them out\n"
    counts = {pods.name: pods.count for pods in plan.pods if pods.name != "index"}
    for name in ("gateway", "encoder", "reranker"):
        yield f"  - name: mmesh-{name}\n    count: {counts.get(name, 0)}\n"


def _components(plan: Plan) -> Iterator[str]:
    yield "namespace"
    yield "network-policies"
    if plan.wish.replicas > 1:
        yield "spread"
    if plan.wish.gpu is not Gpu.NONE:
        yield "gpu"


def _gpu_images(plan: Plan) -> tuple[str, ...]:
    return () if plan.wish.gpu is Gpu.NONE else GPU_IMAGES


def _patch(pods: Pods) -> str:
    """Return a strategic merge patch with the resources of pods."""
    kind = "StatefulSet" if pods.name == "index" else "Deployment"
    memory = f"{math.ceil(pods.memory_bytes / MIB)}Mi"
    scratch = math.ceil(pods.scratch_bytes / GIB)
    disk = f"                  ephemeral-storage: {scratch + SCRATCH_SPARE}Gi\n" if scratch else ""
    volume = _LIMIT.format(bytes=scratch * GIB) + _VOLUME.format(scratch=scratch) if scratch else ""
    return (
        _PATCH.format(kind=kind, name=pods.name, cores=pods.cores, memory=memory, disk=disk)
        + volume
    )


_PATCH = """  - target:
      kind: {kind}
      labelSelector: app.kubernetes.io/name=mmesh-{name}
    patch: |
      apiVersion: apps/v1
      kind: {kind}
      metadata:
        name: any
      spec:
        template:
          spec:
            containers:
            - name: {name}
              resources:
                requests:
                  cpu: "{cores}"
                  memory: {memory}
                limits:
                  memory: {memory}
{disk}"""
_LIMIT = """              env:
              - name: MMESH_INDEX_SCRATCH_LIMIT_BYTES
                value: "{bytes}"
"""
_VOLUME = """            volumes:
            - name: segments
              emptyDir:
                sizeLimit: {scratch}Gi
"""
