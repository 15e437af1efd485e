"""No call of a client waits for ever: not when it is closed meanwhile, nor in its own ingest."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import grpc
import pytest

from mmesh import AsyncClient, Candidate, Client, Content
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.errors import FailedPrecondition
from mmesh.ingest import Ingest
from mmesh.threads import loop_thread
from tests.effort import patient

AWAY = "127.0.0.1:1"


class Gateway(rpc.RetrievalServiceServicer):
    """Never answers a search, and stores what it gets."""

    def __init__(self) -> None:
        self.is_asked, self.is_left = threading.Event(), threading.Event()

    def GetStatus(self, request, context):
        return pb.GetStatusResponse(version="of the test")

    def Search(self, request, context):
        gone = threading.Event()
        if not context.add_callback(gone.set):
            gone.set()  # it is over already
        self.is_asked.set()
        gone.wait()
        return pb.SearchResponse()

    def Ingest(self, requests, context):
        context.add_callback(self.is_left.set)
        yield pb.IngestResponse(
            opened=pb.IngestOpened(window=2, max_candidates=256, max_message_bytes=1 << 20)
        )
        for request in requests:
            if request.HasField("batch"):
                ack = pb.IngestAck(through_sequence=request.batch.sequence, stored=1)
                yield pb.IngestResponse(ack=ack)
                self.is_asked.set()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    servicer = Gateway()
    server = grpc.server(ThreadPoolExecutor(8))
    rpc.add_RetrievalServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(0).wait()


def endless() -> Iterator[Candidate]:
    number = 0
    while True:
        yield Candidate(f"n{number}", Content.of("ship"))
        number += 1


class Calling:
    """A call on a thread of its own."""

    def __init__(self, call) -> None:
        self.outcome = None
        self._thread = threading.Thread(target=self._call, args=(call,), daemon=True)
        self._thread.start()

    def _call(self, call):
        try:
            self.outcome = call()
        except BaseException as error:
            self.outcome = error

    def end(self):
        self._thread.join(patient(10))
        assert not self._thread.is_alive(), "it waits for ever"
        return self.outcome


def assert_is_closed(outcome) -> None:
    assert isinstance(outcome, FailedPrecondition), repr(outcome)
    assert "closed" in outcome.message


@pytest.mark.parametrize(
    "call",
    [
        lambda one: one.search("c", "cat"),
        lambda one: one.ingest("c", endless(), batch_size=1),
    ],
    ids=["search", "ingest"],
)
def test_a_call_that_runs_ends_when_another_thread_closes_the_client(gateway, call):
    one = Client(gateway.address)
    calling = Calling(lambda: call(one))
    assert gateway.is_asked.wait(patient(10))
    Calling(one.close).end()
    assert_is_closed(calling.end())
    with pytest.raises(FailedPrecondition, match="closed"):
        one.get_status()


def test_an_ingest_that_waits_for_the_mesh_ends_when_the_client_is_closed():
    one, began = Client(AWAY), threading.Event()
    calling = Calling(lambda: (began.set(), one.ingest("c", endless())))
    assert began.wait(patient(10))
    one.close()
    assert_is_closed(calling.end())


def test_a_source_that_holds_the_thread_keeps_nobody_waiting(gateway, monkeypatch):
    monkeypatch.setattr(loop_thread, "ENDING_S", 0.1)
    holds, goes_on = threading.Event(), threading.Event()
    reading: list[threading.Thread] = []

    def held() -> Iterator[Candidate]:
        yield Candidate("first", Content.of("ship"))
        reading.append(threading.current_thread())
        holds.set()
        goes_on.wait(patient(10))
        yield Candidate("second", Content.of("ship"))

    one = Client(gateway.address)
    calling = Calling(lambda: one.ingest("c", held()))
    assert holds.wait(patient(10))
    Calling(one.close).end()
    assert_is_closed(calling.end())
    goes_on.set()
    reading[0].join(patient(10))
    assert not reading[0].is_alive(), "the thread ends once it can"


def test_a_client_may_be_closed_in_a_callback_of_its_own_ingest(gateway):
    one = Client(gateway.address)
    calling = Calling(
        lambda: one.ingest("c", endless(), batch_size=1, on_progress=lambda _: one.close())
    )
    assert_is_closed(calling.end())


def test_calls_that_race_with_the_close_are_answered_or_refused(gateway):
    for _ in range(10):
        one = Client(gateway.address)

        def ask_until_refused(one=one):
            while True:
                assert one.get_status().version == "of the test"

        callings = [Calling(ask_until_refused) for _ in range(4)]
        one.get_status()
        one.close()
        for calling in callings:
            assert_is_closed(calling.end())


async def slow() -> AsyncIterator[Candidate]:
    yield Candidate("first", Content.of("ship"))
    await asyncio.Event().wait()


CALLS = {
    "search": lambda one: one.search("c", "cat"),
    "ingest": lambda one: one.ingest("c", endless(), batch_size=1),
    "ingest of a slow source": lambda one: one.ingest("c", slow(), batch_size=1),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_runs_ends_when_another_task_closes_the_client(gateway, name):
    one = AsyncClient(gateway.address)
    task = asyncio.create_task(CALLS[name](one))
    assert await asyncio.to_thread(gateway.is_asked.wait, patient(10))
    await one.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        await asyncio.wait_for(task, patient(10))


async def test_an_ingest_between_two_connections_ends_when_the_client_is_closed():
    one = AsyncClient(AWAY)
    task = asyncio.create_task(one.ingest("c", endless()))
    await asyncio.sleep(0.05)
    await one.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        await asyncio.wait_for(task, patient(10))


@pytest.mark.parametrize("turns", range(4))
async def test_an_ingest_whose_call_is_not_under_way_ends_when_the_client_is_closed(
    monkeypatch, turns
):
    """gRPC wakes no write to a call that is cancelled before its first operation has ended."""
    is_called = asyncio.Event()
    open_call = Ingest._open_call

    def opened(ingest):
        is_called.set()
        return open_call(ingest)

    monkeypatch.setattr(Ingest, "_open_call", opened)
    one = AsyncClient(AWAY)
    task = asyncio.create_task(one.ingest("c", endless()))
    await is_called.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    await one.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        await asyncio.wait_for(task, patient(5))


@pytest.mark.parametrize("name", CALLS)
async def test_a_task_that_is_cancelled_is_cancelled(gateway, name):
    async with AsyncClient(gateway.address) as one:
        task = asyncio.create_task(CALLS[name](one))
        assert await asyncio.to_thread(gateway.is_asked.wait, patient(10))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()


def leaving() -> Iterator[Candidate]:
    yield Candidate("first", Content.of("ship"))
    sys.exit("row 2 is bad")


def stopped() -> Iterator[Candidate]:
    yield Candidate("first", Content.of("ship"))
    raise asyncio.CancelledError("of a task of the caller's")


@pytest.mark.parametrize(
    ("source", "raised"), [(leaving, SystemExit), (stopped, asyncio.CancelledError)]
)
def test_what_a_source_raises_reaches_the_caller_and_leaves_the_client_alive(
    gateway, source, raised
):
    with Client(gateway.address) as one:
        outcome = Calling(lambda: one.ingest("c", source())).end()
        assert isinstance(outcome, raised)
        assert outcome.args
        assert one.get_status().version == "of the test"


@pytest.mark.parametrize(
    ("owner", "step"), [(asyncio, "run_coroutine_threadsafe"), (threading.Thread, "start")]
)
@pytest.mark.parametrize("is_before", [True, False])
def test_a_signal_handler_may_close_the_client_at_any_step(
    gateway, monkeypatch, owner, step, is_before
):
    one, original = Client(gateway.address), getattr(owner, step)

    def interrupted(*args):
        """Take the step, with a signal on one side of it."""
        monkeypatch.undo()
        if is_before:
            one.close()
        try:
            return original(*args)
        finally:
            if not is_before:
                one.close()

    def search():
        monkeypatch.setattr(owner, step, interrupted)
        return one.search("c", "cat")

    assert_is_closed(Calling(search).end())


def test_work_that_a_closed_loop_never_takes_ends_as_well(gateway, monkeypatch):
    one = Client(gateway.address)

    def interrupted(work, _):
        """Do as asyncio does when a signal comes after it has seen that the loop is open."""
        one.close()
        work.close()
        return Future()

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
    assert_is_closed(Calling(lambda: one.search("c", "cat")).end())


def test_a_signal_handler_may_close_the_client_as_a_call_begins_to_wait(gateway, monkeypatch):
    monkeypatch.setattr(loop_thread, "ENDING_S", 0.1)
    one, wait = Client(gateway.address), threading.Condition.wait
    one.get_status()

    def search():
        caller = threading.current_thread()

        def interrupted(condition, timeout=None):
            if threading.current_thread() is caller:
                monkeypatch.undo()
                monkeypatch.setattr(loop_thread, "ENDING_S", 0.1)
                one.close()
            return wait(condition, timeout)

        monkeypatch.setattr(threading.Condition, "wait", interrupted)
        return one.search("c", "cat")

    assert_is_closed(Calling(search).end())


SIGNALLED = """
import itertools, signal, sys, threading
from mmesh import Candidate, Client, Content

