"""A server that cannot listen says which port, and what to do."""

import socket

import pytest

from mmesh.serving.host import Host
from mmesh.serving.settings import ServiceSettings


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
