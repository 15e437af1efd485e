"""What the page says of retries holds for every call and for every reason."""

import re
from pathlib import Path

import pytest

from mmesh.errors import all_errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/write-a-client.md").read_text("utf-8")
PROTO = (ROOT / "protos/mmesh/api/gateway/v1/gateway.proto").read_text("utf-8")
CALLS = re.findall(r"^  rpc (\w+)\((?:stream )?(\w+)\)", PROTO, re.MULTILINE)


def rows_below(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading of its columns."""
    table = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_every_call_is_in_one_row():
    named = [name for calls, _ in rows_below("calls") for name in names_in(calls)]
    assert sorted(named) == sorted(name for name, _ in CALLS)


@pytest.mark.parametrize(("name", "request_name"), CALLS)
def test_calls_with_a_request_id_are_said_to_need_one(name, request_name):
    (message,) = re.findall(rf"^message {request_name} \{{(.*?)^\}}", PROTO, re.DOTALL | re.M)
    (advice,) = [said for calls, said in rows_below("calls") if name in names_in(calls)]
    assert ("request_id" in message) == ("`request_id`" in advice)


def test_every_reason_with_a_pause_is_named_beside_its_code():
    named = {
        (reason, names_in(code)[0])
        for reasons, code in rows_below("reasons with a `RetryInfo`")
        for reason in names_in(reasons)
    }
    assert named == {
        (cls.reason, cls.code.name) for cls in all_errors() if cls.retry_after_s is not None
    }
