import hashlib
import threading
import uuid
from pathlib import Path

import pytest

from mmesh.errors import DataLoss, LogUnavailable, StorageFull
from services.index.store.blobs import ContentBlobs, open_blobs
from services.index.store.objects import LocalObjects, open_objects


@pytest.fixture(params=["folder", "s3"])
def address(request, tmp_path):
    if request.param == "folder":
        return tmp_path / "data"
    return request.getfixturevalue("s3").url(f"tests/{uuid.uuid4().hex}")


class Counted(LocalObjects):
    """A folder that counts how often it is asked and written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked = self.written = 0

    def size(self, key):
        self.asked += 1
        return super().size(key)

    def put(self, key, data):
        self.written += 1
        super().put(key, data)


def test_bytes_come_back_by_their_hash(address):
    blobs = open_blobs(address)
    digest = blobs.put(b"picture")
    assert digest == hashlib.sha256(b"picture").hexdigest()
    assert open_blobs(address).get(digest) == b"picture"


def test_nothing_is_a_picture_too(address):
    assert open_blobs(address).get(open_blobs(address).put(b"")) == b""


def test_missing_bytes_are_data_loss(address):
    with pytest.raises(DataLoss) as loss:
        open_blobs(address).get("ab" * 32)
    assert loss.value.metadata == {"sha256": "ab" * 32}


def test_changed_bytes_are_data_loss_and_mended_by_the_next_put(address):
    digest = open_blobs(address).put(b"picture")
    open_objects(address).put(f"blobs/{digest[:2]}/{digest[2:]}", b"pict")
    with pytest.raises(DataLoss):
        open_blobs(address).get(digest)
    open_blobs(address).put(b"picture")
    assert open_blobs(address).get(digest) == b"picture"


def test_data_folders_of_before_are_read(tmp_path):
    digest = hashlib.sha256(b"old").hexdigest()
    path = tmp_path / "blobs" / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"old")
    assert open_blobs(tmp_path).get(digest) == b"old"


def test_equal_pictures_are_written_once_and_asked_for_once(tmp_path):
    objects = Counted(tmp_path)
    blobs = ContentBlobs(objects)
    for _ in range(5):
        blobs.put(b"picture")
    assert (objects.asked, objects.written) == (1, 1)
    ContentBlobs(objects).put(b"picture")
    assert (objects.asked, objects.written) == (2, 1)


def test_many_threads_store_the_same_pictures(address):
    blobs = open_blobs(address)
    pictures = [b"picture %d" % n for n in range(20)]
    threads = [threading.Thread(target=lambda: [*map(blobs.put, pictures)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [blobs.get(hashlib.sha256(p).hexdigest()) for p in pictures] == pictures


def test_a_failed_put_is_not_remembered(tmp_path, monkeypatch):
    blobs = open_blobs(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", _fails(28))
        with pytest.raises(StorageFull):
            blobs.put(b"picture")
        patch.setattr("os.fsync", _fails(5))
        with pytest.raises(LogUnavailable, match="pictures cannot be stored"):
            blobs.put(b"picture")
    assert blobs.get(blobs.put(b"picture")) == b"picture"


def _fails(number):
    def fail(_):
        raise OSError(number, "as asked")

    return fail
