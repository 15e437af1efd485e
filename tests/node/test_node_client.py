"""A client in another language needs nothing but protos/."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROTOS = HERE.parents[1] / "protos"

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(
        not shutil.which("node") or not (HERE / "node_modules").is_dir(),
        reason="the Node client is absent: install nodejs and npm, then run `make setup-node`",
    ),
]


def test_a_node_client_ingests_and_searches_with_text_and_picture(
    mesh, collection, pictures, tmp_path
):
    picture = tmp_path / "picture.png"
    picture.write_bytes(pictures.png())
    command = ["node", HERE / "client.mjs", mesh.address, PROTOS, collection, picture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["stored"] == 1
    assert answer["rejected"] == [["broken", "INVALID_IMAGE"]]
    assert answer["byText"] == [["words", "MODALITY_TEXT", 1]]
    assert answer["year"] == 2001
    assert answer["byPicture"] == ["picture"]
    assert answer["pictureScore"] == pytest.approx(1, abs=1e-4)
    assert answer["filtered"] == 0
    assert answer["coverage"] == {"shards_answered": 2, "shards_total": 2}
    assert answer["isRepeated"]
    assert answer["reused"] == [9, "REQUEST_ID_REUSED"]
    assert answer["maxLimit"] == 50
    assert answer["index"] == [["SERVICE_STATE_SERVING", shard, 2, 0] for shard in range(2)]
    assert answer["requestId"] == "from-node"
    nothing = {"fields": []}
    assert answer["nowhere"] == [
        5,
        nothing | {"reason": "COLLECTION_NOT_FOUND", "metadata": {"collection": "nowhere"}},
    ]
    code, told = answer["unknownToken"]  # of a write that the log does not have
    assert (code, told["reason"], "retryMs" in told) == (9, "HISTORY_LOST", False)
    assert answer["wrong"] == [
        3,
        {"reason": "INVALID_FIELD", "metadata": {"field": "limit"}, "fields": ["limit"]},
    ]
    assert answer["away"] == [14, nothing | {"reason": "", "metadata": {}, "retryMs": 500}]
