"""The command line against a real mesh: in this process, and a few times as a program."""

import csv
import functools
import io
import json
import os
import sys

import pytest
from PIL import Image as Pillow

from mmesh.search import Consistency


@pytest.fixture
def run(command_here, mesh, tmp_path):
    """Run `mmesh ARGUMENTS`; return exit code, stdout and stderr."""

    def run(*arguments, address=mesh.address, command=command_here, **options):
        env = {"MMESH_TARGET_ADDRESS": address, "XDG_STATE_HOME": str(tmp_path / "state")}
        return command(*arguments, env=env, folder=tmp_path, **options)

    return run


@pytest.fixture
def run_program(run, command_as_program):
    """Run `mmesh ARGUMENTS` as a program of its own, which takes a second longer."""
    return functools.partial(run, command=command_as_program)


@pytest.fixture
def folder(tmp_path, pictures):
    """Three pictures, one of them in a subfolder and one with a text."""
    made = tmp_path / "pictures"
    (made / "sub").mkdir(parents=True)
    (made / "one.png").write_bytes(pictures.png(1))
    (made / "two.jpg").write_bytes(pictures.jpeg(2))
    (made / "two.txt").write_text("a pair of shoes")
    (made / "sub" / "three.PNG").write_bytes(pictures.png(3))
    (made / "notes.md").write_text("no picture")
    return made


def counts(run, collection):
    _, output, _ = run("collection", "show", collection, "--json")
    return json.loads(output)["candidates"]


def test_a_folder_is_ingested_and_the_collection_is_made(run, run_program, folder, client):
    name = "cli-folder"
    code, output, _ = run_program("ingest", name, folder)
    assert (code, output) == (0, "stored 3, rejected 0\n")
    assert counts(run, name) == {"text": 0, "image": 2, "image_text": 1}
    assert [c.id for c in client.list_candidates(name).candidates] == [
        "one.png",
        "sub/three.PNG",
        "two.jpg",
    ]
    assert run("collection", "delete", name, "--yes")[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_files_of_any_name_are_ingested_shown_and_deleted(run, tmp_path, pictures, client):
    names = [
        "9.41.07\u202fAM.png",
        "\u3000.png",
        "\U0001f468\u200d\U0001f469.png",
        "a\nb.png",
        os.fsdecode(b"caf\xe9.png"),
    ]
    (tmp_path / "odd").mkdir()
    for number, name in enumerate(names):
        (tmp_path / "odd" / name).write_bytes(pictures.png(number))
    code, output, _ = run("ingest", "cli-odd", tmp_path / "odd")
    assert (code, output) == (0, "stored 5, rejected 0\n")
    ids = [one.id for one in client.list_candidates("cli-odd").candidates]
    assert {"a%0Ab.png", "caf%E9.png"} < set(ids)
    assert run("delete", "cli-odd", *ids)[1] == "deleted 5 of 5\n"
    client.delete_collection("cli-odd")


def test_rows_of_each_kind_of_file_mean_the_same(run, tmp_path, pictures, client):
    arro3 = pytest.importorskip(
        "arro3.core", reason="Parquet is absent: pip install 'mmesh[parquet]'"
    )
    from arro3.io import write_parquet

    (tmp_path / "p.png").write_bytes(pictures.png())
    row = {"id": "r", "text": "words", "image": "p.png", "topic": "cats"}
    ours = {name: row[name] for name in ("id", "text", "image")} | {"attributes": {"topic": "cats"}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(ours) + "\n\n")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    columns = {n: arro3.Array([v], arro3.DataType.utf8()) for n, v in row.items()}
    write_parquet(arro3.Table.from_pydict(columns), tmp_path / "rows.parquet")
    stored = []
    for kind in ("jsonl", "csv", "parquet"):
        assert run("ingest", f"cli-{kind}", tmp_path / f"rows.{kind}")[0] == 0
        stored.append(client.batch_get_candidates(f"cli-{kind}", ["r"]))
        client.delete_collection(f"cli-{kind}")
    assert stored[0] == stored[1] == stored[2]
    assert stored[0][0].attributes == {"topic": "cats"}
    assert stored[0][0].content.modality.value == "image_text"


def test_what_is_rejected_is_listed_and_the_rest_is_stored(run, tmp_path, collection):
    rows = [
        {"id": "good", "text": "fine"},
        {"id": "no-content"},
        {"id": "no-file", "image": "missing.png"},
        {"id": "no-picture", "image": "rows.jsonl"},
        {"id": "odd", "text": "x", "attributes": ["deep"]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "not json", "[1]"]))
    report = tmp_path / "report"
    code, output, errors = run("ingest", collection, path, "--report", report)
    assert (code, output) == (1, "stored 1, rejected 6\n"), errors
    for where in ("rows.jsonl:2", "no-file", "no-picture", *(f"rows.jsonl:{n}" for n in (5, 6, 7))):
        assert where in errors
    ids = [json.loads(line).get("id") for line in report.read_text().splitlines()]
    assert {"no-content", "no-file", "no-picture", "odd", "rows.jsonl:6"} <= set(ids)
    assert "INVALID_IMAGE" in errors
    assert counts(run, collection)["text"] == 1


