"""Values whose syntax no schema holds: names, labels, quantities, port names, enumerations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tools.k8s.manifests import Manifests, Object, Problem, name_of, place

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_PORT = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[0-9]+)?")
_ENUMS = {
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "podManagementPolicy": {"OrderedReady", "Parallel"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "selectPolicy": {"Max", "Min", "Disabled"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "pathType": {"Exact", "Prefix", "ImplementationSpecific"},
    "unhealthyPodEvictionPolicy": {"AlwaysAllow", "IfHealthyBudget"},
}
_QUANTITIES = ("requests", "limits")


def problems_of(manifests: Manifests) -> Iterator[Problem]:
    """Yield the values that an API server would refuse."""
    for one in manifests.objects:
        yield from (Problem(place(one), what) for what in _of_object(one))
    for pod in manifests.pods:
        yield from (Problem(place(pod.owner), what) for what in _port_names(pod.containers))


def _of_object(one: Object) -> Iterator[str]:
    if not _NAME.fullmatch(name_of(one)) or len(name_of(one)) > 253:
        yield f"{name_of(one)!r} is no name of an object"
    for path, key, value in _walk(one, ""):
        if key == "labels" and isinstance(value, dict):
            yield from _labels(value)
        elif key in _QUANTITIES and isinstance(value, dict) and "resources" in path:
            yield from (f"{path}: {text!r} is no quantity" for text in _bad_quantities(value))
        elif key in ("sizeLimit", "averageValue") and _bad_quantities({key: value}):
            yield f"{path}: {value!r} is no quantity"
        elif key in _ENUMS and isinstance(value, str) and value not in _ENUMS[key]:
            yield f"{path}: {value!r} is none of {', '.join(sorted(_ENUMS[key]))}"
        elif key == "policies" and ".scale" in path:
            kinds = {str(policy.get("type")) for policy in value} - {"Pods", "Percent"}
            yield from (f"{path}: {kind!r} is neither Pods nor Percent" for kind in kinds)


def _labels(labels: dict[str, Any]) -> Iterator[str]:
    for key, value in labels.items():
        if not isinstance(value, str) or not _LABEL.fullmatch(value):
            yield f"label {key}: {value!r} is no value of a label"


def _bad_quantities(values: dict[str, Any]) -> list[str]:
    return [str(v) for v in values.values() if not _QUANTITY.fullmatch(str(v))]


def _port_names(containers: list[Object]) -> Iterator[str]:
    for container in containers:
        for port in container.get("ports", ()):
            if not _PORT.fullmatch(port.get("name", "port")):
                yield f"port name {port['name']!r}: at most 15 of a-z, 0-9 and -"


def _walk(value: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Yield path, key and value of everything inside."""
    pairs = value.items() if isinstance(value, dict) else ()
    for key, inner in pairs:
        yield f"{path}.{key}", str(key), inner
        yield from _walk(inner, f"{path}.{key}")
    for number, inner in enumerate(value if isinstance(value, list) else ()):
        yield from _walk(inner, f"{path}[{number}]")
