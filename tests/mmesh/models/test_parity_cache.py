"""Notes of models that passed their canary: kept while nothing changes, and believed if ours."""

from __future__ import annotations

import json

import pytest

from mmesh.errors import FailedPrecondition
from mmesh.models import parity_cache
from mmesh.models.parity_cache import ParityCache, Passed

SUBJECT = {"fingerprint": "lite-1", "dtype": "float32"}
PASSED = Passed("query: text", 1.5e-6)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def note(folder):
    """The file of a note."""
    ParityCache(folder, SUBJECT).write(PASSED)
    (path,) = folder.iterdir()
    return path


def test_a_note_is_read_again_by_whoever_asks_about_the_same(folder, note):
    assert ParityCache(folder, dict(SUBJECT)).read() == PASSED
    assert ParityCache(folder / "other", SUBJECT).read() is None


def test_a_canary_that_cannot_be_read_is_not_taken_for_none(tmp_path):
    assert parity_cache.digest_of(None) == ""
    with pytest.raises(FailedPrecondition, match=r"gone\.npz cannot be read"):
        parity_cache.digest_of(tmp_path / "gone.npz")


@pytest.mark.parametrize("name", SUBJECT)
def test_another_model_or_setting_has_no_note(folder, note, name):
    assert ParityCache(folder, SUBJECT | {name: "other"}).read() is None


def test_another_library_processor_or_code_has_no_note(folder, note, monkeypatch, tmp_path):
    for name, value in parity_cache.surroundings().items():
        assert value or name in ("accelerators", "variables")
    monkeypatch.setenv("ORT_PROBE", "1")
    assert ParityCache(folder, SUBJECT).read() is None
    monkeypatch.delenv("ORT_PROBE")
    assert ParityCache(folder, SUBJECT).read() == PASSED
    monkeypatch.setattr(parity_cache, "CODE", tmp_path)
    assert ParityCache(folder, SUBJECT).read() is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"key": "x", "probe": "p", "largest": 0}',
             '{"key": "KEY", "probe": "p", "largest": "NaN"}'],
)  # fmt: skip
def test_a_damaged_note_is_none(folder, note, text):
    key = json.loads(note.read_text())["key"]
    note.write_text(text.replace("KEY", key))
    assert ParityCache(folder, SUBJECT).read() is None


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_note_that_others_may_write_is_not_believed(folder, note, is_folder):
    target = folder if is_folder else note
    target.chmod(target.stat().st_mode | 0o002)
    assert ParityCache(folder, SUBJECT).read() is None


def test_a_link_is_not_followed(folder, note, tmp_path):
    note.rename(tmp_path / "elsewhere")
    note.symlink_to(tmp_path / "elsewhere")
    assert ParityCache(folder, SUBJECT).read() is None


def test_a_note_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").touch()
    cache = ParityCache(tmp_path / "file", SUBJECT)
    cache.write(PASSED)
    assert cache.read() is None