@pytest.fixture
def filled(run, tmp_path, client, collection, pictures):
    (tmp_path / "p.png").write_bytes(pictures.png())
    rows = [
        {"id": "cat", "text": "a cat on a sofa", "attributes": {"year": 1990}},
        {"id": "rocket", "text": "a rocket on its pad", "attributes": {"year": 1969}},
        {"id": "picture", "image": "p.png"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("ingest", collection, tmp_path / "rows.jsonl")[0] == 0
    client.search(collection, "anything", consistency=Consistency.STRONG)  # all shards have it
    return collection


def test_captioned_pictures_are_found_among_those_with_a_picture(
    run, folder, client, collection, tmp_path
):
    assert run("ingest", collection, folder)[0] == 0
    client.search(collection, "anything", consistency=Consistency.STRONG)  # all shards have it
    _, output, _ = run("search", collection, "shoes", "--target", "image")
    assert "two.jpg" not in output
    _, output, _ = run("search", collection, "shoes", "--target", "with_image")
    assert {"one.png", "two.jpg", "sub/three.PNG"} <= set(output.split())
    (tmp_path / "queries.jsonl").write_text(
        '{"text": "shoes", "target": "with_text"}\n{"text": "x", "target": "y"}'
    )
    _, output, _ = run("search", collection, "--queries", tmp_path / "queries.jsonl")
    found, refused = map(json.loads, output.splitlines())
    assert [hit["id"] for hit in found["hits"]] == ["two.jpg"]
    assert "use one of any, text" in refused["error"]["message"]


def test_the_order_follows_a_column_that_is_shown_and_is_explained_on_request(run, filled):
    _, output, _ = run("search", filled, "a cat")
    head, *rows = [line.split() for line in output.splitlines()[:3]]
    assert head[:4] == ["#", "score", "similarity", "judge"]
    assert float(rows[0][1]) >= float(rows[1][1])
    _, output, _ = run("search", filled, "a cat", "--explain", "--target", "text")
    assert output.split()[:4] == ["#", "score", "similarity", "in"]
    assert "mixed: both stages standardised" in output
    _, output, _ = run("search", filled, "a cat", "--explain", "--json")
    assert json.loads(output)["hits"][0]["explanation"]["list_rank"] == 1


def test_a_collection_shows_its_attributes_with_types_and_counts(run, filled):
    _, output, _ = run("collection", "show", filled)
    assert "year       integer  2" in output
    _, output, _ = run("collection", "show", filled, "--json")
    assert json.loads(output)["attributes"] == {"year": {"type": "integer", "count": 2}}


def test_a_misspelt_attribute_is_said_with_the_one_that_was_meant(run, filled):
    wanted = "no candidate has the attribute 'yaer'; did you mean 'year'?"
    code, output, _ = run("search", filled, "a kitten", "--filter", "yaer >= 1969")
    assert (code, "cat" in output) == (0, False)
    assert f"ATTRIBUTE_UNKNOWN: {wanted}" in " ".join(output.split())
    _, _, errors = run("delete", filled, "--filter", "not yaer = 1969", answer="n\n")
    assert f"warning: {wanted}" in errors


def test_a_search_prints_a_table(run, filled):
    code, output, _ = run("search", filled, "a kitten", "--target", "text")
    assert code == 0
    assert output.index("a cat on a sofa") < output.index("a rocket on its pad")
    assert "shards 2/2" in output


def test_a_search_prints_json_for_scripts(run, filled):
    code, output, _ = run("search", filled, "a kitten", "--filter", "year < 1980", "--json")
    answer = json.loads(output)
    assert code == 0
    assert [hit["id"] for hit in answer["hits"]] == ["rocket"]
    assert set(answer) == {"hits", "coverage", "degradations", "receipt", "token"}
    assert set(answer["hits"][0]) == {
        "id",
        "rank",
        "score",
        "retrieval_score",
        "rerank_score",
        "modality",
        "attributes",
    }
    assert answer["coverage"] == {"shards_answered": 2, "shards_total": 2}


def test_a_search_with_a_picture_writes_a_page(run, filled, tmp_path):
    picture, page = tmp_path / "p.png", tmp_path / "found.html"
    instruction = "Find an image like this."
    command = ("search", filled, "--image", picture, "--instruction", instruction, "--html", page)
    assert run(*command)[0] == 0
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 2  # the query and the hit
    assert "a cat on a sofa" not in html


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full disk at hand")
def test_hits_are_shown_where_there_is_no_room_for_their_page(run, filled):
    code, output, errors = run("search", filled, "a cat", "--html", "/dev/full")
    assert code == 1
    assert "a cat on a sofa" in output
    assert "/dev/full cannot be written: No space left on device" in errors
    assert "Traceback" not in errors


def test_queries_from_a_file_are_answered_in_order(run_program, filled, tmp_path):
    rows = [{"id": f"q{n}", "text": "a kitten" if n % 2 else "space flight"} for n in range(70)]
    rows[3] = {"id": "bad"}
    path = tmp_path / "queries.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    code, output, _ = run_program("search", filled, "--queries", path, "--limit", "1", "--json")
    answers = [json.loads(line) for line in output.splitlines()]
    assert code == 1
    assert [answer["id"] for answer in answers] == [row["id"] for row in rows]
    assert answers[3]["error"]["reason"] == "UNREADABLE"
    assert answers[0]["hits"][0]["id"] == "rocket"
    assert answers[1]["hits"][0]["id"] == "cat"


def test_a_line_of_a_query_file_that_cannot_be_asked_costs_itself_alone(run, filled, tmp_path):
    bad = {
        "cut emoji": r'{"text": "cut \ud83d"}',
        "odd id": r'{"id": "\ud83d", "text": "a cat"}',
        "list as target": '{"text": "a cat", "target": ["text"]}',
        "number as target": '{"text": "a cat", "target": 5}',
        "number as instruction": '{"text": "a cat", "instruction": 5}',
        "cut instruction": r'{"text": "a cat", "instruction": "\ud83d"}',
        "list as text": '{"text": ["a cat"]}',
        "object as image": '{"image": {"a": 1}}',
        "NUL in a name": r'{"image": "a\u0000.png"}',
        "surrogate in a name": r'{"image": "\ud83d.png"}',
    }
    good = '{"text": "a cat"}'
    (tmp_path / "q.jsonl").write_text("\n".join([good, *bad.values(), good]))
    code, output, errors = run("search", filled, "--queries", tmp_path / "q.jsonl")
    answers = [json.loads(line) for line in output.splitlines()]
    assert (code, errors) == (1, "")
    assert [name for name, one in zip(bad, answers[1:-1], strict=True) if "hits" in one] == []
    assert [one["hits"][0]["id"] for one in (answers[0], answers[-1])] == ["cat", "cat"]


def test_deleted_candidates_are_not_found_again(run, filled):
    code, output, _ = run("delete", filled, "cat", "unknown")
    assert (code, output) == (0, "deleted 1 of 2\n")
    assert counts(run, filled)["text"] == 1


def test_deleting_by_filter_asks_first(run, run_program, filled):
    question = f"Of the 3 candidates of {filled}, delete those with year < 1980?"
    code, output, _ = run_program("delete", filled, "--filter", "year < 1980", answer="n\n")
    assert code == 130
    assert question in output
    assert counts(run, filled)["text"] == 2
    code, output, _ = run("delete", filled, "--filter", "year < 1980", "--yes")
    assert (code, output) == (0, "deleted 1 of 3\n")
    assert counts(run, filled)["text"] == 1


def test_only_the_settings_that_are_given_change(run):
    name = "cli-settings"
    made = run("collection", "create", name, "--max-limit", "5", "--index-factory", "Flat")
    assert made[0] == 0
    code, output, _ = run("collection", "set", name, "--recall-target", "0.9", "--max-limit", "0")
    assert code == 0
    assert "0.9" in output
    _, output, _ = run("collection", "show", name, "--json")
    settings = json.loads(output)["settings"]
    assert (settings["index_factory"], settings["recall_target"]) == ("Flat", 0.9)
    assert set(settings["limits"].values()) == {0}
    assert "any number" in run("collection", "show", name)[1]
    code, _, errors = run("collection", "set", name, "--max-limit", "1001")
    assert code == 1
    assert "settings.limits.max_limit" in errors
    assert run("collection", "delete", name, "--yes")[0] == 0


def test_an_alias_is_set_listed_and_deleted(run, filled):
    assert run("alias", "set", "cli-alias", filled)[:2] == (0, f"cli-alias is {filled}\n")
    assert json.loads(run("alias", "list", "--json")[1]) == [
        {"alias": "cli-alias", "collection": filled}
    ]
    assert "cli-alias" in run("collection", "list")[1]
    assert counts(run, "cli-alias")["text"] == 2
    assert run("alias", "delete", "cli-alias")[0] == 0
    assert json.loads(run("alias", "list", "--json")[1]) == []
    code, _, errors = run("alias", "delete", "cli-alias")
    assert code == 1
    assert "ALIAS_NOT_FOUND" in errors


def test_the_segments_of_every_shard_are_shown(run, filled, mesh):
    data = mesh.settings.data
    code, output, _ = run("index", "segments", filled, "--data", data)
    assert code == 0
    assert "index-0" in output
    assert "index-1" in output
    code, output, _ = run("index", "segments", filled, "--data", data, "--json")
    shards = json.loads(output)
    assert (code, set(shards)) == (0, {"index-0", "index-1"})
    held = [one for shard in shards.values() for one in shard["segments"]]
    assert {one["collection"] for one in held} == {filled}
    assert sum(one["rows"] - one["deleted"] for one in held) == 3
    address = mesh.address_of("index-1")
    code, output, _ = run("index", "segments", "--index-address", address, "--json")
    assert (code, set(json.loads(output))) == (0, {address})


def test_a_shard_that_is_away_is_said_and_the_others_are_shown(run, mesh):
    addresses = ["--index-address", mesh.address_of("index-0"), "--index-address", "127.0.0.1:1"]
    code, output, errors = run("index", "segments", *addresses, "--json")
    assert code == 1
    assert set(json.loads(output)) == {mesh.address_of("index-0")}
    assert "127.0.0.1:1: " in errors


@pytest.mark.parametrize("kind", ["bmp", "tiff", "gif"])
def test_a_picture_to_search_with_may_be_of_any_format_that_is_ingested(
    run, filled, pictures, tmp_path, kind
):
    with Pillow.open(io.BytesIO(pictures.png(1))) as picture:
        picture.save(tmp_path / f"query.{kind}")
    code, output, errors = run("search", filled, "--image", f"query.{kind}", "--json")
    assert code == 0, errors
    assert len(json.loads(output)["hits"]) == 3


def test_what_is_no_picture_to_search_with_is_said(run, filled, tmp_path):
    (tmp_path / "broken.bmp").write_bytes(b"BM no more")
    os.mkfifo(tmp_path / "pipe.png")
    for name, said in (("broken.bmp", "is a broken BMP file"), ("pipe.png", "is a pipe")):
        code, _, errors = run("search", filled, "--image", name)
        assert code == 2
        assert f"{name} {said}" in errors


def test_shards_compact_and_store_a_collection_when_told(run, filled, mesh):
    data = mesh.settings.data
    code, output, errors = run("index", "compact", filled, "--data", data, "--json")
    assert code == 0, errors
    held = [one for segments in json.loads(output).values() for one in segments]
    assert sum(one["rows"] for one in held) == 3
    code, output, errors = run("index", "snapshot", filled, "--data", data, "--json")
    assert code == 0, errors
    assert {one["number"] for one in json.loads(output).values()} == {1}
    code, output, errors = run("index", "verify", "--collection", filled, "--data", data)
    assert code == 0, errors


def test_errors_are_one_line_that_says_what_to_do(run_program):
    code, _, errors = run_program("search", "nowhere", "x")
    assert code == 1
    assert "COLLECTION_NOT_FOUND" in errors
    assert "Traceback" not in errors


def test_a_mesh_that_is_not_there_is_said(run_program):
    code, _, errors = run_program("status", address="127.0.0.1:1")
    assert code == 1
    assert "mmesh up" in errors


def test_status_shows_every_process_with_its_place(run):
    code, output, _ = run("status")
    assert code == 0
    title, _, *lines = output.splitlines()
    assert "2 shards" in title
    rows = [line.split()[:2] for line in lines]
    assert [row for row in rows if row[0] == "index"] == [["index", "0/2"], ["index", "1/2"]]
    assert ["encoder", "serving"] in rows


def test_status_as_json_has_the_fields_of_the_api(run):
    code, output, _ = run("status", "--json")
    found = json.loads(output)
    assert (code, found["shard_count"]) == (0, 2)
    last = [one for one in found["services"] if one["role"] == "index"][-1]
    assert last.items() >= {"state": "serving", "shard": 1, "shard_count": 2, "replica": 0}.items()


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "c"],
        ["search", "c", "x", "--merge", "odd"],
        ["ingest", "c", "none"],
        ["search", "c", "x", "--filter", "year ~ 3"],
    ],
)
def test_wrong_usage_is_explained(run, arguments):
    code, _, errors = run(*arguments)
    assert code in (1, 2)
    assert errors
    assert "Traceback" not in errors
