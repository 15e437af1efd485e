"""Schemas: Kubernetes' own kinds strictly, custom resources by a round trip through typed models.

The models of custom resources drop unknown fields in silence, so what comes back is compared with
what went in.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import kubernetes_validate
from pydantic import BaseModel, ValidationError

from tools.k8s.manifests import Object, Problem, place

VERSION = "1.37"
"""Of Kubernetes, whose schemas are looked at."""
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): "cloudcoil.models.keda.v1alpha1",
    ("monitoring.coreos.com/v1", "PodMonitor"): "cloudcoil.models.prometheus_operator.v1",
    ("monitoring.coreos.com/v1", "ServiceMonitor"): "cloudcoil.models.prometheus_operator.v1",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "cloudcoil.models.prometheus_operator.v1",
}


def problems_of(one: Object) -> Iterator[Problem]:
    """Yield what the schema of an object's kind forbids."""
    module = CUSTOM.get((one.get("apiVersion", ""), one.get("kind", "")))
    found = _custom(one, module) if module else _built_in(one)
    yield from (Problem(place(one), what) for what in found)


def _built_in(one: Object) -> Iterator[str]:
    try:
        kubernetes_validate.validate(one, VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        yield f"Kubernetes {VERSION} knows no {one.get('apiVersion')} {one.get('kind')}"
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"


def _custom(one: Object, module: str) -> Iterator[str]:
    model: type[BaseModel] = getattr(importlib.import_module(module), one["kind"])
    try:
        parsed = model.model_validate(one)
    except ValidationError as error:
        for detail in error.errors():
            yield f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
        return
    back = parsed.model_dump(mode="json", by_alias=True, exclude_none=True)
    yield from (f"{path}: unknown field" for path in _lost(one, back, ""))


def _lost(given: Any, back: Any, path: str) -> Iterator[str]:
    """Yield the paths that are in `given` and did not come back."""
    if isinstance(given, Mapping) and isinstance(back, Mapping):
        for key, value in given.items():
            if key not in back:
                yield f"{path}.{key}".lstrip(".")
            else:
                yield from _lost(value, back[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(back, list):
        for number, (one, other) in enumerate(zip(given, back, strict=False)):
            yield from _lost(one, other, f"{path}.{number}")
