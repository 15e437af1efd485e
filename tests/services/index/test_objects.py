import errno
import os
import socket
import threading
import time
import uuid

import pytest

from mmesh.errors import DataLoss, StorageFull, Unavailable
from services.index.store.objects import open_objects
from tests.effort import patient

MIB = 1 << 20


@pytest.fixture(params=["folder", "s3"])
def open_again(request, tmp_path):
    """Open the same empty store, as often as wanted."""
    if request.param == "folder":
        return lambda: open_objects(tmp_path / "store")
    server, prefix = request.getfixturevalue("s3"), f"tests/{uuid.uuid4().hex}"
    return lambda: open_objects(server.url(prefix))


@pytest.fixture
def objects(open_again):
    return open_again()


def test_what_is_put_is_there_for_everybody(objects, open_again):
    objects.put("a/b", b"one")
    assert open_again().get("a/b") == b"one"
    assert open_again().size("a/b") == 3


def test_a_put_replaces(objects):
    objects.put("a", b"one")
    objects.put("a", b"three")
    assert objects.get("a") == b"three"


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, 20 * MIB + 3])
def test_files_go_up_and_come_down(objects, tmp_path, size):
    (tmp_path / "up").write_bytes(os.urandom(size))
    objects.put("files/x", tmp_path / "up")
    objects.download("files/x", tmp_path / "down", size)
    assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()


def test_a_download_of_another_size_is_refused(objects, tmp_path):
    objects.put("x", b"four")
    for size in (0, 3, 5, 2**62):
        with pytest.raises(DataLoss):
            objects.download("x", tmp_path / "down", size)
    assert not (tmp_path / "down").exists()


def test_what_is_missing_is_data_loss(objects, tmp_path):
    objects.put("folder/x", b"")
    for key in ("missing", "folder", "folder/x/y"):
        assert objects.size(key) is None
        with pytest.raises(DataLoss):
            objects.get(key)
        with pytest.raises(DataLoss):
            objects.download(key, tmp_path / "down", 1)


def test_put_new_stores_only_what_is_new(objects):
    assert objects.put_new("n/1", b"first")
    assert not objects.put_new("n/1", b"second")
    assert objects.get("n/1") == b"first"


def test_of_many_writers_one_is_the_first(open_again):
    ready, won = threading.Barrier(8), []

    def write(number):
        objects = open_again()
        ready.wait()
        if objects.put_new("race", b"%d" % number):
            won.append(b"%d" % number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [open_again().get("race")]


def test_a_listing_has_all_below_a_folder_and_nothing_beside_it(objects):
    before = time.time()
    for key in ("a/x", "a/b/y", "ab/z", "c"):
        objects.put(key, key.encode())
    found = objects.list("a")
    assert [(entry.key, entry.size) for entry in found] == [("a/b/y", 5), ("a/x", 3)]
    assert all(before - 5 < entry.modified < time.time() + 5 for entry in found)
    assert objects.list("nothing") == []


def test_a_long_listing_is_complete(s3):
    objects = open_objects(s3.url(f"tests/{uuid.uuid4().hex}"))
    keys = [f"many/{n:04}" for n in range(1050)]
    for key in keys:
        objects.put_new(key, b"")
    assert [entry.key for entry in objects.list("many")] == keys


def test_what_is_deleted_is_gone_and_may_be_deleted_again(objects):
    objects.put("a/x", b"1")
    objects.delete("a/x")
    objects.delete("a/x")
    assert objects.size("a/x") is None
    assert objects.put_new("a/x", b"2")


@pytest.mark.parametrize("key", ["", "/x", "a//b", "../x", "a/../../x", ".incoming/x", "a/.", "é"])
def test_no_key_leads_out_of_the_store(objects, tmp_path, key):
    for use in (
        lambda: objects.put(key, b""),
        lambda: objects.put_new(key, b""),
        lambda: objects.get(key),
        lambda: objects.size(key),
        lambda: objects.list(key),
        lambda: objects.delete(key),
        lambda: objects.download(key, tmp_path / "down", 0),
    ):
        with pytest.raises(ValueError, match="is not a key"):
            use()


def test_a_folder_keeps_nothing_of_a_write_that_failed(tmp_path):
    objects = open_objects(tmp_path)
    with pytest.raises(Unavailable):
        objects.put("x", tmp_path / "missing")
    assert objects.size("x") is None
    assert list((tmp_path / ".incoming").iterdir()) == []


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    objects = open_objects(tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        objects.put("x", b"data")
    assert objects.size("x") is None
    assert list((tmp_path / ".incoming").iterdir()) == []


def test_what_killed_writers_left_is_swept_an_hour_later(tmp_path):
    open_objects(tmp_path)
    old, new = tmp_path / ".incoming" / "old", tmp_path / ".incoming" / "new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000,) * 2)
    open_objects(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def test_an_address_is_a_folder_or_s3(tmp_path):
    for address in ("https://bucket/x", "s3://", "s3://b/x?endpont=y", "s3://b/../x"):
        with pytest.raises(ValueError, match=r"is neither|unknown options|is not a key"):
            open_objects(address)


def test_without_tls_only_this_machine_is_talked_to():
    with pytest.raises(ValueError, match="is not encrypted"):
        open_objects("s3://bucket/x?endpoint=http://store.example:9000")
    open_objects("s3://bucket/x?endpoint=http://store.example:9000&allow_http=true")
    open_objects("s3://bucket/x?endpoint=http://store.example:9000", allow_http=True)
    open_objects("s3://bucket/x?endpoint=http://[::1]:9000")


def test_a_store_that_is_away_is_said_soon(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with socket.socket() as nobody:  # bound, but it does not listen
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        away = open_objects(f"s3://bucket/x?endpoint=http://127.0.0.1:{port}&region=us-east-1")
        calls = {
            "put": lambda: away.put("x", b"data"),
            "put_new": lambda: away.put_new("x", b"data"),
            "get": lambda: away.get("x"),
            "size": lambda: away.size("x"),
            "list": lambda: away.list("x"),
            "delete": lambda: away.delete("x"),
            "download": lambda: away.download("x", tmp_path / "down", 1),
        }
        for name, call in calls.items():
            start = time.monotonic()
            with pytest.raises(Unavailable):
                call()
            assert time.monotonic() - start < patient(15), name
