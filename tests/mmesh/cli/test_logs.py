"""`mmesh logs` puts logs of processes together by time, and chooses."""

from __future__ import annotations

import json

import pytest

from mmesh import Candidate, Content


def line(second, service, message, level="INFO", **more):
    head = {"time": f"2026-11-27T10:00:{second:02}.000Z", "level": level, "service": service}
    return json.dumps({**head, "logger": "l", "message": message, **more})


@pytest.fixture
def logs(tmp_path, command_here):
    folder = tmp_path / ".mmesh" / "logs"
    folder.mkdir(parents=True)
    written = {
        "gateway": [
            line(1, "gateway", "call", request_id="r1", ms=5.0),
            line(4, "gateway", "slow search", "WARNING", request_id="r2", ms=1200.5),
        ],
        "index-0": [
            line(2, "index-0", "call", request_id="r1", trace_id="t1", ms=1),
            "Traceback of an interpreter",
            line(3, "index-0", "failed", "ERROR", cause="a\x1b[31m\nb"),
            '{"time": "cut o',
        ],
    }
    for name, lines in written.items():
        (folder / f"{name}.log").write_text("\n".join(lines) + "\n")

    def run(*arguments):
        code, output, errors = command_here("logs", *arguments, env={}, folder=tmp_path)
        assert code == 0, errors
        return [one for one in output.splitlines() if one]

    return run


def messages(lines):
    return [one.split()[2:4] for one in lines]


def test_lines_of_all_processes_come_in_the_order_of_time(logs):
    expected = [
        ["gateway", "call"],
        ["index-0", "call"],
        ["index-0", "failed"],
        ["gateway", "slow"],
    ]
    assert messages(logs()) == expected


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        (["--id", "r1"], [1, 2]),
        (["--id", "t1"], [2]),
        (["--id", "r2", "--id", "t1"], [2, 4]),
        (["--service", "index"], [2, 3]),
        (["--level", "warning"], [3, 4]),
        (["--message", "call"], [1, 2]),
        (["--slower-than", "5"], [1, 4]),
        (["--last", "2"], [3, 4]),
        (["--service", "gateway", "--level", "error"], []),
    ],
)
def test_lines_are_chosen(logs, arguments, seconds):
    found = [json.loads(one) for one in logs("--json", *arguments)]
    assert [int(one["time"][17:19]) for one in found] == seconds


def test_what_steers_a_terminal_is_shown_as_what_it_is(logs):
    (one,) = logs("--message", "failed")
    assert "\x1b" not in one
    assert one.endswith("cause=a\\u001b[31m\\u000ab")


def test_where_no_mesh_has_run_it_says_so(command_here, tmp_path):
    code, _, errors = command_here("logs", "--data", "none", env={}, folder=tmp_path)
    assert code == 1
    assert "no mesh has run on none" in errors


def test_one_search_is_followed_through_all_services(
    mesh, client, collection, command_here, tmp_path
):
    client.upsert_candidates(collection, [Candidate("a", Content.of("a cat"))])
    request_id = client.search(collection, "a kitten, followed").receipt.request_id
    code, output, _ = command_here(
        "logs", "--json", "--data", mesh.settings.data, "--id", request_id, env={}, folder=tmp_path
    )
    assert code == 0
    services = {json.loads(one)["service"] for one in output.splitlines()}
    assert services >= {"gateway", "encoder", "index-0", "index-1"}
