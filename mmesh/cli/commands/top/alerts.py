"""Alerts that fire, as a Prometheus says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException

from mmesh.cli.commands.top.fetching import fetch


@dataclass(frozen=True, slots=True)
class Alert:
    """One that fires."""

    name: str
    severity: str
    summary: str


def firing(url: str) -> Sequence[Alert]:
    """Return the alerts that fire, those that wake somebody first.

    A Prometheus that does not answer, or with something else, is an alert itself.
    """
    try:
        found = json.loads(fetch(f"{url.rstrip('/')}/api/v1/alerts"))["data"]["alerts"]
        alerts = [
            _alert(one["labels"], one["annotations"]) for one in found if one["state"] == "firing"
        ]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return [Alert("", "", f"{url} does not tell alerts")]
    return sorted(alerts, key=lambda one: (one.severity != "page", one.name, one.summary))


def _alert(labels: dict[str, str], annotations: dict[str, str]) -> Alert:
    summary = annotations.get("summary", "")
    return Alert(labels["alertname"], labels.get("severity", ""), summary)