class TimeLimit(Exception):
    pass

def ring(*_):
    raise TimeLimit

signal.signal(signal.SIGUSR1, ring)
main = threading.main_thread().ident

def source():
    for number in itertools.count():
        yield Candidate(f"n{number}", Content.of("ship"))
        if number == 8:
            signal.pthread_kill(main, signal.SIGUSR1)

with Client(sys.argv[1]) as one:
    try:
        one.ingest("c", source(), batch_size=1)
    except TimeLimit:
        print("over", flush=True)
        sys.stdin.read()
"""


def test_a_signal_handler_that_raises_ends_the_ingest(gateway):  # 0.4 CPU seconds
    """In a program of its own, as it has one main thread, and what raises there may be anywhere."""
    command = [sys.executable, "-c", SIGNALLED, gateway.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout.readline() == b"over\n"
        assert gateway.is_left.wait(patient(10)), "it goes on behind the caller's back"
        program.stdin.close()
        assert program.wait(patient(10)) == 0


def test_a_callback_that_leaves_the_program_leaves_the_client_alive(gateway):
    with Client(gateway.address) as one:
        callback = lambda _: sys.exit("enough")  # noqa: E731
        outcome = Calling(lambda: one.ingest("c", endless(), on_progress=callback)).end()
        assert isinstance(outcome, SystemExit)
        assert one.get_status().version == "of the test"


def test_a_source_may_use_the_same_client_and_wait_for_other_threads_that_do(gateway):
    def asking(one: Client, pool: ThreadPoolExecutor) -> Iterator[Candidate]:
        yield Candidate(one.get_status().version, Content.of("ship"))
        yield Candidate(pool.submit(one.get_status).result().version + "2", Content.of("ship"))

    with Client(gateway.address) as one, ThreadPoolExecutor(1) as pool:
        assert Calling(lambda: one.ingest("c", asking(one, pool), batch_size=1)).end().stored == 2


def test_a_source_that_waits_keeps_no_other_call_waiting(gateway):
    waits, goes_on = threading.Event(), threading.Event()

    def waiting() -> Iterator[Candidate]:
        yield Candidate("first", Content.of("ship"))
        waits.set()
        goes_on.wait(patient(10))

    with Client(gateway.address) as one:
        calling = Calling(lambda: one.ingest("c", waiting()))
        assert waits.wait(patient(10))
        assert Calling(one.get_status).end().version == "of the test"
        assert not goes_on.is_set()
        goes_on.set()
        assert calling.end().stored == 1


def test_a_call_in_a_callback_of_the_same_client_is_refused(gateway):
    with Client(gateway.address) as one:
        candidates = [Candidate("first", Content.of("ship"))]
        callback = lambda _: one.get_status()  # noqa: E731
        outcome = Calling(lambda: one.ingest("c", candidates, on_progress=callback)).end()
        assert isinstance(outcome, FailedPrecondition)
        assert "use another client" in outcome.message


def test_calls_on_another_event_loop_are_refused_at_once_and_it_can_be_closed_there(gateway):
    client = AsyncClient(gateway.address)
    assert asyncio.run(client.get_status()).version == "of the test"
    with pytest.raises(FailedPrecondition, match="make one in each `asyncio"):
        asyncio.run(client.get_status())
    asyncio.run(asyncio.wait_for(client.close(), patient(5)))
