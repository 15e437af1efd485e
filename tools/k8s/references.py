"""References between objects: what one names must be there in another.

An API server takes them all as they are, and the mistake shows as a pod that gets no calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tools.k8s.manifests import WORKLOADS, Manifests, Object, Pod, Problem, name_of, place

Found = Iterator[str]


def problems_of(manifests: Manifests) -> Iterator[Problem]:
    """Yield the references that lead nowhere."""
    for one in manifests.objects:
        for kinds, rule in _RULES:
            if one.get("kind") in kinds:
                yield from (Problem(place(one), what) for what in rule(one, manifests))
    for pod in manifests.pods:
        yield from (Problem(place(pod.owner), what) for what in _pod(pod, manifests))


def _selector(one: Object, manifests: Manifests) -> Found:
    if one["kind"] == "Job":
        return
    labels = one["spec"].get("selector", {}).get("matchLabels")
    if not labels:
        yield "has no selector"
    elif not any(pod.owner is one and pod.matches(labels) for pod in manifests.pods):
        yield "its selector differs from the labels of its pods"
    name = one["spec"].get("serviceName")
    if name and not manifests.has("Service", name):
        yield f"there is no Service {name}"


def _service(one: Object, manifests: Manifests) -> Found:
    pods = manifests.picked(one["spec"].get("selector"))
    if not pods:
        yield "selects no pod"
    for port in one["spec"].get("ports", ()):
        target = port.get("targetPort", port["port"])
        if pods and not all(target in pod.ports for pod in pods):
            yield f"targetPort {target} is no port of the pods"


def _scaler(one: Object, manifests: Manifests) -> Found:
    spec = one["spec"]
    target = spec["scaleTargetRef"]
    kind, name = target.get("kind", "Deployment"), target["name"]
    if not manifests.has(kind, name):
        yield f"there is no {kind} {name} to scale"
    if any(name_of(one) == name and "replicas" in one["spec"] for one in manifests.of(kind)):
        yield f"{kind} {name} has `replicas`, to which each `kubectl apply` would set it back"
    low = spec.get("minReplicas", spec.get("minReplicaCount", 1))
    high = spec.get("maxReplicas", spec.get("maxReplicaCount", 100))
    if low > high:
        yield f"at least {low} and at most {high} pods"


def _budget(one: Object, manifests: Manifests) -> Found:
    spec = one["spec"]
    if "minAvailable" in spec and "maxUnavailable" in spec:
        yield "has both minAvailable and maxUnavailable"
    if not manifests.picked(spec.get("selector", {}).get("matchLabels")):
        yield "selects no pod"


def _network_policy(one: Object, manifests: Manifests) -> Found:
    labels = one["spec"].get("podSelector", {}).get("matchLabels")
    pods = manifests.picked(labels)
    if labels and not pods:
        yield "selects no pod"
    for rule in one["spec"].get("ingress", ()):
        yield from _lacking(pods, rule)
        for labels in _peers(rule.get("from", ())):
            if not manifests.picked(labels):
                yield f"{labels}, from which calls come, is no pod"
    for rule in one["spec"].get("egress", ()):
        for labels in _peers(rule.get("to", ())):
            if not (called := manifests.picked(labels)):
                yield f"{labels}, which is called, is no pod"
            yield from _lacking(called, rule)


def _peers(peers: Sequence[Object]) -> Iterator[dict[str, str] | None]:
    """Yield the labels of peers in the same namespace; others are not ours to know."""
    for peer in peers:
        if "podSelector" in peer and "namespaceSelector" not in peer:
            yield peer["podSelector"].get("matchLabels")


def _lacking(pods: Sequence[Pod], rule: Object) -> Found:
    for port in rule.get("ports", ()):
        if not any(port["port"] in pod.ports for pod in pods):
            yield f"port {port['port']} is no port of the pods"


def _monitor(one: Object, manifests: Manifests) -> Found:
    labels = one["spec"].get("selector", {}).get("matchLabels")
    endpoints = one["spec"].get("podMetricsEndpoints", one["spec"].get("endpoints"))
    if not isinstance(endpoints, list):
        return  # the schema says so
    if one["kind"] == "PodMonitor":
        names: set[Any] = {name for pod in manifests.picked(labels) for name in pod.ports}
    else:
        wanted = (labels or {}).items()
        services = [
            one["spec"]
            for one in manifests.of("Service")
            if wanted <= one["metadata"].get("labels", {}).items()
        ]
        names = {port.get("name") for spec in services for port in spec.get("ports", ())}
    for endpoint in endpoints:
        if endpoint.get("port") not in names:
            yield f"port {endpoint.get('port')} is on nothing that it selects"


def _ingress(one: Object, manifests: Manifests) -> Found:
    for rule in one["spec"].get("rules", ()):
        for path in rule.get("http", {}).get("paths", ()):
            name = path["backend"]["service"]["name"]
            if not manifests.has("Service", name):
                yield f"there is no Service {name}"


_RULES: tuple[tuple[tuple[str, ...], Callable[[Object, Manifests], Found]], ...] = (
    (WORKLOADS, _selector),
    (("Service",), _service),
    (("HorizontalPodAutoscaler", "ScaledObject"), _scaler),
    (("PodDisruptionBudget",), _budget),
    (("NetworkPolicy",), _network_policy),
    (("PodMonitor", "ServiceMonitor"), _monitor),
    (("Ingress",), _ingress),
)


def _pod(pod: Pod, manifests: Manifests) -> Found:
    account = pod.spec.get("serviceAccountName")
    if account and not manifests.has("ServiceAccount", account):
        yield f"there is no ServiceAccount {account}"
    claims = pod.owner["spec"].get("volumeClaimTemplates", ())
    volumes = [*pod.spec.get("volumes", ()), *(claim["metadata"] for claim in claims)]
    yield from _sources(pod, manifests)
    for container in pod.containers:
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in {volume["name"] for volume in volumes}:
                yield f"there is no volume {mount['name']} to mount"
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            yield from _probe(kind, container.get(kind, {}), pod)
    for spread in pod.spec.get("topologySpreadConstraints", ()):
        if not pod.matches(spread.get("labelSelector", {}).get("matchLabels")):
            yield "its topology spread counts other pods"


def _probe(kind: str, probe: Object, pod: Pod) -> Found:
    for how in ("grpc", "httpGet", "tcpSocket"):
        if how in probe and probe[how].get("port") not in pod.ports:
            yield f"{kind}: port {probe[how].get('port')} is no port of the container"


def _sources(pod: Pod, manifests: Manifests) -> Found:
    """Yield the ConfigMaps and claims that are named and not there; Secrets are made by hand."""
    named: list[tuple[str, Any]] = []
    for container in pod.containers:
        named += [
            ("ConfigMap", s["configMapRef"])
            for s in container.get("envFrom", ())
            if "configMapRef" in s
        ]
        named += [
            ("ConfigMap", e["valueFrom"]["configMapKeyRef"])
            for e in container.get("env", ())
            if "configMapKeyRef" in e.get("valueFrom", {})
        ]
    for volume in pod.spec.get("volumes", ()):
        if "configMap" in volume:
            named.append(("ConfigMap", volume["configMap"]))
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]
            named.append(("PersistentVolumeClaim", {"name": claim["claimName"]}))
    for kind, source in named:
        if not source.get("optional") and not manifests.has(kind, source["name"]):
            yield f"there is no {kind} {source['name']}"
