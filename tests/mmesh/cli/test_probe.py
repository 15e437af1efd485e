"""`mmesh probe` against a real health service."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

STATUS = health_pb2.HealthCheckResponse


@pytest.fixture
def server():
    """Address and health of a process that has just started: it does not serve yet."""
    states = health.HealthServicer()
    states.set("", STATUS.NOT_SERVING)
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", states
    server.stop(None).wait()


@pytest.fixture
def probe(command_here, tmp_path):
    """Run `mmesh probe`; return exit code and stdout."""

    def run(*arguments, **env):
        return command_here("probe", *arguments, env=env, folder=tmp_path)[:2]

    return run


def test_a_process_is_well_from_when_it_says_so(server, probe):
    address, states = server
    assert probe(address) == (1, "NOT_SERVING\n")
    states.set("", STATUS.SERVING)
    assert probe(address) == (0, "SERVING\n")
    assert probe(MMESH_TARGET_ADDRESS=address) == (0, "SERVING\n")


def test_one_service_of_a_process_is_asked_for_by_name(server, probe):
    address, states = server
    states.set("a.Service", STATUS.SERVING)
    assert probe(address, "--service", "a.Service") == (0, "SERVING\n")
    code, said = probe(address, "--service", "another.Service")
    assert code == 1
    assert said.startswith("NOT_FOUND")


def test_nobody_and_somebody_who_is_silent_are_not_well(probe):
    code, said = probe("127.0.0.1:1")
    assert code == 1
    assert said.startswith("UNAVAILABLE")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code, said = probe(f"127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.2")
    assert code == 1
    assert said.startswith("DEADLINE_EXCEEDED")


def test_a_name_that_is_too_long_is_wrong_usage(probe):
    assert probe("127.0.0.1:1", "--service", "x" * 127)[0] == 1
    assert probe("127.0.0.1:1", "--service", "x" * 128)[0] == 2


def test_a_variable_that_holds_no_address_is_wrong_usage_and_named(command_here, tmp_path):
    code, _, complaint = command_here("probe", env={"MMESH_TARGET_ADDRESS": ""}, folder=tmp_path)
    assert code == 2
    assert "MMESH_TARGET_ADDRESS is ''" in complaint
