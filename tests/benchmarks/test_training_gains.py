"""The script that trains `lite` on German texts and icons runs whole, at tiny sizes, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import md5
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
pytest.importorskip("resvg_py", reason="resvg-py is absent: run `make setup-training`")
if find_spec("peft") is None:  # importing it here would be too early, see mmesh.models.compat
    pytest.skip("peft is absent: run `make setup-training`", allow_module_level=True)
pytestmark = [pytest.mark.training, pytest.mark.models, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
NAMES = ("adlib", "brisk", "cinder", "dapple", "ember", "fjord", "gusto", "heron", "inlet", "jolt")
TRADES = ("edits", "plays", "sorts", "prints")
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">'
    '<circle cx="9" cy="9" r="{}"/></svg>'
)
RUN = "import bench, pathlib, sys, training_gains; bench.RESULTS = pathlib.Path(sys.argv.pop()); "


def write_archive(work: Path) -> None:
    """Write English descriptions of 40 programs, and German ones of all but each fourth."""
    english, german = [], []
    for place, (name, trade) in enumerate((n, t) for n in NAMES for t in TRADES):
        line, text = f"{trade} {name} files", f"This program {trade} what {name} left. " * 3
        digest = md5(text.encode() + name.encode(), usedforsecurity=False).hexdigest()
        head = f"Package: {trade}{name}\nDescription-md5: {digest}\n"
        english.append(f"{head}Description-en: {line}\n {text}\n")
        if place % 4:
            german.append(f"{head}Description-de: Dateien von {name}: {trade}\n {text}\n")
    for folder, language, records in (("apt", "en", english), ("apt-de", "de", german)):
        path = work / folder / f"lists/archive_Translation-{language}"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(records), "utf-8")


def write_icons(work: Path) -> None:
    """Write 40 icons of either vendor, with two tags each."""
    names = [f"{name}-{trade}" for name in NAMES for trade in TRADES]
    places = {"@tabler/icons": "icons/outline", "lucide-static": "icons"}
    for package, place in places.items():
        folder = work / "packages/unpacked" / package
        (folder / "package" / place).mkdir(parents=True)
        (folder / ".complete").touch()
        for size, name in enumerate(names):
            path = folder / "package" / place / f"{name}.svg"
            path.write_text(SVG.format(1 + size / 5))
        tags = {name: [f"tag {name}", package] for name in names}
        (folder / "package/tags.json").write_text(json.dumps(tags))
        icons = {name: {"category": "Food", "tags": some} for name, some in tags.items()}
        (folder / "package/icons.json").write_text(json.dumps(icons))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of four steps; costs 15 s, most of it the import of torch."""
    folder = tmp_path_factory.mktemp("gains")
    write_archive(folder / "work")
    write_icons(folder / "work")
    sizes = ["--held-programs", "8", "--held-english", "6", "--steps", "4", "--batch", "4",
             "--rank", "2", "--tokens", "16", "--threads", "1"]  # fmt: skip
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", f"{RUN}training_gains.main()",
         "--work", str(folder / "work"), *sizes, str(folder)],
        capture_output=True, text=True, check=False, timeout=280,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def rows(made: Path, name: str) -> list[dict[str, str]]:
    (path,) = made.glob(f"work/gains*/{name}.jsonl")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_each_test_is_measured_before_and_after(made) -> None:
    stored = json.loads((made / "training_gains.json").read_text())
    table = stored["tables"][0]
    assert [row[0] for row in table["rows"]] == ["pre-trained", "trained"]
    assert all(len(row) == len(table["header"]) for row in table["rows"])
    assert stored["facts"]["queries and pool of english"] == [6, 6]
    assert len(stored["gates"]) == 6


def test_no_program_of_a_test_is_trained_on(made) -> None:
    tested = {row["id"] for row in rows(made, "held-out/german/pool")}
    trained = {row["id"] for row in rows(made, "english/pool")}
    trained |= {row["id"].partition(":")[2] for row in rows(made, "german/pool")}
    assert len(tested) == 8
    assert trained.isdisjoint(tested)
    asked = {row["id"].partition(":")[2] for row in rows(made, "held-out/german/queries")}
    assert asked
    assert asked <= tested


def test_no_family_or_tags_of_an_icon_of_a_test_are_trained_on(made) -> None:
    trained = {row["text"] for row in rows(made, "icons/queries")}
    for name in ("held-out/icons/queries", "held-out/vendor/queries"):
        tested = {row["text"] for row in rows(made, name)}
        families = {text.split("-")[0].removeprefix("tag ") for text in tested}
        assert tested
        assert not [text for text in trained if text.startswith(tuple(families))]
