"""Where pictures and snapshots are kept: bytes by key, in a folder or in S3."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from mmesh.errors import DataLoss, StorageFull, Unavailable

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

FULL = (errno.ENOSPC, errno.EDQUOT)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_PART = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,199}")
_INCOMING = ".incoming"
_STALE_S = 3600.0

_CHUNK = 8 << 20
_CONNECTIONS = 4
_CLIENT: ClientConfig = {"connect_timeout": "5s", "timeout": "20s"}
_RETRY: RetryConfig = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {
        "init_backoff": timedelta(seconds=0.1),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}
"""A request ends after 40 s at the worst, and after 2 s where nobody listens."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored object, as a listing gives it."""

    key: str
    size: int
    """Bytes."""
    modified: float
    """Seconds since 1970, by the store's clock."""


class Objects(Protocol):
    """Bytes by key; keys are names joined by slashes. May be used from several threads.

    All calls end within a bounded time, and raise:
        Unavailable: the store cannot be reached, or refuses.
        StorageFull: it has no room; nothing was stored.
    """

    def put(self, key: str, data: bytes | Path) -> None:
        """Store the bytes, or those of a file, durably and at once as a whole."""

    def put_new(self, key: str, data: bytes) -> bool:
        """Store the bytes unless the key exists; return whether they were stored.

        Of several writers at the same time one is told True.
        """

    def get(self, key: str) -> bytes:
        """Return the bytes.

        Raises:
            DataLoss: the key does not exist.
        """

    def download(self, key: str, path: Path, size: int) -> None:
        """Write the object's `size` bytes to a new file.

        Raises:
            DataLoss: the key does not exist or has another size.
        """

    def size(self, key: str) -> int | None:
        """Return the size in bytes, or None where the key does not exist."""

    def modified(self, key: str) -> float | None:
        """Return when it was stored, as `Entry.modified`, or None where the key does not exist."""

    def list(self, prefix: str) -> list[Entry]:
        """Return all objects below a folder, by key."""

    def delete(self, key: str) -> None:
        """Delete the object if it exists."""


def open_objects(address: str | Path, *, allow_http: bool = False) -> Objects:
    """Open a folder, or `s3://bucket/prefix?endpoint=...&region=...&allow_http=true`.

    Credentials of S3 are taken from the environment (`AWS_*`). Without TLS only this machine is
    talked to, unless `allow_http` is set here or in the address.

    Raises:
        ValueError: the address is not understood.
    """
    if isinstance(address, Path) or "://" not in address:
        return LocalObjects(Path(address))
    parts = urlsplit(address)
    options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError(f"{address!r} is neither a folder nor s3://bucket/prefix")
    if unknown := options.keys() - {"endpoint", "region", "allow_http"}:
        raise ValueError(f"{address!r} has unknown options: {', '.join(sorted(unknown))}")
    return S3Objects(
        parts.netloc,
        parts.path.strip("/"),
        endpoint=options.get("endpoint", ""),
        region=options.get("region", ""),
        allow_http=allow_http or options.get("allow_http") == "true",
    )


def _check_key(key: str) -> str:
    """Return the key if it is one, so that none leads out of the store."""
    if not all(_PART.fullmatch(part) for part in key.split("/")):
        raise ValueError(f"{key[:200]!r} is not a key")
    return key


# -- a folder


