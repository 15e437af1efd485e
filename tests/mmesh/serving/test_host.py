"""A server that cannot listen says which port, and what to do; one that runs leaves no garbage."""

import asyncio
import gc
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pytest

from mmesh.errors import FailedPrecondition
from mmesh.serving import host as hosts
from mmesh.serving.host import Host
from mmesh.serving.settings import ServiceSettings
from tests.effort import patient


@pytest.mark.parametrize("option", ["port", "metrics_port"])
async def test_a_port_that_is_taken_is_named_with_the_option_that_chooses_another(option):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        ports = {"port": 0, "metrics_port": 0} | {option: taken}
        host = Host("index", ServiceSettings(host="127.0.0.1", **ports))
        with pytest.raises(SystemExit) as stopped:
            await host.start()
        await host.server.stop(0)
    flag = f"--{option.replace('_', '-')}"
    assert all(part in str(stopped.value) for part in (f"127.0.0.1:{taken}", f"another {flag}"))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6")
@pytest.mark.parametrize("address", ["::", "::1", "[::1]"])
async def test_a_service_and_its_metrics_listen_on_ipv6(address):
    host = Host("index", ServiceSettings(host=address, metrics_port=0))
    await host.start()
    for port in (host.port, host.metrics_port):
        socket.create_connection(("::1", port)).close()
    await host.server.stop(0)


@pytest.mark.parametrize("address", ["no-such-host.invalid", "", "192.0.2.1"])
async def test_an_address_that_the_machine_does_not_have_is_not_called_taken(address):
    host = Host("index", ServiceSettings(host=address, metrics_port=0))
    with pytest.raises(SystemExit) as metrics:
        host.serve_metrics()
    with pytest.raises(SystemExit) as stopped:
        await host.start()
    await host.server.stop(0)
    assert str(metrics.value) == str(stopped.value)
    assert f"{address}:0: " in str(stopped.value)
    assert str(stopped.value).endswith("choose another --host")


async def test_full_collections_pass_over_what_was_there_when_serving_began():
    """Else each goes through all objects of torch, and every call waits for it."""
    gc.unfreeze()
    host = Host("index", ServiceSettings(host="127.0.0.1", drain_s=0, grace_s=0))
    await host.start()
    running = asyncio.create_task(host.run())
    try:
        async with asyncio.timeout(patient(5)):
            while not gc.get_freeze_count():  # noqa: ASYNC110  # nothing tells but looking
                await asyncio.sleep(0.001)
        assert gc.get_freeze_count() > 10_000
    finally:
        host.stop.set()
        await running
        gc.unfreeze()


@pytest.mark.parametrize(
    ("service", "opening"), [("encoder", "open_encoder"), ("reranker", "open_judge")]
)
async def test_metrics_are_served_before_a_model_is_loaded(service, opening, monkeypatch):
    """Else Prometheus takes a process that loads 16 GB for one that is gone."""
    module = importlib.import_module(f"services.{service}.server")
    settings_of = getattr(module, f"{service.title()}Settings")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    seen = []

    def look(*_):
        address = f"http://127.0.0.1:{port}/metrics"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        seen.append(opener.open(address, timeout=patient(5)).read())
        raise FailedPrecondition("there is no model")

    monkeypatch.setattr(module, opening, look)
    with pytest.raises(FailedPrecondition):
        await module.serve(settings_of(host="127.0.0.1", port=0, metrics_port=port))
    assert b"mmesh_build_info" in seen[0]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is missing")
def test_the_first_process_of_a_container_ends_at_once_while_it_starts():
    """The kernel gives that one no signal that it does not handle."""
    program = textwrap.dedent(
        """
        import asyncio, os
        from mmesh.serving.host import run_service
        from mmesh.serving.settings import ServiceSettings

        async def start():
            print(os.getpid(), flush=True)
            await asyncio.sleep(3600)

        run_service(start(), ServiceSettings())
        """
    )
    contained = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    command = [*contained, sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as outside:
        try:
            if (said := outside.stdout.readline().strip()) != "1":
                pytest.skip("there are no namespaces here")
            children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
            os.kill(int(children.read_text()), signal.SIGTERM)
            assert outside.wait(patient(10)) == 128 + signal.SIGTERM, said
        finally:
            outside.kill()


def test_a_service_learns_how_its_children_end_whatever_its_parent_ignores():
    program = textwrap.dedent(
        """
        import signal, subprocess, sys
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as it would be passed on
        from mmesh.serving.host import run_service
        from mmesh.serving.settings import ServiceSettings

        async def start():
            sys.exit(10 + subprocess.call([sys.executable, "-c", "exit(7)"]))

        run_service(start(), ServiceSettings())
        """
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 17


async def test_what_is_ill_is_served_no_longer_and_its_process_ends(monkeypatch):
    monkeypatch.setattr(hosts, "ILL_LOOK_S", 0.01)
    healthy = [True]
    host = Host("index", ServiceSettings(port=0, drain_s=0.0))
    await host.start()
    asyncio.get_running_loop().call_later(0.05, healthy.clear)
    with pytest.raises(SystemExit, match="the device is lost"):
        await host.run_while(lambda: bool(healthy), "the device is lost")
    assert host.stop.is_set()
