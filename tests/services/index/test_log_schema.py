"""Versions of the log's tables: old ones are brought up, newer ones are refused."""

import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from mmesh.content import Modality
from mmesh.errors import FailedPrecondition, LogUnavailable
from mmesh.values.tokens import Token
from services.index.commands import migrate
from services.index.log.databases import schema
from services.index.log.databases.engines import open_database
from services.index.log.ledger import Upsert, Written
from services.index.log.tables import metadata
from services.index.point import Point
from services.index.slots import slot_of
from tests.effort import EFFORT

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
    assert writer.log.attributes(head.key) == {("year", "integer"): 1}
    assert head.counts == {Modality.TEXT: 1, Modality.IMAGE: 0, Modality.IMAGE_TEXT: 1}
    assert head.create_time == datetime(2026, 11, 20, 8, 0, 0, 250000, UTC)
    assert writer.log.collection("empty").seq == 0
    rows, through = writer.after()
    assert (rows.ids, rows.seqs.tolist(), through) == (("a", "b", "d"), [1, 3, 4], 4)
    assert rows.modalities == [Modality.TEXT, Modality.IMAGE_TEXT, Modality.IMAGE]
    assert (rows.attributes[0], rows.deleted.tolist()) == ('{"year": 1}', [False, False, True])
    assert writer.put("x", request_id="upsert") == Written("epoch-c:3", 0)
    assert writer.delete("x", request_id="delete") == Written("epoch-c:4", 1)
    token = Token.parse(writer.put("d").token)
    assert (token.epoch, token.seq) == ("epoch-c", 5)
    assert writer.ids() == ["a", "b", "d"]


def test_a_log_without_stamps_gets_one_for_the_state_that_it_is_in(empty_url, open_log):
    with database_at(empty_url, "0003") as connection:
        for number, (name, seq) in enumerate({"c": 5, "empty": 0}.items(), start=1):
            values = (
                f"{number}, '{name}', 'epoch-{name}', {seq}, 0, 2, 'm', '{{}}', '{{}}', 0, 0, 0"
            )
            connection.exec_driver_sql(f"INSERT INTO collections VALUES ({values}, '{TIME}')")
    writer = open_log(empty_url)
    row, empty = writer.log.collection("c"), writer.log.collection("empty")
    assert (len(row.stamp), empty.stamp) == (12, "")
    assert writer.log.holds(row, row.head) is True
    assert writer.log.holds(row, Point(4, "")) is None  # what an earlier release has stored
    assert writer.log.holds(row, Point(6, "")) is False
    writer.put("a")
    assert writer.log.holds(row, row.head) is True


def test_several_processes_may_carry_it_over_at_once(old_file):
    code = "import sys; from services.index.log.log import Log; Log(sys.argv[1]).close()"
    command = [sys.executable, "-c", code, f"sqlite:///{old_file}"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(EFFORT.processes)]
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
        connection.exec_driver_sql("UPDATE compatibility SET oldest = '9998'")
    with pytest.raises(FailedPrecondition, match="version 9999, written by a newer release"):
        open_log(log_url)
    assert writer.ids() == []


def test_a_newer_log_that_this_release_may_share_is_used_as_it_is(writer, log_url, open_log):
    with writer.log._database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.exec_driver_sql(f"UPDATE compatibility SET oldest = '{schema.VERSION}'")
        connection.exec_driver_sql("CREATE TABLE news (id INTEGER PRIMARY KEY)")
    other = open_log(log_url)
    other.put("a")
    assert writer.ids() == ["a"]
    with writer.log._database.write() as connection:
        assert connection.exec_driver_sql("SELECT * FROM alembic_version").scalar() == "9999"


def test_the_command_says_what_it_does_and_may_run_again(empty_url, capsys):
    def run(*flags):
        assert migrate.main(["--log-url", empty_url, *flags]) == 0
        return capsys.readouterr().out

    with database_at(empty_url, "0003"):
        pass
    said = run("--dry-run")
    assert said.startswith("the log is of version 0003; this release brings it to 0007:\n  0004  ")
    assert said.endswith("use it now may go on meanwhile, and after\nnothing was changed\n")
    assert run("--dry-run") == said
    assert run().endswith("s: the log is of version 0007\n")
    assert run() == "the log is of version 0007; this release knows 0007\nnothing was changed\n"


def test_the_command_says_which_processes_must_be_stopped(empty_url, capsys):
    with database_at(empty_url, "0001"):
        pass
    assert migrate.main(["--log-url", empty_url, "--dry-run"]) == 0
    assert "processes that use it now must be stopped first\n" in capsys.readouterr().out


def test_the_command_refuses_what_it_does_not_know(writer, log_url, capsys):
    with writer.log._database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.exec_driver_sql("UPDATE compatibility SET oldest = '9998'")
    assert migrate.main(["--log-url", log_url]) == 1
    assert "shares it with versions from 9998 on" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--dry-run"]], ids=str)
def test_the_command_makes_no_log_where_there_is_none(tmp_path, capsys, flags):
    assert migrate.main(["--data-dir", str(tmp_path), *flags]) == 1
    assert f"there is no log at {tmp_path}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@contextmanager
def database_at(url, version):
    """Make the tables of a version in an empty database, and open a transaction on them."""
    database = open_database(url)
    with database.migration() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(schema.MIGRATIONS))
        command.upgrade(config, version)
        yield connection
    database.close()


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


def test_attributes_of_a_log_of_before_are_counted_and_unused_types_forgotten(
    writer, log_url, open_log, row
):
    rows = [row("a", attributes='{"n": 1, "tags": ["x"]}'), row("b", attributes='{"n": 0.5}')]
    writer.write(Upsert("c", [*rows, row("gone", attributes='{"old": true}')], lambda types: types))
    writer.write(Upsert("c", [row("damaged", attributes='{"n": ')], lambda types: types))
    writer.delete("gone")
    with writer.log._database.write() as connection:
        for undo in (
            "DROP TABLE attributes",
            "DROP TABLE commits",
            "DROP TABLE identity",
            "DROP TABLE compatibility",
            "ALTER TABLE collections DROP COLUMN stamp",
            "UPDATE alembic_version SET version_num = '0003'",
        ):
            connection.exec_driver_sql(undo)
        types = '{"n": "float", "tags": "string_list", "old": "boolean"}'
        connection.exec_driver_sql(f"UPDATE collections SET attribute_types = '{types}'")
    log = open_log(log_url).log
    head = log.collection("c")
    assert head.attribute_types == {"n": "float", "tags": "string_list"}
    counts = {("n", "float"): 1, ("n", "integer"): 1, ("tags", "string_list"): 1}
    assert log.attributes(head.key) == counts
