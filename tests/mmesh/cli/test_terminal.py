"""Nothing that a mesh holds or says steers the terminal, whatever the command."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import click
import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from mmesh.api.gateway.v1 import gateway_pb2
from mmesh.api.index.v1 import collection_service_pb2, index_pb2
from mmesh.cli.main import COMMANDS
from mmesh.cli.output.tables import table
from mmesh.cli.output.terminal import ShownStream, open_console, shown, shown_in_line

HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b1A\x9d2K\r\b\x7f\u202eabc\u2066d\u2028e\u2029\n0\tz[bold]"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f]")
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for module in (gateway_pb2, index_pb2, collection_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
AT_GATEWAY = [
    ["search", "c", "words"],
    ["search", "c", "words", "--json"],
    ["search", "c", "--queries", "queries.jsonl"],
    ["show", "c"],
    ["show", "c", HOSTILE],
    ["delete", "c", "a"],
    ["delete", "c", "--filter", "a = 1", "--yes"],
    ["ingest", "c", "rows.jsonl"],
    ["export", "c", "file.parquet", "--no-vectors"],
    ["import", "c", "file.parquet"],
    ["status"],
    ["status", "--json"],
    ["probe", HOSTILE],
    ["collection", "create", "c"],
    ["collection", "set", "c", "--max-limit", "5"],
    ["collection", "copy", "c", HOSTILE],
    ["collection", "list"],
    ["collection", "list", "--json"],
    ["collection", "show", "c"],
    ["collection", "show", "c", "--json"],
    ["collection", "delete", HOSTILE, "--yes"],
    ["alias", "set", HOSTILE, "c"],
    ["alias", "delete", HOSTILE],
    ["alias", "list"],
    ["alias", "list", "--json"],
    *(["migrate", one, HOSTILE] for one in ("status", "switch", "rollback", "finish", "cancel")),
    ["migrate", HOSTILE, "--model", "m"],
]
AT_INDEX = [["index", one] for one in ("segments", "compact", "snapshot", "gc")]
NOT_HERE = {
    *("up", "scale", "evaluate", "negatives", "train", "encode", "rerank", "plan", "k8s"),
    *("logs", "top"),
}
"""Commands that print nothing stored, need real services, or have such tests of their own."""


def fill(message: object, depth: int = 0) -> object:
    """Set every field, and each text to something hostile; lists have one item."""
    for field in message.DESCRIPTOR.fields:
        first_choice = not field.containing_oneof or field.containing_oneof.fields[0] is field
        if first_choice and not field.name.endswith("page_token"):
            fill_field(message, field, depth)
    return message


def fill_field(message: object, field: object, depth: int) -> None:
    target = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        fill(target[HOSTILE], depth + 1) if value.message_type else target.update({HOSTILE: 1})
    elif field.message_type is not None:
        if depth < 6 and not field.message_type.full_name.startswith("google."):
            fill(target.add() if field.is_repeated else target, depth + 1)
            if not field.is_repeated:
                target.SetInParent()
    else:
        one = value_of(field)
        target.append(one) if field.is_repeated else setattr(message, field.name, one)


def value_of(field: object) -> object:
    kinds = {9: HOSTILE, 12: HOSTILE.encode(), 1: 0.5, 2: 0.5, 8: True}
    return kinds.get(field.type, 1)


class Hostile(grpc.GenericRpcHandler):
    """Answers every method, with messages or with an error."""

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = METHODS.get(call.method)
        if method is None:
            return None
        parse = GetMessageClass(method.input_type).FromString
        make = GetMessageClass(method.output_type)

        def answer(_request: object, context: grpc.ServicerContext) -> object:
            if self._fails:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, HOSTILE)
            return fill(make())

        def stream(requests: Iterator[object], context: grpc.ServicerContext) -> Iterator[object]:
            next(requests)
            if self._fails:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, HOSTILE)
            opened = gateway_pb2.IngestOpened(window=1, max_candidates=9, max_message_bytes=10**6)
            yield gateway_pb2.IngestResponse(opened=opened)
            for request in requests:
                rejected = fill(gateway_pb2.IngestRejected(sequence=request.batch.sequence))
                yield gateway_pb2.IngestResponse(rejected=rejected)
                ack = gateway_pb2.IngestAck(through_sequence=request.batch.sequence)
                yield gateway_pb2.IngestResponse(ack=ack)

        shapes = {"request_deserializer": parse, "response_serializer": make.SerializeToString}
        if method.name == "Ingest":
            return grpc.stream_stream_rpc_method_handler(stream, **shapes)
        return grpc.unary_unary_rpc_method_handler(answer, **shapes)


@pytest.fixture(scope="module", params=[False, True], ids=["answers", "errors"])
def address(request) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4), (Hostile(fails=request.param),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture
def run(command_here, tmp_path, address) -> Callable[..., str]:
    (tmp_path / "queries.jsonl").write_text(json.dumps({"text": HOSTILE}))
    rows = [{"id": HOSTILE, "text": "a"}, {"id": "b", "text": HOSTILE, "image": HOSTILE}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    env = {"MMESH_TARGET_ADDRESS": address, "XDG_STATE_HOME": str(tmp_path)}

    def run(*arguments: str) -> str:
        code, output, errors = command_here(*arguments, env=env, folder=tmp_path)
        assert not STEERING.search(output + errors)
        if "--json" in arguments and code == 0:
            json.loads(output)
        return output + errors

    return run


@pytest.mark.parametrize("arguments", AT_GATEWAY, ids=lambda a: " ".join(a)[:24].strip())
def test_what_a_command_prints_steers_no_terminal(run, arguments):
    assert run(*arguments)


@pytest.mark.parametrize("arguments", AT_INDEX, ids=" ".join)
def test_what_index_processes_say_steers_no_terminal(run, address, arguments):
    collection = ["c"] if arguments[1] in ("compact", "snapshot") else []
    run(*arguments, *collection, "--index-address", address)


def test_a_defect_shows_its_trace_and_steers_no_terminal(command_here, tmp_path, monkeypatch):
    def fail(_address: str) -> None:
        raise RuntimeError(HOSTILE)

    monkeypatch.setattr("mmesh.cli.commands.status.open_client", fail)
    code, _, errors = command_here("status", env={}, folder=tmp_path)
    assert code == 1
    assert "Traceback" in errors
    assert "RuntimeError" in errors
    assert not STEERING.search(errors)


def test_every_command_is_tried():
    def leaves(command: click.Command, path: tuple[str, ...]) -> set[tuple[str, ...]]:
        if not isinstance(command, click.Group):
            return {path}
        inner = ((*path, name) for name in command.commands)
        return {leaf for one in inner for leaf in leaves(command.commands[one[-1]], one)}

    every = {leaf for name, one in COMMANDS.items() for leaf in leaves(one.load(), (name,))}
    tried = {
        tuple(arguments[: len(leaf)]) for arguments in [*AT_GATEWAY, *AT_INDEX] for leaf in every
    }
    left = {leaf for leaf in every - tried if leaf[0] not in NOT_HERE}
    assert left == {("index", "migrate"), ("index", "verify"), ("migrate", "start")}


def test_escapes_stand_for_the_same_characters_in_json():
    line = json.dumps(HOSTILE, ensure_ascii=False)
    assert not STEERING.search(shown(line))
    assert json.loads(shown(line)) == HOSTILE


def test_what_belongs_to_scripts_and_emoji_stays():
    harmless = "שלום \u200f مرحبا 👩\u200d👩\u200d👧 e\u0301 \u00a0\u3000ไทย"
    assert shown(harmless) == shown_in_line(harmless) == harmless


def test_every_control_character_and_lone_surrogate_is_escaped():
    for point in range(0x110000):
        character = chr(point)
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
            assert shown(character) == f"\\u{point:04x}"
    assert shown_in_line("a\nb\tc") == "a\\u000ab\\u0009c"


def test_a_console_on_a_terminal_keeps_its_own_colours_and_no_others():
    stream = ShownStream(io.StringIO())
    console = open_console()
    console.file, console._force_terminal = stream, True
    console.print("\x9b31mred", style="bold", markup=False)
    console.print(table(["id"], [[HOSTILE]], "title \x1b[1A"))
    printed = stream.inner.getvalue()
    assert "\\u009b31mred" in printed
    assert "\x1b[1A" not in printed
    assert not STEERING.search(re.sub(r"\x1b\[[0-9;]*m", "", printed))
    assert "\x1b[31m" not in printed
