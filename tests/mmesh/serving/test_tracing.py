"""A search is one trace across the services, when an endpoint is set."""

import os
import threading
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


def test_a_search_is_one_trace_through_the_mesh(
    collector, start_mesh, tmp_path, new_collection, eventually
):
    names = [f"MMESH_{s}_OTLP_ENDPOINT" for s in ("GATEWAY", "ENCODER", "INDEX", "RERANKER")]
    endpoint = f"http://127.0.0.1:{collector.port}"
    os.environ.update(dict.fromkeys(names, endpoint) | {"OTEL_BSP_SCHEDULE_DELAY": "200"})
    try:
        mesh = start_mesh(tmp_path, shards=1)
        with Client(mesh.address) as client, new_collection(client) as collection:
            token = client.upsert_candidates(collection, [Candidate("a", Content.of("a cat"))])
            client.search(collection, "kitten", token=token)

            def whole():
                traces = {t for _, n, t in collector.spans if n.endswith("RetrievalService/Search")}
                services = {s for s, _, t in collector.spans if t in traces}
                return services >= {
                    f"mmesh-{s}" for s in ("gateway", "encoder", "index", "reranker")
                }

            eventually(whole, "one trace holds spans of all services", 20)
        mesh.close()
    finally:
        for name in [*names, "OTEL_BSP_SCHEDULE_DELAY"]:
            del os.environ[name]
