"""What a scraper finds, beside what docs/reference/metrics.md promises."""

import json
import platform
import re
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mmesh import Candidate, Content
from mmesh.errors import InvalidField

DOCUMENTED = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


@pytest.fixture
def scrape(mesh):
    services = json.loads((mesh.settings.data / "mesh.json").read_text())["services"]

    def scrape(service):
        """Return {(sample name, its labels): value} of one service."""
        with urllib.request.urlopen(f"http://{services[service]['metrics']}/metrics") as reply:
            families = text_string_to_metric_families(reply.read().decode())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    return scrape


def total(samples, name, **labels):
    wanted = set(labels.items())
    return sum(v for (n, found), v in samples.items() if n == name and wanted <= found)


def test_a_search_is_counted_by_every_service_it_passes(client, collection, scrape):
    services = ("gateway", "encoder", "index-0", "reranker")
    before = {service: scrape(service) for service in services}
    token = client.upsert_candidates(collection, [Candidate("a", Content.of("a cat"))]).token
    client.search(collection, "a kitten in the counted search", token=token)
    methods = {
        "gateway": "/mmesh.api.gateway.v1.RetrievalService/Search",
        "encoder": "/mmesh.api.encoder.v1.EncoderService/Encode",
        "index-0": "/mmesh.api.index.v1.IndexService/Search",
        "reranker": "/mmesh.api.reranker.v1.RerankerService/Rerank",
    }
    after = {service: scrape(service) for service in services}
    for service, method in methods.items():
        counts = [
            total(samples[service], "mmesh_rpc_seconds_count", method=method, code="OK")
            for samples in (before, after)
        ]
        assert counts[1] > counts[0], service
    hits = [
        total(s["gateway"], "mmesh_gateway_hits_total", modality="text") for s in (before, after)
    ]
    assert hits[1] == hits[0] + 1


def test_a_refused_call_is_counted_by_its_reason(client, collection, scrape):
    before = total(scrape("gateway"), "mmesh_errors_total", reason="INVALID_FIELD")
    with pytest.raises(InvalidField):
        client.list_candidates(collection, page_size=-1)
    assert total(scrape("gateway"), "mmesh_errors_total", reason="INVALID_FIELD") == before + 1


def test_every_metric_is_documented(scrape):
    documented = set(re.findall(r"`(mmesh_\w+)`", DOCUMENTED.read_text()))
    for service in ("gateway", "encoder", "index-0", "reranker"):
        ours = {name for name, _ in scrape(service) if name.startswith("mmesh_")}
        families = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in ours}
        found = {f for f in families if f not in documented and f + "_total" not in documented}
        assert not found, service


def test_every_process_tells_its_release(scrape):
    for service in ("gateway", "encoder", "index-0", "reranker"):
        (labels,) = (dict(labels) for name, labels in scrape(service) if name == "mmesh_build_info")
        assert labels["version"] == version("mmesh")
        assert labels["python"] == platform.python_version()
        assert re.fullmatch("([0-9a-f]{40})?", labels["commit"])
