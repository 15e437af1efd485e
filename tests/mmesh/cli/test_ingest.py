"""`mmesh ingest` again and again: what it sends, removes and says."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from click import ClickException
from PIL import Image as Pillow

from mmesh.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from mmesh.candidates import Candidate
from mmesh.cli.files.journal import Journal
from mmesh.cli.files.load import Manner, Source, load
from mmesh.cli.files.sources.items import item_of
from mmesh.cli.output import tables
from mmesh.content import Content
from mmesh.errors import ShardUnavailable
from mmesh.values.tokens import Token


@pytest.fixture
def run(command_here, mesh, tmp_path):
    """Run `mmesh ingest ARGUMENTS`; return exit code, stdout and stderr."""
    own = {"MMESH_TARGET_ADDRESS": mesh.address, "XDG_STATE_HOME": str(tmp_path / "state")}
    return lambda *arguments, **env: command_here(
        "ingest", *arguments, env=own | env, folder=tmp_path
    )


@pytest.fixture
def pictures_in(tmp_path, pictures):
    """Make a folder of pictures with these names."""

    def make(*names):
        root = tmp_path / "pictures"
        for number, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pictures.png(number))
        return root

    return make


def rows_in(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(errors, topic):
    """Return the line of the report about a topic."""
    return next(line for line in errors.splitlines() if line.startswith(topic))


def ids(client, collection):
    return [one.id for one in client.list_candidates(collection, page_size=1000).candidates]


def test_the_same_command_sends_what_changed_and_lists_what_is_refused_again(
    run, client, collection, pictures_in, pictures
):
    root = pictures_in("a/1.png", "a/2.png", "b/3.png")
    (root / "000-broken.png").write_bytes(b"no picture")
    code, output, errors = run(collection, root)
    assert (code, output) == (1, "stored 3, rejected 1\n")
    (root / "a" / "0.png").write_bytes(pictures.png(10))
    (root / "a" / "2.png").write_bytes(pictures.png(11))
    (root / "b" / "3.png").unlink()
    os.utime(root / "a" / "1.png", (1, 1))  # touched, and the same
    code, output, errors = run(collection, root)
    assert (code, output) == (1, "stored 2, rejected 1, unchanged 1\n")
    assert "000-broken.png" in errors
    assert "b/3.png" in said(errors, "gone from the sources")
    assert "--sync removes them" in errors
    (changed,) = client.batch_get_candidates(collection, ["a/2.png"])
    assert changed.content.images[0].data == pictures.png(11)
    assert "b/3.png" in ids(client, collection)


def test_sync_removes_what_is_gone_and_a_dry_run_shows_it(run, client, collection, pictures_in):
    root = pictures_in("1.png", "2.png", "3.png")
    client.upsert_candidates(collection, [Candidate("other", Content.of("not of the folder"))])
    assert run(collection, root)[0] == 0
    (root / "2.png").unlink()
    code, output, errors = run(collection, root, "--sync", "--dry-run")
    assert (code, output) == (
        0,
        "would store 0 (0 new, 0 changed), reject 0, unchanged 2, remove 1\n",
    )
    assert "2.png" in errors
    assert "2.png" in ids(client, collection)
    code, output, errors = run(collection, root, "--sync")
    assert (code, output) == (0, "stored 0, rejected 0, unchanged 2, removed 1\n")
    assert ids(client, collection) == ["1.png", "3.png", "other"]
    assert run(collection, root, "--sync")[1] == "stored 0, rejected 0, unchanged 2\n"


def test_sync_removes_nothing_from_what_it_cannot_read(run, client, collection, tmp_path):
    rows = [{"id": str(n), "text": f"text {n}"} for n in range(4)]
    path = rows_in(tmp_path / "rows.jsonl", rows)
    assert run(collection, path)[0] == 0
    path.write_text(json.dumps(rows[0]) + '\n{"id": "1", "te\n')
    code, output, errors = run(collection, path, "--sync")
    assert (code, output) == (1, "stored 0, rejected 1, unchanged 1\n")
    assert "nothing is removed: 1 rows or files cannot be read" in errors
    rows_in(path, [rows[0], {"id": "1"}])  # its id can be read, so it is not gone
    code, output, errors = run(collection, path, "--sync")
    assert (code, output) == (1, "stored 0, rejected 1, unchanged 1, removed 2\n")
    path.write_text("")
    code, output, errors = run(collection, path, "--sync")
    assert code == 1
    assert "has nothing at all" in errors
    assert ids(client, collection) == ["0", "1"]


def test_a_dry_run_makes_no_collection(run, client, tmp_path):
    path = rows_in(tmp_path / "rows.jsonl", [{"id": "a", "text": "x"}, {"id": "b"}])
    code, output, _errors = run("cli-not-made", path, "--dry-run")
    assert (code, output) == (1, "would store 1 (1 new, 0 changed), reject 1\n")
    assert "cli-not-made" not in [one.name for one in client.list_collections()]


def test_a_dry_run_knows_what_is_visibly_no_picture_or_over_a_limit(
    run, client, collection, pictures_in, pictures, tmp_path
):
    client.update_collection(collection, max_attributes=3)
    root = pictures_in("good.png")
    (root / "cut.png").write_bytes(pictures.png(1)[:60])
    (root / "cut.jpg").write_bytes(pictures.jpeg(1)[:-20])
    (root / "page.jpg").write_bytes(b"<html>404</html>")
    rows = [{"id": "good", "text": "x", "a": 1}, {"id": "many"} | dict.fromkeys("abcd", 1)]
    rows[1]["text"] = "over the limit of the collection"
    path = rows_in(tmp_path / "rows.jsonl", rows)
    code, output, errors = run(collection, root, path, "--dry-run")
    assert (code, output) == (1, "would store 2 (2 new, 0 changed), reject 4\n")
    assert "no picture was decoded" in errors
    assert run(collection, root, path)[:2] == (1, "stored 2, rejected 4\n")


def test_a_dry_run_knows_what_the_mesh_refused_before(run, client, collection, tmp_path):
    client.upsert_candidates(collection, [Candidate("x", Content.of("x"), {"year": 1965})])
    rows = [{"id": "a", "text": "x", "year": 1971}, {"id": "b", "text": "x", "year": "long ago"}]
    path = rows_in(tmp_path / "rows.jsonl", rows)
    asked = (collection, path, "--dry-run")
    assert run(*asked)[1] == "would store 2 (2 new, 0 changed), reject 0\n"
    assert run(collection, path)[:2] == (1, "stored 1, rejected 1\n")
    code, output, errors = run(*asked)
    assert (code, output) == (1, "would store 0 (0 new, 0 changed), reject 1, unchanged 1\n")
    assert "as the mesh said before" in errors
    rows[1]["year"] = 1972
    rows_in(path, rows)
    assert run(*asked)[:2] == (0, "would store 1 (1 new, 0 changed), reject 0, unchanged 1\n")
    assert run(collection, path)[0] == 0
    assert run(*asked)[1] == "would store 0 (0 new, 0 changed), reject 0, unchanged 2\n"


def test_a_dry_run_removes_nothing_where_the_command_would_not(run, collection, tmp_path):
    path = rows_in(tmp_path / "rows.jsonl", [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}])
    assert run(collection, path)[0] == 0
    path.write_text('{"id": "a", "text": "x"}\nbroken\n')
    code, output, errors = run(collection, path, "--sync", "--dry-run")
    counts = "would store 0 (0 new, 0 changed), reject 1, unchanged 1, remove 0\n"
    assert (code, output) == (1, counts)
    assert "nothing is removed: 1 rows or files cannot be read" in errors


@pytest.mark.parametrize(
    ("wider", "model", "reason"),
    [(0, (), ""), (1, (), "DIM_MISMATCH"), (0, ("--model-fingerprint", "another"), "MODEL_MIS")],
)
def test_a_dry_run_knows_vectors_that_are_not_for_the_collection(
    run, client, collection, tmp_path, wider, model, reason
):
    dim = client.get_collection(collection).dim + wider
    np.save(tmp_path / "v.npy", np.ones((1, dim), np.float32))
    path = rows_in(tmp_path / "rows.jsonl", [{"id": "a", "text": "x"}])
    for dry in (("--dry-run",), ()):
        code, _, errors = run(collection, path, "--vectors", tmp_path / "v.npy", *model, *dry)
        assert code == bool(reason), dry
        assert reason in errors


def test_a_dry_run_says_that_a_collection_is_read_only(run, client, collection, tmp_path):
    path = rows_in(tmp_path / "rows.jsonl", [{"id": "a", "text": "x"}])
    assert run(collection, path)[0] == 0
    client.update_collection(collection, read_only=True)
    assert run(collection, path, "--dry-run")[0] == 0
    rows_in(path, [{"id": "a", "text": "new"}])
    refusals = [run(collection, path, *dry) for dry in ((), ("--dry-run",))]
    assert [code for code, _, _ in refusals] == [1, 1]
    assert all("COLLECTION_READ_ONLY" in errors for _, _, errors in refusals)


def test_what_was_deleted_meanwhile_is_sent_again(run, client, collection, tmp_path):
    rows = [{"id": str(n), "text": f"text {n}"} for n in range(3)]
    path = rows_in(tmp_path / "rows.jsonl", rows)
    assert run(collection, path)[1] == "stored 3, rejected 0\n"
    client.delete_candidates(collection, ["1"])
    assert run(collection, path)[1] == "stored 1, rejected 0, unchanged 2\n"
    assert run(collection, path, "--restart")[1] == "stored 3, rejected 0\n"


def test_what_is_deleted_while_an_ingest_runs_is_sent_again(
    client, collection, mesh, open_channel, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    somebody = gateway_pb2_grpc.RetrievalServiceStub(open_channel(mesh.address))
    deletion = gateway_pb2.DeleteCandidatesRequest(collection=collection, ids=["0"])
    rows = [item_of(Candidate(str(n), Content.of(f"text {n}")), "s") for n in range(3)]

    def ingest(items):
        found = client.get_collection(collection)
        with pytest.raises(SystemExit):
            load(client, found, mesh.address, Source(items, None, ("s",)), Manner())

    def while_somebody_deletes():
        yield from rows[:2]
        somebody.DeleteCandidates(deletion, timeout=10)
        yield rows[2]

    ingest(iter(rows[:2]))
    ingest(while_somebody_deletes())
    assert ids(client, collection) == ["1", "2"]
    ingest(iter(rows))
    assert ids(client, collection) == ["0", "1", "2"]


def test_where_nobody_else_writes_ids_are_not_compared_again(
    run, client, collection, mesh, monkeypatch, pictures_in
):
    root = pictures_in("1.png", "2.png", "3.png")
    (root / "4.png").write_bytes(b"no picture")
    monkeypatch.setenv("XDG_STATE_HOME", str(root.parent / "state"))

    def is_settled():
        found = client.get_collection(collection)
        with Journal.of(found, mesh.address, dry=True) as journal:
            return journal.agrees_with(found.token)

    run(collection, root)
    assert is_settled()
    (root / "2.png").unlink()
    (root / "3.png").write_bytes((root / "1.png").read_bytes())
    run(collection, root, "--sync")
    assert ids(client, collection) == ["1.png", "3.png"]
    assert is_settled()
    client.delete_candidates(collection, ["1.png"])
    assert not is_settled()
    run(collection, root)
    assert is_settled()


def test_the_journal_is_of_the_collection_however_its_mesh_is_reached(
    run, client, collection, mesh, pictures_in
):
    root = pictures_in("1.png", "2.png", "3.png")
    assert run(collection, root)[1] == "stored 3, rejected 0\n"
    (root / "2.png").unlink()
    other = f"localhost:{mesh.address.rpartition(':')[2]}"
    assert other != mesh.address
    _code, output, _errors = run(collection, root, "--sync", "--target-address", other)
    assert output == "stored 0, rejected 0, unchanged 2, removed 1\n"
    assert ids(client, collection) == ["1.png", "3.png"]


def kept_as_earlier_releases_did(folder, collection, address):
    """Name the only new journal of a folder by the address of the mesh."""
    (journal,) = (folder / "state" / "mmesh" / "ingests").glob("collection-*.sqlite")
    key = hashlib.sha256(json.dumps([address, collection]).encode()).hexdigest()[:24]
    return journal.rename(journal.with_name(f"{key}.sqlite"))


def test_journals_that_earlier_releases_kept_by_address_are_taken_over(
    run, client, collection, mesh, pictures_in, tmp_path
):
    root = pictures_in("1.png", "2.png", "3.png")
    assert run(collection, root)[1] == "stored 3, rejected 0\n"
    first = kept_as_earlier_releases_did(tmp_path, collection, "before.example:50550")
    rows = rows_in(tmp_path / "rows.jsonl", [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}])
    moved = first.rename(tmp_path / "apart.sqlite")
    assert run(collection, rows)[1] == "stored 2, rejected 0\n"
    second = kept_as_earlier_releases_did(tmp_path, collection, mesh.address)
    moved.rename(first)
    client.delete_candidates(collection, ["3.png"])
    (root / "2.png").unlink()
    rows_in(rows, [{"id": "a", "text": "x"}])
    asked = (collection, root, rows, "--sync")
    _code, output, _errors = run(*asked, "--dry-run")
    assert output.endswith("unchanged 2, remove 2\n")
    assert first.exists()
    assert second.exists()
    assert run(*asked)[1] == "stored 1, rejected 0, unchanged 2, removed 2\n"
    assert ids(client, collection) == ["1.png", "3.png", "a"]
    assert not first.exists()
    assert not second.exists()


def test_a_journal_that_cannot_be_kept_is_named_and_may_be_left_out(run, collection, tmp_path):
    path = rows_in(tmp_path / "rows.jsonl", [{"id": "a", "text": "x"}])
    nowhere = {"XDG_STATE_HOME": "/proc/nowhere"}
    code, output, errors = run(collection, path, **nowhere)
    assert (code, output) == (1, "")
    for words in ("the journal /proc/nowhere/mmesh/ingests/", "XDG_STATE_HOME", "--no-journal"):
        assert words in errors
    would = "would store 1 (1 new, 0 changed), reject 0\n"
    assert run(collection, path, "--dry-run", **nowhere)[:2] == (0, would)
    for _ in range(2):  # all is sent each time
        sent = run(collection, path, "--no-journal", **nowhere)
        assert sent[:2] == (0, "stored 1, rejected 0\n")
    code, _, errors = run(collection, path, "--no-journal", "--sync")
    assert code == 2
    assert "--sync removes what the journal says" in errors
    assert not (tmp_path / "state").exists()


def test_a_dry_run_makes_no_journal(run, collection, tmp_path):
    path = rows_in(tmp_path / "rows.jsonl", [{"id": "a", "text": "x"}])
    assert run(collection, path, "--dry-run")[0] == 0
    assert not (tmp_path / "state").exists()


def test_a_journal_that_fails_meanwhile_is_said(client, collection, mesh, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def items():
        (journal,) = tmp_path.rglob("*.sqlite")
        with closing(sqlite3.connect(journal)) as database:
            database.execute("DROP TABLE items")
        yield item_of(Candidate("a", Content.of("text")), "s")

    found = client.get_collection(collection)
    with pytest.raises(ClickException, match="the journal cannot be written"):
        load(client, found, mesh.address, Source(items(), None, ("s",)), Manner())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full disk at hand")
def test_a_report_for_which_there_is_no_room_is_said_after_the_counts(run, collection, tmp_path):
    path = rows_in(tmp_path / "rows.jsonl", [{"id": "a", "text": "x"}, {"id": "b"}])
    code, output, errors = run(collection, path, "--report", "/dev/full")
    assert (code, output) == (1, "stored 1, rejected 1\n")
    assert "/dev/full cannot be written: No space left on device" in errors
    assert "Traceback" not in errors


def restore_the_log_behind(folder):
    """Let the journal be of another history, as after a restore that later writes overtook."""
    (journal,) = (folder / "state" / "mmesh" / "ingests").glob("*.sqlite")
    with closing(sqlite3.connect(journal)) as database:
        for name, value in database.execute("SELECT * FROM facts").fetchall():
            if name in {"token", "newest"} and value:
                lost = str(replace(Token.parse(value), stamp="0" * 12))
                database.execute("UPDATE facts SET value = ? WHERE name = ?", (lost, name))
        database.commit()


def test_what_the_log_may_have_lost_is_sent_again(run, client, collection, tmp_path):
    path = rows_in(tmp_path / "rows.jsonl", [{"id": "a", "text": "new"}, {"id": "b", "text": "b"}])
    assert run(collection, path)[1] == "stored 2, rejected 0\n"
    restore_the_log_behind(tmp_path)
    client.upsert_candidates(collection, [Candidate("a", Content.of("as in the backup"))])
    code, output, errors = run(collection, path)
    assert (code, output) == (0, "stored 2, rejected 0\n")
    assert "lost what was written last" in errors
    (kept,) = client.batch_get_candidates(collection, ["a"])
    assert kept.content == Content.of("new")
    client.upsert_candidates(collection, [Candidate("other", Content.of("of somebody else"))])
    assert run(collection, path)[1] == "stored 0, rejected 0, unchanged 2\n"


def test_rows_are_told_by_id_wherever_they_are(run, client, collection, tmp_path):
    rows = [{"id": str(n), "text": f"text {n}"} for n in range(5)]
    path = rows_in(tmp_path / "rows.jsonl", rows)
    assert run(collection, path)[0] == 0
    rows_in(path, [{"id": "new", "text": "first now"}, *reversed(rows[1:])])
    assert run(collection, path, "--sync")[1] == "stored 1, rejected 0, unchanged 4, removed 1\n"
    rows[4]["year"] = 1965
    rows_in(path, rows[1:])
    assert run(collection, path)[1] == "stored 1, rejected 0, unchanged 3\n"


@pytest.mark.parametrize("size", [1, 2, 64])
def test_of_rows_with_one_id_the_last_stays_and_they_are_counted(
    run, client, collection, tmp_path, size
):
    rows = [{"id": "dup", "text": "first"}, {"id": "b", "text": "x"}, {"id": "dup", "text": "last"}]
    path = rows_in(tmp_path / "rows.jsonl", rows)
    for _ in range(2):  # such rows are told by no stamp, so they are sent again
        code, _output, errors = run(collection, path, "--batch-size", size)
        assert code == 0
        assert "dup" in said(errors, "ids that came again")
        (kept,) = client.batch_get_candidates(collection, ["dup"])
        assert kept.content.text == "last"


class WithoutShards:
    """A client of a mesh whose shards cannot be searched, though the log can be written."""

    def __init__(self, client):
        self._client = client

    def __getattr__(self, name):
        return getattr(self._client, name)

    def search(self, *_, **__):
        raise ShardUnavailable("no shard answered")


def test_nothing_is_taken_for_unchanged_where_what_the_log_has_is_not_known(
    client, collection, mesh, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def ingest(client, **manner):
        items = iter([item_of(Candidate("a", Content.of("text")), "s")])
        found = client.get_collection(collection)
        with pytest.raises((SystemExit, ClickException)) as end:
            load(client, found, mesh.address, Source(items, None, ("s",)), Manner(**manner))
        return str(end.value), capsys.readouterr().out

    ingest(client)
    client.upsert_candidates(collection, [Candidate("other", Content.of("of somebody else"))])
    refusal, output = ingest(WithoutShards(client))
    assert output == ""
    assert "no shard answered; --restart sends all again" in refusal
    assert ingest(WithoutShards(client), restart=True) == ("0", "stored 1, rejected 0\n")


def test_ids_that_another_source_had_are_counted(run, client, collection, tmp_path):
    sources = []
    for year in ("y23", "y24"):
        (tmp_path / year).mkdir()
        rows = [{"text": f"of {year}"}, {"text": "of both"}]
        sources.append(rows_in(tmp_path / year / "items.jsonl", rows))
    run(collection, sources[0])
    code, output, errors = run(collection, sources[1])
    assert (code, output) == (0, "stored 1, rejected 0, unchanged 1\n")
    assert "items.jsonl:1" in said(errors, "ids that another source had")
    assert "items.jsonl:2" not in errors
    assert "ids that another source had" not in run(collection, sources[1])[2]


def test_other_options_give_other_candidates(run, client, collection, pictures_in):
    root = pictures_in("1.png", "2.png")
    assert run(collection, root, "--ignore", "path,width")[0] == 0
    assert run(collection, root, "--ignore", "path,width")[1].endswith("unchanged 2\n")
    assert run(collection, root)[1] == "stored 2, rejected 0\n"
    (found,) = client.batch_get_candidates(collection, ["1.png"])
    assert found.attributes == {"path": "1.png", "width": 48, "height": 48}


def test_what_is_no_unicode_refuses_its_row_only(run, client, collection, tmp_path):
    rows = [
        {"id": "a", "text": "x"},
        {"id": "\ud800", "text": "x"},
        {"id": "b", "text": "\ud800"},
        {"id": "c", "text": "x", "attributes": {"k": "\ud800"}},
        {"id": "d", "text": "x", "\ud800": 1},
        {"id": "e", "text": "x"},
    ]
    path = rows_in(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), rows)
    code, _output, errors = run(collection, path)
    assert code == 1
    assert {"a", "e"} <= set(ids(client, collection)) <= {"a", "d", "e"}
    assert "surrogate" in errors


def test_leftovers_alone_are_no_failure(run, collection, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".DS_Store").write_bytes(b"x")
    code, output, errors = run(collection, tmp_path / "empty")
    assert (code, output) == (0, "stored 0, rejected 0\n")
    assert "hidden" in errors


def test_numbers_of_csv_can_be_filtered_by(run, client, collection, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,text,year,price\na,a bicycle,1965,9.99\nb,a car,1971,10\n")
    assert run(collection, path)[0] == 0
    (found,) = client.batch_get_candidates(collection, ["b"])
    assert found.attributes == {"year": 1971, "price": 10.0}
    code, _, errors = run(collection, path, "--types", "year=number")
    assert code == 2
    assert "string, integer, float, boolean" in errors


def test_the_report_of_a_messy_day_fits_one_screen(
    run, collection, tmp_path, pictures_in, pictures
):
    """Files of all the kinds that people complained of, in one command."""
    root = pictures_in("good.png", "._good.png", "@eaDir/good.png", "a/cat.png")
    (root / "empty.jpg").write_bytes(b"")
    (root / "film.mp4").write_bytes(b"x")
    (root / "lonely.txt").write_text("words")
    (root / "broken.png").write_bytes(b"no picture")
    (root / "a" / "cat.txt").write_bytes(b"caf\xe9")
    with_bmp = root / "old.bmp"
    with_bmp.write_bytes(pictures.encode(Pillow.new("RGB", (9, 9), (9, 99, 200)), "BMP"))
    rows = [{"id": "dup", "text": "one"}, {"id": "dup", "text": "two"}, {"id": "bad"},
            {"id": "long", "text": "a long story " * 500}, {"id": "emoji", "text": "🚗"},
            {"id": "url", "image": "https://example.org/a.png"},
            {"id": "odd", "text": "x", "My Column": 1, "deep": {"er": [1]}, "nothing": None,
             "much": "x" * 5000}]  # fmt: skip
    jsonl = rows_in(tmp_path / "rows.jsonl", rows)
    table = tmp_path / "rows.csv"
    with table.open("wb") as file:
        file.write(b"ID;Text;Year\n1;caf\xe9;1965\n2;x;1971;surplus\n3;y;\n")
    broken = tmp_path / "cut.json"
    broken.write_text('[{"id": "c1", "text": "x"}, {"id": "c2", "te')
    code, output, errors = run(collection, root, jsonl, table, broken)
    assert code == 1
    assert output == "stored 11, rejected 5\n"
    for words in (
        "leftovers of systems", "thumbnails", "empty.jpg", ".mp4", "lonely.txt", "BMP to PNG",
        "old.bmp", "read as cp1252", "much", "the last one stays",
        "dup", "TEXT_TRUNCATED", "the 256 tokens", "TEXT_UNKNOWN",
        "broken.png", "its columns are id", "not fetched", "4 cells; the header names 3",
        "after row 1",
    ):  # fmt: skip
        assert words in errors, errors
    shown = [line for line in errors.splitlines() if line.strip()]
    assert len(shown) <= 30


@pytest.fixture(params=["120", "80"])
def width(request):
    """Columns of the terminal; the one that was looked at before is forgotten."""
    tables.errors.cache_clear()
    yield request.param
    tables.errors.cache_clear()


def test_a_report_of_many_kinds_fits_one_screen_and_a_file_has_the_rest(
    run, collection, tmp_path, pictures_in, width
):
    """More kinds of refusals and notes than a screen has lines, each with a long message."""
    root = pictures_in("good.png", "._good.png", "@eaDir/good.png", ".thumbnails/good.png")
    for kind in ("mp4", "svg", "pdf", "docx", "xyz"):
        (root / f"other.{kind}").write_bytes(b"x")
    shapes = [
        {"attributes": "year=3"}, {"attributes": [3]}, {"image": "/etc/a.png"},
        {"image": "../../a.png"}, {"image": "https://example.org/a.png"}, {"text": ["a", "b"]},
        {"image": "missing.png"}, {"image": 3}, {"words": "of no column"}, {"text": {"a": "b"}},
    ]  # fmt: skip
    kinds = [
        shape | {f"column {n}": {"deep": [1]}, "text": shape.get("text", "x")}
        for n, shape in enumerate(shapes)
    ]
    kinds[8].pop("text")
    rows = [{"id": f"{letter}{n}"} | kind for letter in "abc" for n, kind in enumerate(kinds)]
    rows += [
        {"id": True, "text": "x"},
        {"id": "ok" * 300, "text": "x"},
        {"id": "good", "text": "🚗"},
    ]
    jsonl, report = rows_in(tmp_path / "rows.jsonl", rows), tmp_path / "report.jsonl"
    code, output, errors = run(collection, root, jsonl, "--report", report, COLUMNS=width)
    assert code == 1
    count = int(output.partition("rejected ")[2])
    assert count > 25
    assert len((output + errors).splitlines()) <= 40, errors
    alike = next(line for line in errors.splitlines() if "has an image at a URL" in line)
    assert "3" in alike.split()
    assert "rows.jsonl" in alike
    assert "rejected" in errors
    told = [json.loads(line) for line in report.read_text().splitlines()]
    assert sum(one["topic"] == "rejected" for one in told) == count
    assert {"a4", "b4", "c4"} <= {one.get("id") for one in told}
    assert "passed over" in {one["topic"] for one in told}


def test_the_report_file_names_all_that_a_line_counts(run, collection, tmp_path):
    long = [{"id": f"long{n:02}", "text": "many words " * 1500} for n in range(30)]
    twice = [{"id": f"twice{n:03}", "text": f"row {n}"} for n in range(120)]
    jsonl, report = tmp_path / "rows.jsonl", tmp_path / "report.jsonl"
    rows_in(jsonl, [*long, *twice, *twice])
    run(collection, jsonl, "--report", report)
    told = {one["topic"]: one for one in map(json.loads, report.read_text().splitlines())}
    cut, again = told["TEXT_TRUNCATED"], told["ids that came again"]
    assert (cut["count"], cut["ids"]) == (30, [one["id"] for one in long])
    assert (again["count"], len(again["places"])) == (120, 120)
    rows_in(jsonl, long[:5])
    run(collection, jsonl, "--sync", "--report", report)
    [removed] = map(json.loads, report.read_text().splitlines())
    assert (removed["topic"], removed["count"], len(removed["ids"])) == ("removed", 145, 145)


def test_a_report_that_cannot_be_written_is_told_before_the_work(run, client, tmp_path):
    code, _, errors = run("new", tmp_path, "--report", tmp_path / "nowhere" / "report.jsonl")
    assert code == 2
    assert "no folder" in errors


WRITTEN = [json.dumps({"id": str(n), "text": f"row {n}"}) for n in range(3)]


@pytest.mark.parametrize(
    "data",
    [
        "".join(f"{row}\n" for row in WRITTEN).encode("utf-16"),
        "\r".join(WRITTEN).encode(),
        gzip.compress("\n".join(WRITTEN).encode()),
        "[\n{},\n{},\n{}\n]\n".format(*WRITTEN).encode(),
    ],
    ids=["UTF-16", "lines end with CR", "gzip without .gz", "an array"],
)
def test_vectors_fit_rows_however_these_are_written(run, client, collection, tmp_path, data):
    (tmp_path / "rows.jsonl").write_bytes(data)
    dim = client.get_collection(collection).dim
    np.save(tmp_path / "vectors.npy", np.eye(3, dim, dtype=np.float32))
    code, output, errors = run(collection, "rows.jsonl", "--vectors", "vectors.npy")
    assert (code, output) == (0, "stored 3, rejected 0\n"), errors
    np.save(tmp_path / "four.npy", np.eye(4, dim, dtype=np.float32))
    code, output, errors = run(collection, "rows.jsonl", "--vectors", "four.npy")
    assert code == 1


def test_a_folder_of_state_that_cannot_be_made_is_told_in_a_line(run, collection, tmp_path):
    rows_in(tmp_path / "rows.jsonl", [{"id": "a", "text": "x"}])
    (tmp_path / "file").touch()
    code, _, errors = run(collection, "rows.jsonl", XDG_STATE_HOME=str(tmp_path / "file"))
    assert code == 1
    assert str(tmp_path / "file") in errors
    assert "Traceback" not in errors
