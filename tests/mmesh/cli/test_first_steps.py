"""What a newcomer types wrong, or takes for granted, is answered in words that help."""

from __future__ import annotations

import pytest

from mmesh import AsyncClient, Candidate, Client, Content
from mmesh.errors import InvalidField
from mmesh.wire.transport import check_target

WRONG_ADDRESSES = ["localhost", "http://127.0.0.1:50550", "127.0.0.1:", ":50550", "host:99999",
                   "host:http", "::1:50550", "127.0.0.1:50550/"]  # fmt: skip
RIGHT_ADDRESSES = ["127.0.0.1:50550", "localhost:1", "[::1]:50550", "dns:///index:7001", "unix:/a"]


@pytest.fixture
def run(command_here, mesh, tmp_path):
    env = {"MMESH_TARGET_ADDRESS": mesh.address, "XDG_STATE_HOME": str(tmp_path)}

    def run(*arguments, **options):
        return command_here(*arguments, env=env, folder=tmp_path, **options)

    return run


@pytest.mark.parametrize("address", WRONG_ADDRESSES)
def test_what_is_no_address_is_wrong_usage(command_here, tmp_path, address):
    for command in (
        ["status", "--target-address", address],
        ["index", "segments", "--index-address", address],
    ):
        code, _, errors = command_here(*command, env={}, folder=tmp_path)
        assert code == 2
        assert "HOST:PORT is due, such as 127.0.0.1:50550" in errors
    for client in (Client, AsyncClient):
        with pytest.raises(InvalidField, match="HOST:PORT is due"):
            client(address)


@pytest.mark.parametrize("address", RIGHT_ADDRESSES)
def test_addresses_of_all_kinds_are_taken(address):
    check_target(address)


@pytest.mark.parametrize("timeout", ["0", "-3"])
def test_a_timeout_that_is_over_at_once_is_wrong_usage(run, timeout):
    code, _, errors = run("search", "c", "words", f"--timeout={timeout}")
    assert code == 2
    assert "--timeout" in errors


@pytest.fixture
def filled(client, collection) -> str:
    ids = ["plain", "-dash.png", "-h", "--long"]
    found = [Candidate(one, Content.of(f"text of {one}")) for one in ids]
    client.upsert_candidates(
        collection, [*found, *(Candidate(f"id{n}", Content.of(f"text {n}")) for n in range(12))]
    )
    return collection


def test_ids_that_begin_with_a_dash_are_ids(run, filled):
    code, output, errors = run("show", filled, "-dash.png", "plain")
    assert (code, errors) == (0, "")
    assert "text of -dash.png" in output
    assert run("delete", filled, "-dash.png", "plain")[1] == "deleted 2 of 2\n"
    assert run("delete", filled, "--", "-h", "--long")[1] == "deleted 2 of 2\n"


def test_options_are_still_options(run, filled):
    assert "Usage" in run("show", "-h")[1]
    assert run("show", filled, "--limit", "3")[1].count("text of") == 3
    assert run("show", filled, "--limit=3")[0] == 0
    code, _, errors = run("show", filled, "--limt", "3")
    assert code == 2
    assert "--limit" in errors
    assert run("delete", filled, "--filter")[0] == 2


def test_ids_that_there_are_not_are_told(run, filled):
    code, output, errors = run("show", filled, "nope")
    assert (code, output) == (1, "")
    assert errors == f"{filled} has no candidate 'nope'\n"
    code, output, errors = run("show", filled, "plain", "nope")
    assert code == 1
    assert "text of plain" in output


def test_a_search_that_asks_for_no_number_gets_what_the_collection_allows(run, client, filled):
    client.search(filled, "text", consistency="strong")  # all shards have all of it by now
    assert len(client.search(filled, "text").hits) == 10
    client.update_collection(filled, max_limit=5)
    assert len(client.search(filled, "text").hits) == 5
    assert len(client.search(filled, "text", limit=3).hits) == 3
    assert run("search", filled, "text")[0] == 0
    with pytest.raises(InvalidField, match="1 to 5 are allowed"):
        client.search(filled, "text", limit=6)


def test_what_is_to_be_deleted_need_not_be_created_first(run):
    code, _, errors = run("collection", "delete", "nowhere")
    assert (code, errors) == (1, "error: no collection is named 'nowhere' [COLLECTION_NOT_FOUND]\n")


def test_a_folder_on_which_no_mesh_runs_is_told_with_the_option(run, tmp_path):
    for command in (["index", "segments"], ["scale", "--shards", "2"]):
        code, _, errors = run(*command)
        assert code == 1
        assert "--data" in errors
