"""A search is one trace across the services, when an endpoint is set."""

import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from mmesh import Candidate, Client, Content

pytest.importorskip(
    "opentelemetry.instrumentation.grpc", reason="tracing is absent: run `make setup-all`"
)


@pytest.fixture(scope="module")
def collector():
    """An OTLP receiver; its `spans` are (service, name, trace id)."""
    from opentelemetry.proto.collector.trace.v1 import (
        trace_service_pb2,
        trace_service_pb2_grpc,
    )

    class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
        def __init__(self):
            self.spans, self.lock = [], threading.Lock()

        def Export(self, request, context):
            for resource in request.resource_spans:
                attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
                found = [
                    (attributes["service.name"], span.name, span.trace_id.hex())
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
                with self.lock:
                    self.spans += found
            return trace_service_pb2.ExportTraceServiceResponse()

    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield receiver
    server.stop(0).wait()


SERVICES = ("gateway", "encoder", "index", "reranker")


@pytest.fixture
def traced(collector, monkeypatch):
    """Have services that are started from now on send their spans to the collector at once."""
    for service in SERVICES:
        endpoint = f"http://127.0.0.1:{collector.port}"
        monkeypatch.setenv(f"MMESH_{service.upper()}_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")


def scraped(mesh, accept):
    """Return content type and text of the gateway's metrics."""
    services = json.loads((mesh.settings.data / "mesh.json").read_text())["services"]
    address = f"http://{services['gateway']['metrics']}/metrics"
    asked = urllib.request.Request(address, headers={"Accept": accept})
    with urllib.request.urlopen(asked) as reply:
        return reply.headers["Content-Type"], reply.read().decode()


def logged(mesh, service):
    lines = (mesh.settings.data / "logs" / f"{service}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_a_search_is_one_trace_in_spans_logs_and_metrics(
    traced, collector, start_mesh, tmp_path, new_collection, eventually
):  # 3 CPU seconds
    mesh = start_mesh(tmp_path, shards=1, metrics=True)
    with Client(mesh.address) as client, new_collection(client) as collection:
        token = client.upsert_candidates(collection, [Candidate("a", Content.of("a cat"))]).token
        request_id = client.search(collection, "kitten", token=token).receipt.request_id

        def whole():
            traces = {t for _, n, t in collector.spans if n.endswith("RetrievalService/Search")}
            services = {s for s, _, t in collector.spans if t in traces}
            return services >= {f"mmesh-{s}" for s in SERVICES}

        eventually(whole, "one trace holds spans of all services", 20)
    (trace,) = {t for _, n, t in collector.spans if n.endswith("RetrievalService/Search")}
    for service in ("gateway", "encoder", "index-0", "reranker"):
        ours = [one for one in logged(mesh, service) if one.get("trace_id") == trace]
        assert ours, service
        assert {one["request_id"] for one in ours} == {request_id}
    kind, text = scraped(mesh, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    exemplars = [line for line in text.splitlines() if f'# {{trace_id="{trace}"}}' in line]
    assert any(line.startswith("mmesh_gateway_stage_seconds_bucket") for line in exemplars)
    assert any(line.startswith("mmesh_rpc_seconds_bucket") for line in exemplars)
    kind, text = scraped(mesh, "text/plain")
    assert kind.startswith("text/plain")
    assert "trace_id" not in text
    mesh.close()
