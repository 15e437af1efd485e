"""A picture that the store has lost, through the gateway, the SDK and the command line."""

from __future__ import annotations

import pytest

from mmesh import Candidate, Content
from mmesh.errors import DataLoss
from mmesh.search import Consistency, Rerank


@pytest.fixture
def lossy(mesh, client, collection, pictures) -> str:
    """A collection of three illustrated texts, the second of which has lost its picture."""
    folder = mesh.settings.data / "blobs"
    for number, name in enumerate(["one", "two", "three"]):
        before = {path for path in folder.rglob("*") if path.is_file()}
        content = Content.of(f"a picture of {name}", pictures.png(number + 1))
        client.upsert_candidates(collection, [Candidate(name, content)])
        if name == "two":
            for path in {path for path in folder.rglob("*") if path.is_file()} - before:
                path.unlink()
    client.search(collection, "anything", consistency=Consistency.STRONG)
    return collection


def test_a_lost_picture_hides_no_other_candidate(client, lossy):
    got = client.batch_get_candidates(lossy, ["one", "two", "three"])
    listed = client.list_candidates(lossy, include_images=True).candidates
    for found in (got, sorted(listed, key=lambda one: ["one", "two", "three"].index(one.id))):
        assert [one.id for one in found] == ["one", "two", "three"]
        assert [isinstance(one.problem, DataLoss) for one in found] == [False, True, False]
        assert [bool(one.content.images[0].data) for one in found] == [True, False, True]
        assert found[1].content.texts == ("a picture of two",)


@pytest.mark.parametrize("judged", [0, 20])
def test_a_search_goes_on_without_the_content_that_is_not_whole(client, lossy, judged):
    result = client.search(lossy, "a picture", include_content=True, limit=3, rerank=Rerank(judged))
    assert {hit.id for hit in result.hits} == {"one", "two", "three"}
    assert {hit.id: hit.content is None for hit in result.hits} == {
        "one": False,
        "two": True,
        "three": False,
    }
    told = [one.message for one in result.degradations if one.reason == "CONTENT_UNAVAILABLE"]
    assert any("'two'" in message for message in told)


def test_an_export_saves_what_there_is_and_says_what_is_lost(
    command_here, mesh, client, lossy, tmp_path
):
    pytest.importorskip("arro3.core", reason="Parquet is absent: pip install 'mmesh[parquet]'")
    env = {"MMESH_TARGET_ADDRESS": mesh.address, "XDG_STATE_HOME": str(tmp_path)}

    def run(*arguments):
        return command_here(*arguments, env=env, folder=tmp_path)

    code, output, errors = run("export", lossy, "saved.parquet")
    assert code == 1
    assert "exported 3 candidates" in output
    assert "1 candidates are not whole" in errors
    assert "two" in errors
    code, output, errors = run("import", f"{lossy}-again", "saved.parquet")
    assert (code, output) == (1, "stored 2, rejected 1\n"), errors
    assert "two" in errors
    client.delete_collection(f"{lossy}-again")


def test_pictures_of_no_candidate_are_counted_beside_a_running_mesh(
    command_as_program, mesh, lossy, tmp_path
):
    command = ("index", "gc", "--dry-run", "--data", mesh.settings.data)
    code, output, errors = command_as_program(*command, env={}, folder=tmp_path)
    assert code == 0, errors
    assert "of candidates" in output
    assert "would be removed" in output
