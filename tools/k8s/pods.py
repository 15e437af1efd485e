"""Pods as the restricted Pod Security Standard and this project want them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tools.k8s.manifests import Manifests, Object, Pod, Problem, place

SETTINGS = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
_SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|API_KEY|ACCESS_KEY")
_CREDENTIALS = re.compile(r"://[^/@:]+:[^/@]+@")
CLOSING_S = 10
"""Seconds that a process has between its last call and the end of the grace period, at least."""


def problems_of(manifests: Manifests) -> Iterator[Problem]:
    """Yield what is missing, or not allowed, in the pods of a combination."""
    for pod in manifests.pods:
        found = [*_pod(pod), *_environment(pod, manifests), *_grace(pod, manifests)]
        found += [what for one in pod.containers for what in _container(one)]
        yield from (Problem(place(pod.owner), what) for what in found)
    for one in manifests.of("Secret"):
        yield Problem(place(one), "secrets are made by hand, not kept in a file")


def _pod(pod: Pod) -> Iterator[str]:
    security = pod.spec.get("securityContext", {})
    if security.get("runAsNonRoot") is not True:
        yield "may run as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "mounts a token of its service account"
    if any(pod.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares a namespace with its node"
    if any("hostPath" in volume for volume in pod.spec.get("volumes", ())):
        yield "mounts a folder of its node"


def _container(container: Object) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
        yield "may get more rights than it starts with"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "may write to its root"
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    if not {"cpu", "memory"} <= requests.keys() or "memory" not in limits:
        yield "requests of cpu and memory, and a limit of memory, are needed"
    elif requests["memory"] != limits["memory"]:
        yield "the limit of memory is not what is requested"
    tag = container.get("image", "").rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest"):
        yield f"image {container.get('image')} has no tag that stays"


def _environment(pod: Pod, manifests: Manifests) -> Iterator[str]:
    for name, value in _variables(pod, manifests):
        if value and (_SECRET.search(name) or _CREDENTIALS.search(value)):
            yield f"{name} is a secret in a file"
        if name.startswith("MMESH_") and name not in _known_variables():
            yield f"{name} is no setting of any service"


def _variables(pod: Pod, manifests: Manifests) -> Iterator[tuple[str, str]]:
    for container in pod.containers:
        for one in container.get("env", ()):
            yield one["name"], str(one.get("value", ""))
        names = [s.get("configMapRef", {}).get("name") for s in container.get("envFrom", ())]
        for config in manifests.of("ConfigMap"):
            if config["metadata"]["name"] in names:
                yield from config.get("data", {}).items()


@cache
def _known_variables() -> frozenset[str]:
    return frozenset(re.findall(r"`(MMESH_\w+)`", SETTINGS.read_text()))


def _grace(pod: Pod, manifests: Manifests) -> Iterator[str]:
    """Compare the grace period with what a process of ours takes to stop."""
    settings = dict(_variables(pod, manifests))
    needed = sum(float(v) for k, v in settings.items() if k.endswith(("_DRAIN_S", "_GRACE_S")))
    if not needed:
        return
    for container in pod.containers:
        hook = container.get("lifecycle", {}).get("preStop", {})
        needed += hook.get("sleep", {}).get("seconds", 0)
    if pod.spec.get("terminationGracePeriodSeconds", 30) < needed + CLOSING_S:
        yield f"may be killed while it drains, which takes up to {needed:g} s"
