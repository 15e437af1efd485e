"""An infinity-emb server as a process of its own, in the environment of `make setup-infinity`."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmesh import Content
from mmesh.local.ports import free_port

PYTHON = Path(__file__).parents[1] / ".venv-infinity" / "bin" / "python"
START_S = 300.0
QUIET = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


@dataclass
class InfinityProcess:
    """A running infinity server; `running_infinity` makes one."""

    port: int

    @contextmanager
    def encode(self) -> Iterator[Callable[..., bytes]]:
        """Yield a function from the body of a request to that of the answer, on one connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)

        def encode(request: bytes, timeout: float) -> bytes:
            connection.timeout = timeout
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/embeddings", request, headers)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise RuntimeError(f"infinity answered {response.status}: {body[:200]!r}")
            return body

        try:
            yield encode
        finally:
            connection.close()


def pack(model: Path, contents: Sequence[Content]) -> bytes:
    """Return the body of a request for vectors as bytes, which cost the server least."""
    texts = [content.text for content in contents]
    request = {"model": model.name, "input": texts, "encoding_format": "base64"}
    return json.dumps(request).encode()


@contextmanager
def running_infinity(python: Path, model: Path) -> Iterator[InfinityProcess]:
    """Serve the model in a folder with infinity's own settings for a CPU."""
    port = free_port()
    command = [
        str(python), "-m", "infinity_emb.cli", "v2", "--model-id", str(model),
        "--served-model-name", model.name, "--engine", "torch", "--device", "cpu",
        "--host", "127.0.0.1", "--port", str(port), "--log-level", "error",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=os.environ | QUIET, stderr=subprocess.DEVNULL)
    try:
        _wait_ready(process, port)
        yield InfinityProcess(port)
    finally:
        process.terminate()
        process.wait(60)


def _wait_ready(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.5)
        finally:
            connection.close()
    raise SystemExit("infinity did not start")
