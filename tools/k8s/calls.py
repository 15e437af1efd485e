"""Calls between pods: settings name Services, and network policies let the calls through.

An API server takes a policy that cuts a call; it shows as a process that waits for an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tools.k8s.manifests import Manifests, Object, Pod, Problem, name_of, place

LOG = "MMESH_INDEX_LOG_URL"
_HOST = r"(?:@|https?://|dns:///){name}(?::(\d+))?(?=$|[/?&,\"'\]\s])"


@dataclass(frozen=True)
class _Call:
    caller: Pod
    called: Pod
    port: int


def problems_of(manifests: Manifests) -> Iterator[Problem]:
    """Yield the calls that policies cut, and the pods that read another log than the others."""
    for pod in manifests.pods:
        for call in _calls_of(pod, manifests):
            where = f"{place(call.called.owner)}, port {call.port}"
            if not _passes("egress", pod, pod, call, manifests):
                yield Problem(place(pod.owner), f"no policy lets it call {where}")
            if not _passes("ingress", call.called, pod, call, manifests):
                yield Problem(place(pod.owner), f"no policy lets it in to {where}")
    yield from _of_another_log(manifests)


def _calls_of(pod: Pod, manifests: Manifests) -> Iterator[_Call]:
    texts = " ".join(_texts_of(pod, manifests))
    for service in manifests.of("Service"):
        ports: list[Object] = service["spec"].get("ports", [])
        for found in re.finditer(_HOST.format(name=re.escape(name_of(service))), texts):
            number = int(found[1]) if found[1] else ports[0]["port"]
            target = next((one.get("targetPort") for one in ports if one["port"] == number), None)
            for called in manifests.picked(service["spec"].get("selector")):
                yield _Call(pod, called, called.ports.get(target or number, number))


def _texts_of(pod: Pod, manifests: Manifests) -> Iterator[str]:
    """Yield what containers are told: variables, files of variables, commands."""
    maps = {name_of(one): one.get("data", {}) for one in manifests.of("ConfigMap")}
    for container in pod.containers:
        yield from (str(one.get("value", "")) for one in container.get("env", ()))
        yield from map(str, [*container.get("command", ()), *container.get("args", ())])
        for source in container.get("envFrom", ()):
            yield from maps.get(source.get("configMapRef", {}).get("name"), {}).values()


def _passes(side: str, isolated: Pod, caller: Pod, call: _Call, manifests: Manifests) -> bool:
    """Tell whether a side of a call is open: no policy is about it, or one allows it."""
    about = [
        one["spec"]
        for one in manifests.of("NetworkPolicy")
        if side.capitalize() in one["spec"].get("policyTypes", ("Ingress",))
        and _picks(one["spec"].get("podSelector", {}), isolated)
    ]
    peer = call.called if side == "egress" else caller
    rules = (rule for spec in about for rule in spec.get(side, ()))
    return not about or any(_allows(rule, peer, call) for rule in rules)


def _allows(rule: Object, peer: Pod, call: _Call) -> bool:
    ports, peers = rule.get("ports"), rule.get("from", rule.get("to"))
    is_open = not ports or any(
        one.get("protocol", "TCP") == "TCP"
        and call.called.ports.get(one.get("port"), one.get("port")) in (None, call.port)
        for one in ports
    )
    return is_open and (not peers or any(_is(one, peer) for one in peers))


def _is(peer: Object, pod: Pod) -> bool:
    """Tell whether a peer of a rule is a pod of this namespace; any address may be one."""
    return "ipBlock" in peer or (
        not peer.get("namespaceSelector") and _picks(peer.get("podSelector", {}), pod)
    )


def _picks(selector: Object, pod: Pod) -> bool:
    return pod.matches(selector.get("matchLabels")) and all(
        pod.labels.get(one["key"]) in one["values"]
        for one in selector.get("matchExpressions", ())
        if one["operator"] == "In"
    )


def _of_another_log(manifests: Manifests) -> Iterator[Problem]:
    """Yield the pods that read another log, where one is named; Secrets may be many users'."""
    read: list[tuple[Pod, Any]] = [
        (pod, one.get("value"))
        for pod in manifests.pods
        for container in pod.containers
        for one in container.get("env", ())
        if one["name"] == LOG
    ]
    named = next((value for _, value in read if value), None)
    for pod, value in read:
        if named and value != named:
            yield Problem(place(pod.owner), f"reads another log than {named}")
