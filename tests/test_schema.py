"""The schema: what the tables say, what the migrations make, and what was written by every version so far."""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from conftest import Home

from so8t_fsm import schema
from so8t_fsm.statedir import open_state
from so8t_fsm.states import STATES
from so8t_fsm.store import Store

SAVED = Path(__file__).parent / "states"
VERSIONS = [path.name for path in sorted(SAVED.glob("[0-9]*"))]


def migrated(url: str, to: str = "head") -> Store:
    store = Store(url)
    with store.write() as connection:
        schema.migrate(connection, to)
    return store


def test_the_tables_are_the_sum_of_all_migrations(database: str) -> None:
    store = migrated(database)
    with store.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    store.close()


def test_the_constraints_are_those_of_the_migrations(database: str) -> None:
    """autogenerate does not look at CHECK, foreign and primary keys: compare what the database itself says."""
    def constraints(store: Store) -> dict[str, object]:
        with store.read() as connection:
            inspector = sa.inspect(connection)
            return {
                table: (
                    sorted((str(c["name"]), words(c["sqltext"])) for c in inspector.get_check_constraints(table)),
                    sorted((str(f["name"]), f["referred_table"], f["constrained_columns"])
                           for f in inspector.get_foreign_keys(table)),
                    inspector.get_pk_constraint(table)["constrained_columns"],
                ) for table in schema.metadata.tables
            }

    store = migrated(database)
    by_migrations = constraints(store)
    with store.write() as connection:
        schema.metadata.drop_all(connection)
        schema.metadata.create_all(connection)
    assert constraints(store) == by_migrations
    store.close()


def words(sql: str) -> list[str]:
    return re.findall(r"'[^']*'|\w+", sql)


def test_the_database_checks_exactly_the_states_of_the_table(store: Store) -> None:
    with store.read() as connection:
        (check,) = sa.inspect(connection).get_check_constraints("run")
    assert {word for word in re.findall(r"'([^']*)'", check["sqltext"])} == set(STATES)


def test_head_is_the_newest_migration() -> None:
    with sa.create_engine("sqlite://").connect() as connection:
        script = ScriptDirectory.from_config(schema.alembic_config(connection))
    assert script.get_heads() == [schema.HEAD]
    assert [r.revision for r in reversed(list(script.walk_revisions()))] == schema.known_versions()
    assert schema.known_versions()[-1] == schema.HEAD


def test_a_migration_is_one_transaction(database: str) -> None:
    """What a power cut in mid-migration leaves: nothing of it."""
    store = Store(database)
    with pytest.raises(InterruptedError), store.write() as connection:
        schema.migrate(connection)
        assert schema.current_version(connection) == schema.HEAD
        raise InterruptedError
    with store.read() as connection:
        assert sa.inspect(connection).get_table_names() == []
    store.close()


def test_migrating_twice_changes_nothing(store: Store, tmp_path: Path) -> None:
    with store.write() as connection:
        schema.migrate(connection)
    with store.read() as connection:
        assert schema.current_version(connection) == schema.HEAD
    open_state(tmp_path, store.url.render_as_string(hide_password=False)).close()


def test_a_newer_schema_is_refused_in_one_line(store: Store, tmp_path: Path) -> None:
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(schema.StateTooNew) as caught:
        open_state(tmp_path, store.url.render_as_string(hide_password=False))
    assert "9999" in str(caught.value) and schema.HEAD in str(caught.value) and "\n" not in str(caught.value)


# What older versions wrote ------------------------------------------------------------------------------------------


def test_there_is_a_saved_state_of_every_schema() -> None:
    """A new migration comes with a saved state: see tests/states/README.md."""
    assert VERSIONS == schema.known_versions()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_saved_state_resumes_to_completed(version: str, home: Home) -> None:
    state = home.path / "state"
    shutil.copytree(SAVED / version / "runs", state / "runs")
    text = (SAVED / version / "so8t.sql").read_text(encoding="utf-8").replace("@HOME@", home.path.as_posix())
    connection = sqlite3.connect(home.database)
    connection.executescript(text)
    connection.close()
    before = {name: row.identity for name, row in home.live().items()}
    assert set(before) == {"toy_collect", "toy_preprocess"}

    home.configure(toy={"every_checkpoint": True, "pause": 0.1})
    said = home.resume()
    assert "toy_train, attempt 1, was cut off" in said and "attempt 2, from checkpoint 8" in said
    assert home.picture()["state"] == "completed"
    assert before.items() <= home.identities().items()  # the old commits are still the live ones, and verify
    value = hashlib.sha256(b"start").hexdigest()
    for done in range(20):
        value = hashlib.sha256(f"{value} {done}".encode()).hexdigest()
    assert (home.committed("toy_train") / "model.txt").read_text() == value
