"""What KEDA's ScaledObject and a HorizontalPodAutoscaler tell the controller: bounds, queries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from tools.k8s.autoscaler import Bounds, Direction, Policy
from tools.k8s.manifests import Object, name_of

ADAPTER = Path(__file__).parents[2] / "k8s" / "components" / "hpa" / "prometheus-adapter.yaml"


@dataclass(frozen=True, slots=True)
class Trigger:
    """A number that Prometheus is asked for, and how much of it is for one pod."""

    query: str
    target: float


@dataclass(frozen=True, slots=True)
class Scaler:
    """How one workload is scaled."""

    workload: str
    bounds: Bounds
    triggers: tuple[Trigger, ...]


def scalers_of(objects: Iterable[Object]) -> dict[str, Scaler]:
    """Return the scalers among rendered objects, by the name of what they scale."""
    readers = {"ScaledObject": _of_scaled_object, "HorizontalPodAutoscaler": _of_hpa}
    found = [readers[one["kind"]](one) for one in objects if one["kind"] in readers]
    return {scaler.workload: scaler for scaler in found}


def _of_scaled_object(one: Object) -> Scaler:
    spec = one["spec"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    triggers = [
        Trigger(about["metadata"]["query"], float(about["metadata"]["threshold"]))
        for about in spec["triggers"]
        if about["type"] == "prometheus" and about["metricType"] == "AverageValue"
    ]
    _check_all_read(one, triggers, spec["triggers"])
    bounds = _bounds(spec["minReplicaCount"], spec["maxReplicaCount"], behavior)
    return Scaler(spec["scaleTargetRef"]["name"], bounds, tuple(triggers))


def _of_hpa(one: Object) -> Scaler:
    spec = one["spec"]
    metrics = [about["external"] for about in spec["metrics"] if about["type"] == "External"]
    triggers = [
        Trigger(_adapted(about["metric"]), _quantity(about["target"]["averageValue"]))
        for about in metrics
    ]
    _check_all_read(one, triggers, spec["metrics"])
    bounds = _bounds(spec["minReplicas"], spec["maxReplicas"], spec["behavior"])
    return Scaler(spec["scaleTargetRef"]["name"], bounds, tuple(triggers))


def _check_all_read(one: Object, read: list[Trigger], given: list[Object]) -> None:
    if len(read) != len(given):
        raise ValueError(f"{name_of(one)} has triggers of other kinds than the model knows")


def _bounds(least: int, most: int, behavior: Object) -> Bounds:
    return Bounds(least, most, _direction(behavior["scaleUp"]), _direction(behavior["scaleDown"]))


def _direction(rules: Object) -> Direction:
    policies = [
        Policy(one["type"], int(one["value"]), float(one["periodSeconds"]))
        for one in rules["policies"]
    ]
    window_s = float(rules["stabilizationWindowSeconds"])
    return Direction(window_s, tuple(policies), rules.get("selectPolicy", "Max"))


def _adapted(metric: Object) -> str:
    """Return the query that prometheus-adapter makes of an external metric, by our rule for it."""
    [rule] = yaml.safe_load(ADAPTER.read_text())
    pattern, name = rule["name"]["matches"], rule["name"]["as"]
    before, after = name.split("${1}")
    stem = metric["name"].removeprefix(before).removesuffix(after)
    series = pattern.strip("^$").replace("(.+)", stem)
    if re.sub(pattern, name.replace("${1}", r"\1"), series) != metric["name"]:
        raise ValueError(f"prometheus-adapter's rule gives no metric {metric['name']}")
    labels = metric["selector"]["matchLabels"]
    matchers = ",".join(f'{label}="{value}"' for label, value in labels.items())
    query: str = rule["metricsQuery"]
    return query.replace("<<.Series>>", series).replace("<<.LabelMatchers>>", matchers)


def _quantity(text: str) -> float:
    """Return a quantity of Kubernetes as a number; of its suffixes, thousandths are enough here."""
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
