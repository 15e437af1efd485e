"""Versions of the log's tables: old ones are brought up, newer ones are refused."""

import sqlite3
import subprocess
import sys
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from mmesh.content import Modality
from mmesh.errors import FailedPrecondition, LogUnavailable
from services.index.log import schema
from services.index.log.engines import open_database
from services.index.log.ledger import Written
from services.index.log.tables import metadata
from services.index.slots import slot_of

FIRST_RELEASE = """
    CREATE TABLE collections (
        name VARCHAR NOT NULL, epoch VARCHAR NOT NULL, seq BIGINT NOT NULL, dim INTEGER NOT NULL,
        model_fingerprint VARCHAR NOT NULL, attribute_types VARCHAR NOT NULL,
        create_time DATETIME NOT NULL, PRIMARY KEY (name)
    );
    CREATE TABLE candidates (
        epoch VARCHAR NOT NULL, id VARCHAR NOT NULL, slot INTEGER NOT NULL,
        modality VARCHAR NOT NULL, attributes VARCHAR NOT NULL, parts VARCHAR NOT NULL,
        vector BLOB NOT NULL, seq BIGINT NOT NULL, deleted BOOLEAN NOT NULL, PRIMARY KEY (epoch, id)
    );
    CREATE INDEX candidates_by_seq ON candidates (epoch, seq);
    CREATE INDEX candidates_by_modality ON candidates (epoch, deleted, modality);
    CREATE TABLE requests (
        epoch VARCHAR NOT NULL, request_id VARCHAR NOT NULL, answer VARCHAR NOT NULL,
        time DATETIME NOT NULL, PRIMARY KEY (epoch, request_id)
    );
    CREATE INDEX requests_by_time ON requests (time);
"""
TIME = "2026-11-20 08:00:00.250000"


@pytest.fixture
def log_url(empty_url):
    return empty_url


@pytest.fixture
def old_file(tmp_path):
    """A log as the first release wrote it: two collections, one with a deletion."""
    path = tmp_path / "log.db"
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA journal_mode = WAL;" + FIRST_RELEASE)
    connection.executemany(
        "INSERT INTO collections VALUES (?, ?, ?, 2, 'model', ?, ?)",
        [("c", "epoch-c", 4, '{"year": "integer"}', TIME), ("empty", "epoch-e", 0, "{}", TIME)],
    )
    connection.executemany(
        "INSERT INTO candidates VALUES ('epoch-c', ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            ("a", slot_of("a"), "text", '{"year": 1}', '[{"text": "a"}]', b"\0" * 8, 1, False),
            ("b", slot_of("b"), "image_text", "", "[]", b"\1" * 8, 3, False),
            ("d", slot_of("d"), "image", "", "[]", b"", 4, True),
        ],
    )
    connection.executemany(
        "INSERT INTO requests VALUES ('epoch-c', ?, ?, ?)",
        [("upsert", "epoch-c:3", TIME), ("delete", "1 epoch-c:4", TIME)],
    )
    connection.commit()
    connection.close()
    return path


def test_a_log_of_the_first_release_is_carried_over(old_file, open_log):
    writer = open_log(f"sqlite:///{old_file}")
    head = writer.log.collection("c")
    assert (head.epoch, head.seq, head.purged) == ("epoch-c", 4, 0)
    assert head.attribute_types == {"year": "integer"}
    assert head.counts == {Modality.TEXT: 1, Modality.IMAGE: 0, Modality.IMAGE_TEXT: 1}
    assert head.create_time == datetime(2026, 11, 20, 8, 0, 0, 250000, UTC)
    assert writer.log.collection("empty").seq == 0
    rows, through = writer.after()
    assert (rows.ids, rows.seqs.tolist(), through) == (("a", "b", "d"), [1, 3, 4], 4)
    assert rows.modalities == [Modality.TEXT, Modality.IMAGE_TEXT, Modality.IMAGE]
    assert (rows.attributes[0], rows.deleted.tolist()) == ('{"year": 1}', [False, False, True])
    assert writer.put("x", request_id="upsert") == Written("epoch-c:3", 0)
    assert writer.delete("x", request_id="delete") == Written("epoch-c:4", 1)
    assert writer.put("d").token == "epoch-c:5"
    assert writer.ids() == ["a", "b", "d"]


def test_several_processes_may_carry_it_over_at_once(old_file):
    code = "import sys; from services.index.log.log import Log; Log(sys.argv[1]).close()"
    command = [sys.executable, "-c", code, f"sqlite:///{old_file}"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()


def test_a_migration_that_fails_leaves_the_file_as_it_was(old_file, open_log):
    connection = sqlite3.connect(old_file)
    connection.execute("UPDATE candidates SET modality = NULL WHERE 0")
    connection.execute("CREATE TABLE aliases (in_the_way)")
    connection.commit()
    with pytest.raises(LogUnavailable, match="aliases"):
        open_log(f"sqlite:///{old_file}")
    connection.execute("DROP TABLE aliases")
    assert connection.execute("SELECT count(*) FROM candidates WHERE epoch = 'epoch-c'").fetchone()
    connection.commit()
    connection.close()
    assert open_log(f"sqlite:///{old_file}").ids() == ["a", "b"]


def test_a_newer_log_is_refused_and_left_alone(writer, log_url, open_log):
    with writer.log._database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(FailedPrecondition, match="version 9999, written by a newer release"):
        open_log(log_url)
    assert writer.ids() == []


def test_migrations_end_where_the_code_begins(log_url, open_log):
    """Tables, columns, keys and indexes are those of `tables.py`, by name and type."""
    open_log(log_url)
    database = open_database(log_url)
    with database.write() as connection:
        found = described(connection, skip="alembic_version")
        for table in reversed(metadata.sorted_tables):
            table.drop(connection)
        metadata.create_all(connection)
        assert found == described(connection, skip="alembic_version")
    database.close()


def described(connection, skip):
    tables = sa.inspect(connection)
    return {
        name: (
            [(c["name"], str(c["type"]), c["nullable"]) for c in tables.get_columns(name)],
            tables.get_pk_constraint(name)["constrained_columns"],
            sorted((i["name"], i["column_names"], i["unique"]) for i in tables.get_indexes(name)),
        )
        for name in tables.get_table_names()
        if name not in (skip, "sqlite_sequence")
    }


def test_the_version_of_the_code_is_that_of_the_last_migration():
    names = [path.stem for path in (schema.MIGRATIONS / "versions").glob("v*.py")]
    assert max(names)[1:5] == schema.VERSION


def test_opening_a_log_of_the_right_version_does_not_load_alembic(writer, log_url):
    code = (
        "import sys; from services.index.log.log import Log; Log(sys.argv[1]).close();"
        "assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, log_url], check=True)


def test_other_databases_are_refused(open_log):
    with pytest.raises(FailedPrecondition, match="sqlite:/// or postgresql"):
        open_log("mysql://somewhere/mmesh")
