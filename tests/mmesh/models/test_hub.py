"""Model references: folders and a hub, what is refused, and what a fingerprint depends on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mmesh.errors import FailedPrecondition
from mmesh.models import hub
from mmesh.models.encoders.families import EncoderChoice, open_encoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": b"weights",
    "1_Pooling/config.json": b'{"pooling_mode": "mean"}',
    "tokenizer.json": b"{}",
    "modeling.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
}
SETTINGS = {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
FETCHED = {"config.json", "model.safetensors", "1_Pooling/config.json", "tokenizer.json"}


def write(folder: Path, **changes: bytes | None) -> Path:
    """Write a model's folder; `config_json=b"..."` replaces config.json, None leaves it out."""
    named = {name.replace("_", ".", 1): data for name, data in changes.items()}
    for name, data in (FILES | named).items():
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return folder


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    assert hub.local_folder(str(folder)) == folder
    assert hub.display_name(str(folder), folder) == "model"
    assert hub.read_config(folder) == {"model_type": "bert"}


@pytest.mark.parametrize("place", ["", "0_Transformer/"])
def test_an_adapter_without_its_base_is_refused(tmp_path: Path, place: str) -> None:
    """Its base lies elsewhere, and nothing says that it is still the one it was trained on."""
    adapter = {
        f"{place}adapter_config.json": b'{"base_model_name_or_path": "org/base"}',
        f"{place}adapter_model.safetensors": b"weights",
    }
    for name, data in adapter.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(FailedPrecondition, match=r"an adapter of org/base, not a whole model"):
        hub.local_folder(str(tmp_path))
    write(tmp_path)  # beside a whole model it does no harm
    assert hub.local_folder(str(tmp_path)) == tmp_path


def test_weights_that_run_code_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, model_safetensors=None)
    with pytest.raises(FailedPrecondition, match=r"only pytorch_model\.bin, which would run code"):
        hub.local_folder(str(folder))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (b'{"auto_map": {"AutoModel": "modeling.X"}}', "trust-remote-code"),
        (b"not JSON", "is not JSON"),
        (b"[]", "no JSON object"),
    ],
)
def test_configs_that_name_code_or_are_broken_are_refused(
    tmp_path: Path, config: bytes, problem: str
) -> None:
    folder = write(tmp_path, config_json=config)
    assert hub.local_folder(str(folder)) == folder
    with pytest.raises(FailedPrecondition, match=problem):
        open_encoder(EncoderChoice(str(folder)))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no folder"):
        hub.local_folder(str(tmp_path / "absent"))
    with pytest.raises(FailedPrecondition, match="hf:ORG/NAME"):
        hub.local_folder("hf:only-a-name")
    with pytest.raises(FailedPrecondition, match="no family is called 'bag-of-words'"):
        open_encoder(EncoderChoice(str(write(tmp_path)), family="bag-of-words"))


def test_fingerprints_depend_on_content_alone(tmp_path: Path) -> None:
    def fingerprint(folder: Path, *parts: object) -> str:
        return hub.fingerprint_of(folder, "family", parts or ("float32", 1))

    first = write(tmp_path / "first")
    known = fingerprint(first)
    assert known.startswith("family-")
    copy = Path(shutil.copytree(first, tmp_path / "second"))
    (copy / "README.md").write_text("says nothing that a vector depends on")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "state.json").write_text("{}")
    assert fingerprint(copy) == known
    assert fingerprint(copy, "bfloat16", 1) != known
    pooling = copy / "1_Pooling" / "config.json"
    pooling.rename(copy / "pooling.json")
    assert fingerprint(copy) != known
    (copy / "pooling.json").rename(pooling)
    assert fingerprint(copy) == known
    pooling.write_bytes(b'{"pooling_mode": "last"}')
    assert fingerprint(copy) != known


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP as fetching one model takes."""

    def __init__(self, asked: list[str], *arguments: object) -> None:
        self.asked = asked
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        _, _, file = path.partition(f"/org/name/resolve/{COMMIT}/")
        if path == "/api/models/org/name/revision/main":
            self.answer(json.dumps({"id": "org/name", "sha": COMMIT}).encode(), "application/json")
        elif path == f"/api/models/org/name/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": self.etag(data)}
                for name, data in FILES.items()
            ]
            self.answer(json.dumps(entries).encode(), "application/json")
        elif file in FILES:
            if self.command == "GET":
                self.asked.append(file)
            self.answer(FILES[file], "application/octet-stream")
        else:
            self.send_error(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    @staticmethod
    def etag(data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()

    def answer(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{self.etag(data)}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def asked() -> list[str]:
    """The files that the hub was asked for."""
    return []


@pytest.fixture
def address(asked: list[str]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, asked))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def folder_of(model: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Resolve a reference in a process of its own, as the hub's client reads settings once."""
    code = "import sys; from mmesh.models import hub; print(hub.local_folder(sys.argv[1]))"
    return subprocess.run(
        [sys.executable, "-c", code, model],
        env=os.environ | SETTINGS | {"HF_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None,
    reason="huggingface_hub is absent: run `make setup-models`",
)
def test_a_model_of_the_hub_is_fetched_once_and_pinned(
    tmp_path: Path, address: str, asked: list[str]
) -> None:
    done = folder_of("hf:org/name", tmp_path, HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == FETCHED == set(asked)
    assert hub.display_name("hf:org/name", folder) == f"org/name@{COMMIT[:12]}"
    for model in ("hf:org/name", f"hf:org/name@{COMMIT}"):
        offline = folder_of(model, tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
        assert Path(offline.stdout.strip()) == folder, offline.stderr
    gone = folder_of("hf:org/other", tmp_path, HF_ENDPOINT=address)
    assert "FailedPrecondition: hf:org/other cannot be fetched" in gone.stderr
