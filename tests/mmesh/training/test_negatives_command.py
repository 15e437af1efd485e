"""`mmesh negatives` against the live mesh: what it mines, and that it mines the same again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmesh.candidates import Candidate
from mmesh.content import Content
from mmesh.training.mining.files import read_facts, read_negatives

WORDS = "harbour glacier violin tractor orchid comet bakery lantern canyon piano".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def pool(mesh, client, pictures):
    """60 texts and 20 pictures; `topic` of a text is its first word."""
    name = "mined-pool"
    client.create_collection(name)
    texts = [
        Candidate(
            f"t{n:02}",
            Content.of(f"{WORDS[n % 10]} {WORDS[n // 10]} {n}"),
            {"topic": WORDS[n % 10]},
        )
        for n in range(60)
    ]
    shown = [Candidate(f"i{n:02}", Content.of(pictures.png(n))) for n in range(20)]
    client.ingest(name, [*texts, *shown])
    yield name
    client.delete_collection(name)


@pytest.fixture
def mine(mesh, command_here, tmp_path, pool):
    """Run the command on rows of queries; return exit code, stderr, rows by query, and the file."""

    def run(rows: list[dict[str, object]], *options: object, name: str = "out.parquet"):
        queries = tmp_path / "queries.jsonl"
        queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / name
        code, said, errors = command_here(
            "negatives", pool, "--queries", queries, "--out", out, *options,
            env={"MMESH_TARGET_ADDRESS": mesh.address}, folder=tmp_path,
        )  # fmt: skip
        mined = {row.query: row for row in read_negatives(out)} if out.exists() else {}
        return code, said + errors, mined, out

    return run


def query(number: int, **more: object) -> dict[str, object]:
    """A query that text `number` answers."""
    text = f"{WORDS[number % 10]} {WORDS[number // 10]} {number}"
    return {"id": f"q{number}", "text": text, "relevant": [f"t{number:02}"]} | more


def test_negatives_are_those_of_an_exact_search(mine, client, pool) -> None:
    wants = [query(n, target="text", instruction="Find a text.") for n in range(12)]
    wants += [
        {"id": f"p{n}", "text": f"{WORDS[n]} one", "relevant": [f"i{n:02}"], "target": "image"}
        for n in range(8)
    ]
    code, said, mined, out = mine(wants, "--top", 60, "--below", 40, "--count", 50)
    assert code == 0, said
    page = client.list_candidates(pool, page_size=1000, include_vectors=True)
    vectors = {c.id: v for c, v in zip(page.candidates, page.vectors, strict=True)}
    assert set(mined) == {want["id"] for want in wants}, said
    queries = client.create_collection("mined-queries").name
    try:
        client.ingest(queries, [Candidate(w["id"], Content.of(w["text"])) for w in wants])
        asked = client.list_candidates(queries, page_size=1000, include_vectors=True)
    finally:
        client.delete_collection(queries)
    names, matrix = list(vectors), np.stack(list(vectors.values()))
    for one, vector in zip(asked.candidates, asked.vectors, strict=True):
        scores = [round(float(score), 4) for score in matrix @ vector]
        order = sorted(range(len(names)), key=lambda n: (-scores[n], names[n]))[:60]
        top = [names[n] for n in order]
        want = next(w for w in wants if w["id"] == one.id)
        letter, positive = str(want["target"])[0], want["relevant"][0]
        rank = top.index(positive) if positive in top else len(top)
        wrong = {c for c in top[:rank] if c[0] != letter}
        low = {c for c in top[40:] if c[0] == letter and c != positive}
        row = mined[one.id]
        kinds = dict(zip(row.negatives, row.kinds, strict=True))
        assert {c for c, kind in kinds.items() if kind == "wrong_modality"} <= wrong
        assert {c for c, kind in kinds.items() if kind == "low_rank"} <= low
        assert len(kinds) == min(50, len(wrong) + len(low))
    facts = read_facts(out)
    assert facts["collection"] == pool
    assert facts["writes_meanwhile"] == 0
    assert facts["rules"]["below"] == 40


def test_the_same_seed_gives_the_same_bytes(mine) -> None:
    rows = [query(n) for n in range(30)]
    files = [
        mine(rows, "--top", 40, "--below", 10, *options, name=f"{number}.parquet")[3].read_bytes()
        for number, options in enumerate(
            [
                (),
                (),
                ("--batch-size", 3, "--in-flight", 7),
                ("--seed", 1),
            ]
        )
    ]
    assert files[0] == files[1] == files[2]
    assert files[3] != files[0]


def test_what_may_be_right_after_all_is_dropped(mine) -> None:
    rows = [query(n) for n in range(20)]
    _, said, mined, _ = mine(
        rows, "--top", 60, "--below", 0, "--count", 60, "--same-group", "topic", "--margin", 0.9
    )
    assert "same group" in said
    for number in range(20):
        row = mined[f"q{number}"]
        negatives = dict(zip(row.negatives, row.kinds, strict=True))
        same_topic = {f"t{n:02}" for n in range(60) if n % 10 == number % 10}
        assert not same_topic & {c for c, kind in negatives.items() if kind == "low_rank"}


def test_the_reranker_may_drop_what_it_calls_true(mine) -> None:
    rows = [query(n) for n in range(6)]
    _, _, strict, _ = mine(rows, "--top", 20, "--below", 0, "--count", 20, "--judge", -1e9)
    assert all("low_rank" not in row.kinds for row in strict.values())
    _, _, kept, _ = mine(rows, "--top", 20, "--below", 0, "--count", 20, "--judge", 1e9)
    assert all("low_rank" in row.kinds for row in kept.values())


def test_rows_that_cannot_be_mined_for_are_counted_and_named(mine) -> None:
    rows = [
        query(1),
        query(2, relevant=[]),
        query(3, relevant=["unknown"]),
        {"id": "x", "image": "gone.png", "relevant": ["t01"]},
        {"id": "y", "relevant": ["t01"]},
        {"id": "z", "text": "both", "relevant": ["t01", "i01"]},
    ]
    code, said, mined, _ = mine(rows)
    assert code == 0
    assert set(mined) == {"q1"}
    for reason in (
        "positive not in the collection",
        "picture missing",
        "broken row",
        "several modalities",
    ):
        assert reason in said
    assert "queries.jsonl:2" in said


def test_a_positive_that_can_be_no_id_costs_its_own_query_alone(mine) -> None:
    odd = [query(2, relevant=["two\nlines"], id="odd"), query(3, relevant=["x" * 600], id="long")]
    code, said, mined, _ = mine([query(1), *odd, query(4)])
    assert code == 0, said
    assert set(mined) == {"q1", "q4"}


def test_no_query_that_can_be_mined_for_is_an_error(mine) -> None:
    code, said, _, out = mine([query(1, relevant=["unknown"])])
    assert code == 1
    assert "no query" in said
    assert not out.exists()


def test_a_file_of_another_kind_is_no_file_of_negatives(tmp_path) -> None:
    from mmesh.errors import FailedPrecondition

    other = Path(tmp_path / "other.parquet")
    for content in (b"PAR1 not really PAR", b""):
        other.write_bytes(content)
        with pytest.raises(FailedPrecondition, match="Parquet"):
            list(read_negatives(other))
