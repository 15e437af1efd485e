"""Every picture of a folder becomes a candidate, whatever its file is called."""

import os
import sys

import pytest

from mmesh.candidates import check_candidate
from mmesh.cli.files.sources.attribute_values import ColumnRules
from mmesh.cli.files.sources.folders import FolderRules, folder_items
from mmesh.cli.files.sources.notes import Notes
from mmesh.values.ids import path_of_id

NAMES = [
    "plain.png",
    "Screenshot 2024-05-01 at 9.41.07\u202fAM.png",
    "a\u00a0b.png",
    "\u5199\u771f\u30001.png",
    "\U0001f468\u200d\U0001f469.png",
    "soft\u00adhyphen.png",
    "cafe\u0301.png",
    "caf\u00e9.png",
    "\ue000\u0378.png",
    "50%25.png",
    "two\nlines\x1b[31m.png",
    os.fsdecode(b"caf\xe9.png"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_of_any_name_is_a_candidate_that_leads_back_to_it(tmp_path, picture):
    for name in NAMES:
        (tmp_path / name).write_bytes(picture())
    rules = ColumnRules({})
    found = [item.make() for item in folder_items(tmp_path, FolderRules(), rules, Notes())]
    for candidate in found:
        check_candidate(candidate, "candidate")
    assert sorted(path_of_id(one.id) for one in found) == sorted(NAMES)
