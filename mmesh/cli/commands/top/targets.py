"""Where the metrics of a mesh's processes are: by its data folder, or as told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import click


def of_folder(data: Path) -> Mapping[str, str]:
    """Return the URLs of the mesh that `mmesh up` runs on a folder, by name of the process.

    Raises:
        ClickException: there was never one, or it serves no metrics.
    """
    try:
        services = json.loads((data / "mesh.json").read_text())["services"]
    except FileNotFoundError:
        raise click.ClickException(
            f"no mesh has run on {data}: give --data of one, or --metrics HOST:PORT of its "
            "processes; `mmesh up` starts one"
        ) from None
    found = {name: url_of(about["metrics"]) for name, about in services.items() if about["metrics"]}
    if not found:
        raise click.ClickException(f"the mesh on {data} was started without metrics")
    return found


def prometheus_of(data: Path) -> str:
    """Return the URL of the Prometheus that `mmesh up --observe` runs; "" for none."""
    try:
        addresses = json.loads((data / "observe" / "addresses.json").read_text())
    except FileNotFoundError:
        return ""
    return str(addresses.get("prometheus", ""))


def of_addresses(given: Sequence[str]) -> Mapping[str, str]:
    """Return the URLs that are meant, by host and port.

    Raises:
        BadParameter: one is none.
    """
    urls = [url_of(one) for one in given]
    return {urlsplit(url).netloc: url for url in urls}


def url_of(given: str) -> str:
    """Return the URL of metrics, of what may be no more than host and port.

    Raises:
        BadParameter: it is none.
    """
    url = given if "://" in given else f"http://{given}"
    parts = urlsplit(url)
    try:
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname and parts.port)
    except ValueError:  # a port that is no number
        is_good = False
    if not is_good:
        hint = f"{given!r} is no HOST:PORT or http://HOST:PORT/metrics"
        raise click.BadParameter(hint, param_hint="--metrics")
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/metrics"