class LocalObjects:
    """Objects as files below a folder; on disk, with their names, before a call returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / _INCOMING
        self._lasting: set[Path] = set()
        with storing(folder):
            self._incoming.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def put(self, key: str, data: bytes | Path) -> None:
        """See `Objects`."""
        target = self._path(key)
        with storing(target), self._new_file(data) as name:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(name, target)
            self._sync(target.parent)

    def put_new(self, key: str, data: bytes) -> bool:
        """See `Objects`."""
        target = self._path(key)
        with storing(target), self._new_file(data) as name:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(name, target)
            except FileExistsError:
                return False
            self._sync(target.parent)
        return True

    def get(self, key: str) -> bytes:
        """See `Objects`."""
        with _reading(key):
            return self._path(key).read_bytes()

    def download(self, key: str, path: Path, size: int) -> None:
        """See `Objects`."""
        source = self._path(key)
        with _reading(key):
            found = source.stat().st_size
            handle = source.open("rb")
        with handle:
            _check_size(key, found, size)
            with storing(path), path.open("xb") as target:
                shutil.copyfileobj(handle, target, _CHUNK)

    def size(self, key: str) -> int | None:
        """See `Objects`."""
        found = self._status(key)
        return None if found is None else found.st_size

    def modified(self, key: str) -> float | None:
        """See `Objects`."""
        found = self._status(key)
        return None if found is None else found.st_mtime

    def _status(self, key: str) -> os.stat_result | None:
        try:
            found = self._path(key).stat()
            return found if stat.S_ISREG(found.st_mode) else None
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise Unavailable(f"{key} cannot be read: {error.strerror}") from error

    def list(self, prefix: str) -> list[Entry]:
        """See `Objects`."""
        with _listing(prefix):
            return sorted(self._walk(self._path(prefix)), key=lambda entry: entry.key)

    def _walk(self, folder: Path) -> Iterator[Entry]:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
            for item in found:
                path = Path(item.path)
                if item.is_dir(follow_symlinks=False):
                    yield from self._walk(path)
                    continue
                with suppress(FileNotFoundError):  # deleted by somebody in the meantime
                    status = item.stat(follow_symlinks=False)
                    key = path.relative_to(self._folder).as_posix()
                    yield Entry(key, status.st_size, status.st_mtime)

    def delete(self, key: str) -> None:
        """See `Objects`."""
        path = self._path(key)
        with storing(path):
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / _check_key(key)

    @contextmanager
    def _new_file(self, data: bytes | Path) -> Iterator[str]:
        """Write a file that lasts, under a name of its own, and remove that name at the end."""
        handle, name = tempfile.mkstemp(dir=self._incoming)
        try:
            with os.fdopen(handle, "wb") as file:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, file, _CHUNK)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield name
        finally:
            with suppress(OSError):
                Path(name).unlink(missing_ok=True)

    def _sync(self, folder: Path) -> None:
        """Make the names in `folder` last; the first time also those that lead to it."""
        _sync_names(folder)
        if folder in self._lasting:
            return
        for above in folder.parents:
            _sync_names(above)
            if above == self._folder.parent:
                break
        self._lasting.add(folder)

    def _sweep(self) -> None:
        """Remove what writers left that were killed."""
        with suppress(OSError):
            for path in self._incoming.iterdir():
                if path.stat().st_mtime < time.time() - _STALE_S:
                    path.unlink(missing_ok=True)


def _sync_names(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what a file system says of a write into our errors.

    Raises:
        StorageFull: the disk is full.
        Unavailable: anything else.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull("the disk is full; nothing of the request was stored") from error
        raise Unavailable(f"{path.name} cannot be stored: {error.strerror}") from error


@contextmanager
def _reading(key: str) -> Iterator[None]:
    """Turn what a store says of a read into our errors."""
    try:
        yield
    except OSError as error:  # obstore, too, raises FileNotFoundError
        if isinstance(error, FileNotFoundError) or error.errno in _ABSENT:
            raise DataLoss("a stored object is missing", {"key": key}) from None
        raise Unavailable(f"{key} cannot be read: {error.strerror}") from error
    except BaseError as error:
        raise _unavailable(error) from error


@contextmanager
def _listing(prefix: str) -> Iterator[None]:
    """Turn what a store says of a listing or deletion into our errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise Unavailable(f"the store has no place for {prefix}") from error
    except OSError as error:
        raise Unavailable(f"{prefix} cannot be listed: {error.strerror}") from error
    except BaseError as error:
        raise _unavailable(error) from error


def _check_size(key: str, found: int, expected: int) -> None:
    if found != expected:
        sizes = {"size": str(found), "expected_size": str(expected)}
        raise DataLoss("a stored object has another size", {"key": key} | sizes)


def _unavailable(error: BaseError) -> Unavailable:
    """Return our error for S3's; its text names addresses, so only its kind goes to users."""
    return Unavailable(f"the object store does not answer ({type(error).__name__})")


