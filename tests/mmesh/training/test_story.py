"""A user's story: 500 pairs of one's own, a better encoder, taken live, and taken back."""

from __future__ import annotations

import itertools
import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
if find_spec("peft") is None:  # importing it here would be too early, see mmesh.models.compat
    pytest.skip("peft is absent: run `make setup-training`", allow_module_level=True)
pytest.importorskip("transformers", reason="transformers is absent: run `make setup-training`")

from mmesh import Client, Content
from mmesh.candidates import Candidate
from mmesh.search import Rerank

pytestmark = [
    pytest.mark.training,
    pytest.mark.models,
    pytest.mark.processes,
    pytest.mark.timeout(400),
]
NOUNS = (  # noqa: SIM905  # easier to read than quoted words
    "harbour glacier violin tractor orchid comet bakery lantern canyon piano falcon anchor meadow "
    "engine castle lemon blizzard compass desert ferry garden hammer island"
).split()
INSTRUCTION = "Find the note."
RECIPE = """
model = "lite"
out = "run"
name = "notes-lite"
seed = 3
threads = 1
[adapters]
rank = 16
alpha = 32
[data.notes]
path = "train"
[held_out.notes]
path = "test"
split = "test"
[[stages]]
name = "notes"
data = { notes = 1 }
steps = 22
batch = 32
learning_rate = 2e-3
checkpoint_every = 10
"""


def word(noun: str) -> str:
    """What the users of the story call a thing; no model knows it."""
    dice = random.Random(f"word of {noun}")
    syllables = ("ba", "zu", "mo", "pra", "ki", "len", "tor", "fi", "ga", "shu", "ne", "vol")
    return "".join(dice.choice(syllables) for _ in range(3))


@pytest.fixture(scope="module")
def notes(tmp_path_factory) -> Path:
    """426 pairs to learn from and 80 held out, of the same source, and the recipe."""
    root = tmp_path_factory.mktemp("notes")
    pairs = list(itertools.permutations(NOUNS, 2))
    random.Random(7).shuffle(pairs)
    for name, some in (("test", pairs[:80]), ("train", pairs[80:])):
        (root / name).mkdir()
        queries = [
            {
                "id": f"q-{a}-{b}",
                "text": f"{word(a)} {word(b)}",
                "relevant": [f"{a}-{b}"],
                "instruction": INSTRUCTION,
            }
            for a, b in some
        ]
        pool = [{"id": f"{a}-{b}", "text": f"a {a} beside the {b}"} for a, b in some]
        for file, rows in (("queries", queries), ("pool", pool)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (root / name / f"{file}.jsonl").write_text(lines)
    (root / "recipe.toml").write_text(RECIPE)
    return root


@pytest.fixture(scope="module")
def trained(notes, command_here) -> Path:
    """The folder that `mmesh train` made; takes 12 s on a quiet machine."""
    code, said, errors = command_here("train", notes / "recipe.toml", env={}, folder=notes)
    assert code == 0, errors
    assert "notes hit@1" in said
    return notes / "run" / "notes-lite"


def test_the_result_says_what_it_is(trained, command_here, notes) -> None:
    card = (trained / "MODEL_CARD.md").read_text()
    for part in ("# notes-lite", "from `lite`", "| notes | 426 |", "| base | notes | 80 | 80 |"):
        assert part in card
    base, stage = json.loads((notes / "run/results.json").read_text())
    before, after = (row["figures"]["notes"]["hit@1"] for row in (base, stage))
    assert after["low"] > before["high"] + 0.3
    code, said, _ = command_here("train", notes / "recipe.toml", env={}, folder=notes)
    assert code == 0
    assert "notes: done before" in said + _


def test_another_recipe_in_the_same_folder_is_refused(trained, command_here, notes) -> None:
    changed = notes / "changed.toml"
    changed.write_text(RECIPE.replace("batch = 32", "batch = 16"))
    code, _, errors = command_here("train", changed, env={}, folder=notes)
    assert code == 1
    assert "--restart" in errors


def test_a_dry_run_says_what_it_will_take(trained, command_here, notes) -> None:
    code, said, _ = command_here("train", notes / "recipe.toml", "--dry-run", env={}, folder=notes)
    assert code == 0
    assert "22" in said
    assert "GiB" in said


def hits(client: Client, collection: str, notes: Path) -> int:
    """How many held-out queries find their note first."""
    rows = [json.loads(line) for line in (notes / "test/queries.jsonl").read_text().splitlines()]
    found = 0
    for row in rows:
        result = client.search(
            collection, row["text"], instruction=INSTRUCTION, limit=1, rerank=Rerank(0)
        )
        found += [hit.id for hit in result.hits] == row["relevant"]
    return found


def test_the_live_alias_answers_better_after_the_migration_and_rolls_back(
    trained, notes, start_mesh, tmp_path, command_here
) -> None:
    mesh = start_mesh(tmp_path / "mesh", 1, reranker="none", encoders=("lite", str(trained)))

    def run(*arguments: str) -> str:
        environment = {"MMESH_TARGET_ADDRESS": mesh.address}
        code, said, errors = command_here(*arguments, env=environment, folder=tmp_path)
        assert code == 0, errors
        return said

    with Client(mesh.address) as client:
        client.create_collection("notes-1", model="lite")
        rows = map(json.loads, (notes / "test/pool.jsonl").read_text().splitlines())
        client.ingest("notes-1", [Candidate(row["id"], Content.of(row["text"])) for row in rows])
        client.set_alias("notes", "notes-1")
        before = hits(client, "notes", notes)
        run("migrate", "notes", "--model", "notes-lite")
        after = hits(client, "notes", notes)
        assert after >= before + 30
        run("migrate", "rollback", "notes")
        assert hits(client, "notes", notes) == before
    mesh.close()
