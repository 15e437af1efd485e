"""Every panel and every recording rule has data, from a real mesh through a real Prometheus."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
import yaml

from mmesh import Candidate, Content
from mmesh.local.ports import free_port
from mmesh.search import Rerank
from tools.dashboards.boards import ALL
from tools.k8s.queries import with_intervals
from tools.k8s.rules import rule_files

PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(
    PROMETHEUS is None, reason="prometheus is missing; `apt-get install prometheus` brings it"
)
EMPTY_WHILE_WELL = {
    "mmesh_errors_total",
    "mmesh_gateway_degradations_total",
    "mmesh_gateway_mirror_refused_total",
    "mmesh_gateway_rejected_total",
    "mmesh_index_build_failures_total",
    "mmesh:index_recall_probe:",  # of one search in 500
    "mmesh:search_uncovered:increase",
    "mmesh:search_unserved:increase",
    "mmesh_index_segment",  # there is none before 4,096 rows
    "mmesh_index_snapshot_failures_total",
    "mmesh_index_store_bytes",  # not before the first sweep, after an hour or two
    "mmesh_reranker_unjudged_total",
    "mmesh_task_failures_total",
}
"""Series, by what their name begins with, that something else has to happen for."""
START_S, DATA_S = 30.0, 60.0


class Prometheus:
    """A real Prometheus on loopback that scrapes a local mesh as a cluster's would."""

    def __init__(self, folder, services):
        self.address = f"127.0.0.1:{free_port()}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rule_files()],
            "scrape_configs": [
                _scrape(job, services) for job in ("gateway", "encoder", "index", "reranker")
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [
            PROMETHEUS,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.address}",
        ]
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def close(self):
        self._process.terminate()
        self._process.wait(10)

    def query(self, expression):
        """Return the series that a query has now."""
        asked = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{self.address}/api/v1/query?{asked}") as reply:
            return json.load(reply)["data"]["result"]


def _scrape(job, services):
    """Return what scrapes a service's processes, with the labels that a cluster's have."""
    targets = []
    for name, about in services.items():
        if name == job or name.startswith(f"{job}-"):
            labels = {"namespace": "mmesh", "pod": name}
            if job == "index":
                labels |= {"shard": name.split("-")[1], "shard_count": "2"}
            targets.append({"targets": [about["metrics"]], "labels": labels})
    return {"job_name": f"mmesh-{job}", "static_configs": targets}


@pytest.fixture
def prometheus(mesh, tmp_path):
    services = json.loads((mesh.settings.data / "mesh.json").read_text())["services"]
    server = Prometheus(tmp_path, services)
    yield server
    server.close()


def expressions():
    for board in ALL:
        for panel in board.panels:
            for query in panel.queries:
                yield f"{board.name}: {panel.title}", query.expr
    for path in rule_files():
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                if "record" in rule:
                    yield rule["record"], rule["record"]


def test_every_panel_has_data(client, collection, prometheus):  # 25 s
    due = [
        (where, with_intervals(expr).replace("$namespace", "mmesh"))
        for where, expr in expressions()
        if not any(name in expr for name in EMPTY_WHILE_WELL)
    ]
    until = time.monotonic() + START_S + DATA_S
    number = 0
    while due and time.monotonic() < until:
        number += 1
        one = Candidate(f"c{number}", Content.of(f"a text with the number {number}"))
        client.upsert_candidates(collection, [one])
        client.search(collection, f"number {number}", rerank=Rerank(candidates=4))
        client.ingest(collection, [one])
        try:
            due = [(where, expr) for where, expr in due if not prometheus.query(expr)]
        except OSError:  # it is starting
            time.sleep(0.2)
    assert due == []