# -- S3


class S3Objects:
    """Objects in a bucket, below a prefix.

    Files above 8 MiB are uploaded in parts. A process that is killed meanwhile leaves parts that
    nobody sees; a lifecycle rule of the bucket should remove them after a day.
    """

    def __init__(
        self, bucket: str, prefix: str, *, endpoint: str, region: str, allow_http: bool
    ) -> None:
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3", "")
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL", "")
        plain = allow_http or _is_loopback(endpoint)
        if endpoint.startswith("http://") and not plain:
            raise ValueError(f"{endpoint} is not encrypted; use https, or allow_http=true")
        given = {"endpoint": endpoint, "region": region}
        client: ClientConfig = {**_CLIENT, "allow_http": plain}
        self._prefix = f"{_check_key(prefix)}/" if prefix else ""
        self._store = S3Store(
            bucket,
            config={key: value for key, value in given.items() if value},  # type: ignore[arg-type]
            client_options=client,
            retry_config=_RETRY,
        )

    def put(self, key: str, data: bytes | Path) -> None:
        """See `Objects`."""
        with _uploading():
            obstore.put(
                self._store,
                self._name(key),
                data,
                chunk_size=_CHUNK,
                max_concurrency=_CONNECTIONS,
            )

    def put_new(self, key: str, data: bytes) -> bool:
        """See `Objects`."""
        with _uploading():
            try:
                obstore.put(self._store, self._name(key), data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def get(self, key: str) -> bytes:
        """See `Objects`."""
        with _reading(key):
            return bytes(obstore.get(self._store, self._name(key)).bytes())

    def download(self, key: str, path: Path, size: int) -> None:
        """See `Objects`; in ranges, so that the time of a request is bounded for any size."""
        name = self._name(key)
        with _reading(key):
            _check_size(key, obstore.head(self._store, name)["size"], size)

        def fetch(start: int) -> None:
            with _reading(key):
                end = min(start + _CHUNK, size)
                part = obstore.get_range(self._store, name, start=start, end=end)
                _check_size(key, len(part), end - start)
            write(start, part)

        with storing(path), path.open("xb") as file:
            write = _writer(file.fileno())
            with ThreadPoolExecutor(_CONNECTIONS, "download") as pool:
                for _ in pool.map(fetch, range(0, size, _CHUNK)):
                    pass

    def size(self, key: str) -> int | None:
        """See `Objects`."""
        found = self._head(key)
        return None if found is None else found["size"]

    def modified(self, key: str) -> float | None:
        """See `Objects`."""
        found = self._head(key)
        return None if found is None else found["last_modified"].timestamp()

    def _head(self, key: str) -> ObjectMeta | None:
        try:
            return obstore.head(self._store, self._name(key))
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise _unavailable(error) from error

    def list(self, prefix: str) -> list[Entry]:
        """See `Objects`."""
        entries = []
        with _listing(prefix):
            for page in obstore.list(self._store, self._name(prefix), chunk_size=1000):
                entries += [
                    Entry(
                        item["path"].removeprefix(self._prefix),
                        item["size"],
                        item["last_modified"].timestamp(),
                    )
                    for item in page
                ]
        return sorted(entries, key=lambda entry: entry.key)

    def delete(self, key: str) -> None:
        """See `Objects`."""
        with _listing(key), suppress(FileNotFoundError):
            obstore.delete(self._store, self._name(key))

    def _name(self, key: str) -> str:
        return self._prefix + _check_key(key)


def _writer(handle: int) -> Callable[[int, obstore.Bytes], None]:
    """Return what writes a part to its place in an open file, all of it."""

    def write(start: int, part: obstore.Bytes) -> None:
        rest = memoryview(part)
        while rest:
            written = os.pwrite(handle, rest, start)
            rest, start = rest[written:], start + written

    return write


@contextmanager
def _uploading() -> Iterator[None]:
    """Turn what S3 says of a write into our errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise Unavailable("the bucket, or the file to be stored, does not exist") from error
    except BaseError as error:
        raise _unavailable(error) from error


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
