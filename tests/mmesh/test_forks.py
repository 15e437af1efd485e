"""A client after a fork works, or says at once that it cannot; the parent's goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from tests.effort import patient

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

PROGRAM = """
import asyncio, gc, os, sys, threading, time
from mmesh import AsyncClient, Client
from mmesh.errors import FailedPrecondition

kind, history, address = sys.argv[1:]

def ask(client):
    if kind == "sync":
        return client.get_status(timeout=20).version
    async def once():
        try:
            return (await client.get_status(timeout=20)).version
        finally:
            await client.close()
    return asyncio.run(once())

def in_child(client):
    try:
        print("child", ask(client), flush=True)
    except FailedPrecondition as error:
        print("child", error.message[:30], flush=True)
        try:
            ask(type(client)(address))
        except FailedPrecondition:
            print("child: so has another client", flush=True)
    if kind == "sync":
        client.close()
    del client
    gc.collect()

client = Client(address) if kind == "sync" else AsyncClient(address)
if history != "unused":
    print("parent", ask(client), flush=True)
if history == "busy":
    threading.Thread(target=client.search, args=("slow", "words"), daemon=True).start()
    time.sleep(0.2)
if not os.fork():
    in_child(client)
    sys.exit(7)
print("status", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
if kind == "sync":
    print("parent", ask(client), flush=True)
os._exit(0)
"""
WORKS = ["child of the test"]
FORKED = ["child this process was forked from", "child: so has another client"]


class Gateway(rpc.RetrievalServiceServicer):
    """Says who it is, and takes its time over searches."""

    def GetStatus(self, request, context):
        return pb.GetStatusResponse(version="of the test")

    def Search(self, request, context):
        gone = threading.Event()
        if not context.add_callback(gone.set):
            gone.set()  # it is over already
        gone.wait()
        return pb.SearchResponse()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    rpc.add_RetrievalServiceServicer_to_server(Gateway(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("kind", "history", "told"),
    [
        ("sync", "unused", WORKS),
        ("sync", "used", FORKED),
        ("sync", "busy", FORKED),
        ("async", "unused", WORKS),
        ("async", "used", FORKED),
    ],
)
def test_a_client_after_a_fork(address, kind, history, told):  # 0.4 CPU seconds each
    command = [sys.executable, "-c", PROGRAM, kind, history, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(30), check=False)
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    of_child = [line for line in lines if line.startswith("child")]
    assert [line[: len(words)] for line, words in zip(of_child, told, strict=True)] == told
    assert "status 7" in lines
    if kind == "sync":
        assert lines[-1] == "parent of the test"
