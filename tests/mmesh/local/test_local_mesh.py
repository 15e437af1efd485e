"""A mesh of forked services: what they share, what each exports, and how it comes back."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from mmesh.aio import DEFAULT_ADDRESS
from mmesh.local.plan import DEFAULT_PORT, HEALTH

OWN = re.compile(r"^# HELP mmesh_(encoder|index|reranker|gateway)_", re.MULTILINE)


@pytest.fixture(scope="module")
def small_mesh(start_mesh, tmp_path_factory):
    """One shard and no reranker: 2 CPU seconds."""
    mesh = start_mesh(tmp_path_factory.mktemp("small"), shards=1, reranker="none", metrics=True)
    yield mesh
    mesh.close()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_all_services_are_forks(small_mesh):
    parents = {name: parent_of(small_mesh.pid(name)) for name in small_mesh.names}
    assert parents["encoder"] == parents["gateway"]
    assert parents["index-0"] != parents["gateway"]
    assert parent_of(parents["index-0"]) == parents["gateway"]  # a branch of its
    assert parent_of(parents["gateway"]) == os.getpid()


def test_every_process_bears_the_name_of_its_service(small_mesh):
    for name in small_mesh.names:
        comm = Path(f"/proc/{small_mesh.pid(name)}/comm").read_text().strip()
        assert comm == f"mmesh {name}"


def test_a_service_exports_its_own_metrics_and_no_other(small_mesh):
    described = json.loads((small_mesh.settings.data / "mesh.json").read_text())["services"]
    for name, service in described.items():
        with urllib.request.urlopen(f"http://{service['metrics']}/metrics", timeout=10) as reply:
            exported = set(OWN.findall(reply.read().decode()))
        assert exported == {name.partition("-")[0]}


def test_a_killed_service_is_forked_anew(small_mesh, eventually):
    before = small_mesh.pid("index-0")
    parent = parent_of(before)
    small_mesh.kill("index-0")
    eventually(lambda: small_mesh.pid("index-0") not in (None, before), "it is back")
    small_mesh.wait_serving("index-0")
    assert parent_of(small_mesh.pid("index-0")) == parent


def test_a_start_that_fails_is_said_and_tried_again(small_mesh, eventually):
    log = small_mesh.settings.data / "logs" / "encoder.log"
    log.unlink()
    log.mkdir()  # so that nothing can be started that writes there
    small_mesh.kill("encoder", signal.SIGKILL)

    def told() -> list[str]:
        return [line for line in small_mesh.said if "encoder cannot be started" in line]

    eventually(lambda: len(told()) > 1, "the failure is said twice")
    assert "IsADirectoryError" in told()[0]
    shutil.rmtree(log)
    small_mesh.wait_serving("encoder")


def test_a_service_is_not_back_while_another_process_has_its_port(small_mesh, eventually):
    port = int(small_mesh.address.rpartition(":")[2])
    before = len(small_mesh.said)
    small_mesh.kill("gateway", signal.SIGKILL)
    with served_by_a_stranger(port, eventually):

        def told() -> list[str]:
            return [line for line in small_mesh.said[before:] if f":{port} is taken" in line]

        eventually(told, "the port is named")
        assert "gateway died (exit code 1: mmesh gateway: " in told()[0]
        assert "gateway is back" not in small_mesh.said[before:]
    eventually(lambda: "gateway is back" in small_mesh.said[before:], "it is back")


@contextmanager
def served_by_a_stranger(port: int, eventually) -> Iterator[None]:
    """Let the port be that of a server which says of itself that it is a gateway."""
    server, servicer = grpc.server(ThreadPoolExecutor(1)), health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    servicer.set(HEALTH["gateway"], HealthCheckResponse.SERVING)

    def listens() -> bool:
        with suppress(RuntimeError):
            return bool(server.add_insecure_port(f"127.0.0.1:{port}"))
        return False

    eventually(listens, "the port is free")
    server.start()
    yield
    server.stop(0).wait()


def test_the_default_port_is_that_of_the_clients():
    assert DEFAULT_ADDRESS.endswith(f":{DEFAULT_PORT}")
