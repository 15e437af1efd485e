"""A real Prometheus on loopback whose targets a test changes, and whose times are compressed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmesh.local.ports import free_port
from tools.k8s.rules import FOLDER

PROMETHEUS = shutil.which("prometheus")
SCRAPE_S = 15.0
"""Between two scrapes, as the PodMonitors have it."""
_SECONDS = {"s": 1, "m": 60, "h": 3600}


class Prometheus:
    """Reads the rules of demand, and the targets that `set_targets` says, `factor` times as fast.

    Scrapes, evaluations and the ranges of queries are shortened alike.
    """

    def __init__(self, folder: Path, jobs: Iterable[str], factor: float) -> None:
        assert PROMETHEUS is not None
        self.address = f"127.0.0.1:{free_port()}"
        self._folder, self._factor = folder, factor
        every = f"{int(1000 * SCRAPE_S / factor)}ms"
        for job in jobs:
            self.set_targets(job, {})
        rules = folder / "demand.yaml"
        rules.write_text(self.compressed((FOLDER / "rules" / "demand.yaml").read_text()))
        config = {
            "global": {
                "scrape_interval": every,
                "evaluation_interval": every,
                "scrape_timeout": every,
            },
            "rule_files": [str(rules)],
            "scrape_configs": [
                {"job_name": job, "file_sd_configs": [{"files": [str(folder / f"{job}.json")]}]}
                for job in jobs
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [
            PROMETHEUS,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'series'}",
            f"--web.listen-address={self.address}",
        ]
        with (folder / "prometheus.log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def set_targets(self, job: str, pods: Mapping[str, tuple[str, str]]) -> None:
        """Say which pods of a job there are: by name, their namespace and address."""
        about = [
            {"targets": [address], "labels": {"pod": pod, "namespace": namespace}}
            for pod, (namespace, address) in pods.items()
        ]
        draft = self._folder / f"{job}.draft"
        draft.write_text(json.dumps(about))
        draft.rename(self._folder / f"{job}.json")

    def compressed(self, queries: str) -> str:
        """Return queries with their ranges shortened."""

        def shorten(found: re.Match[str]) -> str:
            seconds = int(found[1]) * _SECONDS[found[2]]
            return f"[{int(1000 * seconds / self._factor)}ms]"

        return re.sub(r"\[(\d+)([smh])\]", shorten, queries)

    def query(self, query: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """Return the series that a query has, now or at a Unix time.

        Raises:
            OSError: it is away, or refuses the query.
        """
        asked = {"query": query} | ({} if at_s is None else {"time": str(at_s)})
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            data = json.load(reply)["data"]
        return list(data["result"])
