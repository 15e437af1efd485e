"""What keeps training from starting: a library that is missing, or one that does not load."""

from __future__ import annotations

import importlib

import pytest

from mmesh.training.errors import not_importable


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import no_such_library", "training needs no_such_library: pip install"),
        ("raise ImportError('libcudart.so.13: cannot open')", "does not load: libcudart.so.13"),
    ],
)
def test_a_missing_library_is_told_from_a_broken_one(tmp_path, monkeypatch, source, told):
    (tmp_path / "needed_to_train.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError) as met:
        importlib.import_module("needed_to_train")
    assert told in str(not_importable(met.value))
