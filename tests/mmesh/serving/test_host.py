"""A server that cannot listen says which port, and what to do; one that runs leaves no garbage."""

import asyncio
import gc
import socket

import pytest

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
