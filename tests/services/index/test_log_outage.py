"""Databases that stop, hang, are busy, full or damaged."""

import sqlite3
import threading
import time

import psycopg
import pytest
import sqlalchemy as sa

from mmesh.errors import DataLoss, LogUnavailable, StorageFull
from services.index.log.databases import postgres as log_in_postgres
from services.index.log.databases import sqlite
from services.index.log.databases.engines import open_database
from services.index.log.log import Log
from tests.effort import patient

WAIT_S = 1.0
"""Longest wait for a lock or an answer here; for a service it is 5 s."""
MOST_S = patient(WAIT_S + 2)
"""A call must not take longer when the database is away; connecting alone may take 2 s."""


@pytest.fixture
def postgres_url(postgres, monkeypatch):
    """A database whose clients wait for a fifth of the time that services do."""
    monkeypatch.setattr(log_in_postgres, "WAIT_S", WAIT_S)
    monkeypatch.setattr(log_in_postgres._Connection, "wait_s", 1.1 * WAIT_S)
    waits = f"-c statement_timeout={WAIT_S}s -c lock_timeout={0.8 * WAIT_S}s"
    url = postgres.new_database()
    query = {"options": waits, "connect_timeout": "2"}
    yield sa.make_url(url).update_query_dict(query).render_as_string(hide_password=False)
    if postgres.pid is None:
        postgres.start()
    postgres.drop_database(url)


def every_call(writer, epoch):
    log = writer.log
    return {
        "write": lambda: writer.put("b"),
        "delete": lambda: writer.delete("a"),
        "collection": lambda: log.collection("c"),
        "collections": log.collections,
        "create_collection": writer.create,
        "update_collection": lambda: log.update_collection("c", {"max_limit": 9}),
        "delete_collection": lambda: log.delete_collection("c"),
        "set_alias": lambda: log.set_alias("alias", "c"),
        "delete_alias": lambda: log.delete_alias("alias"),
        "read_after": lambda: log.read_after("c", epoch, 0, range(256), 10, 2),
        "get": lambda: log.get("c", ["a"]),
        "page": lambda: log.page("c", "", 10),
        "purge": lambda: log.purge(0),
    }


def assert_unavailable(call):
    start = time.monotonic()
    with pytest.raises(LogUnavailable) as failure:
        call()
    assert time.monotonic() - start < MOST_S
    assert failure.value.retry_after_s is not None


def test_while_postgresql_is_stopped_every_call_fails_at_once_and_then_works_again(
    postgres, postgres_url, open_log
):
    writer = open_log(postgres_url)
    epoch = writer.create().epoch
    writer.put("a")
    postgres.stop()
    start = time.monotonic()
    for call in every_call(writer, epoch).values():
        assert_unavailable(call)
    assert_unavailable(lambda: Log(postgres_url))
    assert time.monotonic() - start < MOST_S
    postgres.start()
    assert writer.ids() == ["a"]
    writer.put("b")
    assert writer.log.collection("c").seq == 2


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_after_a_restart_of_postgresql_no_call_fails(postgres, postgres_url, open_log, end):
    writer = open_log(postgres_url)
    writer.create()
    in_use = threading.Barrier(4)

    def use():  # so that the pool holds several connections
        with writer.log._database.write():
            in_use.wait()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    getattr(postgres, end)()
    postgres.start()
    for number in range(8):
        writer.put(str(number))
    assert len(writer.ids()) == 8


def test_a_write_that_postgresql_takes_down_with_it_is_not_acknowledged(
    postgres, postgres_url, open_log, row, upsert
):
    writer = open_log(postgres_url)
    writer.create()

    def stop(types):
        postgres.kill()
        return types

    write = upsert([row("a")], request_id="once")
    with pytest.raises(LogUnavailable):
        writer.log.write([type(write)("c", write.candidates, stop, "once")])
    postgres.start()
    assert writer.ids() == []
    assert writer.put("a", request_id="once").count == 1


def test_a_postgresql_that_hangs_is_given_up(postgres, postgres_url, open_log):
    writer = open_log(postgres_url)
    writer.create()
    with postgres.frozen():
        assert_unavailable(lambda: writer.put("a"))
        assert_unavailable(writer.log.collections)
    assert writer.ids() in ([], ["a"])
    writer.put("b")


def test_a_lock_that_somebody_keeps_is_not_waited_for_for_ever(postgres_url, open_log):
    writer = open_log(postgres_url)
    writer.create()
    with writer.log._database.write() as connection:
        connection.exec_driver_sql("SELECT * FROM collections FOR UPDATE")
        assert_unavailable(lambda: writer.put("a"))
        assert writer.ids() == []
    writer.put("a")


def test_a_full_disk_of_postgresql_is_told_from_an_outage():
    database = open_database("postgresql+psycopg://nobody@127.0.0.1/nothing")
    assert isinstance(database.explain(psycopg.errors.DiskFull()), StorageFull)
    assert isinstance(database.explain(psycopg.errors.AdminShutdown()), LogUnavailable)
    assert database.explain(psycopg.errors.UndefinedTable()) is None
    database.close()


def test_messages_do_not_show_the_password(postgres, postgres_url, open_log):
    password = postgres_url.partition("@")[0].rpartition(":")[2]
    wrong = postgres_url.replace("postgresql+psycopg://mmesh", "postgresql+psycopg://nobody")
    with pytest.raises(LogUnavailable) as failure:
        open_log(wrong)
    assert password not in failure.value.message


def test_a_database_that_is_locked_is_busy(tmp_path, open_log, monkeypatch):
    monkeypatch.setattr(sqlite, "WAIT_S", 0.2)
    writer = open_log(f"sqlite:///{tmp_path / 'log.db'}")
    writer.create()
    other = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert_unavailable(lambda: writer.put("a"))
    assert writer.ids() == []
    other.execute("ROLLBACK")
    other.close()
    writer.put("a")


def test_a_full_disk_is_told_and_nothing_is_written(tmp_path, open_log, row, upsert):
    writer = open_log(f"sqlite:///{tmp_path / 'log.db'}")
    writer.create()
    writer.put("a")
    with writer.log._database.statement() as connection:  # each connection has its own limit
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    with pytest.raises(StorageFull, match="nothing of the request was stored"):
        writer.log.write([upsert([row(f"id{n}") for n in range(2000)])])
    assert writer.ids() == ["a"]
    with writer.log._database.statement() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    writer.put("b")
    assert writer.log.collection("c").seq == 2


def test_a_damaged_file_is_told(tmp_path, open_log):
    (tmp_path / "log.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(DataLoss, match="damaged"):
        open_log(f"sqlite:///{tmp_path / 'log.db'}")


def test_a_folder_that_cannot_be_written_is_told(tmp_path, open_log):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogUnavailable, match="file"):
        open_log(f"sqlite:///{tmp_path / 'file' / 'log.db'}")
