import hashlib
import threading
import uuid
from pathlib import Path

import pytest

from mmesh.errors import DataLoss, LogUnavailable, StorageFull
from services.index.store.blobs import PERIOD_S, ContentBlobs, key_of, name_of, open_blobs
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


def test_bytes_come_back_by_their_name_which_begins_with_their_hash(address):
    blobs = open_blobs(address)
    name = blobs.put(b"picture")
    assert name.startswith(f"{hashlib.sha256(b'picture').hexdigest()}.")
    assert open_blobs(address).get(name) == b"picture"


def test_nothing_is_a_picture_too(address):
    assert open_blobs(address).get(open_blobs(address).put(b"")) == b""


def test_missing_bytes_are_data_loss(address):
    with pytest.raises(DataLoss) as loss:
        open_blobs(address).get("ab" * 32)
    assert loss.value.metadata == {"sha256": "ab" * 32}


def test_changed_bytes_are_data_loss_and_mended_by_the_next_put(address):
    blobs = ContentBlobs(open_objects(address), clock=lambda: 0.0)
    name = blobs.put(b"picture")
    open_objects(address).put(key_of(name), b"pict")
    with pytest.raises(DataLoss):
        blobs.get(name)
    assert blobs.put(b"picture") == name
    assert blobs.get(name) == b"picture"


def test_a_picture_that_was_lost_is_stored_again_by_the_same_process(address):
    objects = open_objects(address)
    blobs = ContentBlobs(objects)
    objects.delete(key_of(blobs.put(b"picture")))
    assert blobs.get(blobs.put(b"picture")) == b"picture"


def test_a_picture_of_another_hour_is_another_copy(address):
    now = [0.0]
    blobs = ContentBlobs(open_objects(address), clock=lambda: now[0])
    first = blobs.put(b"picture")
    now[0] += PERIOD_S
    second = blobs.put(b"picture")
    open_objects(address).delete(key_of(first))
    assert first != second
    assert blobs.get(second) == b"picture"


@pytest.mark.parametrize("name", ["ab" * 32, f"{'0f' * 32}.1a2b"])
def test_names_and_keys_are_one_another(name):
    assert name_of(key_of(name)) == name


@pytest.mark.parametrize(
    "key", ["blobs/ab/cd", "blobs/" + "ab" * 32, "snapshots/ab/cd", f"blobs/ab/{'cd' * 31}.1.2", ""]
)
def test_other_objects_have_no_name(key):
    assert name_of(key) is None


def test_data_folders_of_before_are_read(tmp_path):
    digest = hashlib.sha256(b"old").hexdigest()
    path = tmp_path / "blobs" / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"old")
    assert open_blobs(tmp_path).get(digest) == b"old"


def test_equal_pictures_of_an_hour_are_written_once_by_all_processes(tmp_path):
    objects = Counted(tmp_path)
    for _ in range(3):
        blobs = ContentBlobs(objects, clock=lambda: 0.0)
        for _ in range(2):
            blobs.put(b"picture")
    assert (objects.asked, objects.written) == (6, 1)


def test_many_threads_store_the_same_pictures(address):
    blobs = ContentBlobs(open_objects(address), clock=lambda: 0.0)
    pictures = [b"picture %d" % n for n in range(20)]
    threads = [threading.Thread(target=lambda: [*map(blobs.put, pictures)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [blobs.get(f"{hashlib.sha256(p).hexdigest()}.0") for p in pictures] == pictures


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
