"""Reading the memory with the bare driver: what looking needs, without SQLAlchemy's half of a second's third.

Everything that only shows a run goes through here, on SQLite and PostgreSQL alike; everything that writes goes
through :mod:`so8t_fsm.store`.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

JSON_COLUMNS = frozenset({
    "steps", "config", "reuse", "incident", "detail", "progress", "failure", "inputs", "settings", "args", "value", "was",
    "data", "outcome", "ledgers",
})


class Unreadable(Exception):
    """The database can't be read; the message is the driver's, in one line."""

    @property
    def damaged(self) -> bool:
        """Does the driver say that the file itself is broken?"""
        return any(sign in str(self) for sign in ("malformed", "not a database", "disk image", "corrupt"))

    @property
    def empty(self) -> bool:
        """Are its tables not there yet?"""
        return "no such table" in str(self) or 'relation "run" does not exist' in str(self)


def database_url(home: Path, url: str | None = None) -> str:
    """The database of a home: ``url``, else ``SO8T_DATABASE``, else ``state/so8t.db`` below it."""
    chosen = url or os.environ.get("SO8T_DATABASE")
    # Quoted as SQLAlchemy unquotes it: a home may be called "100% of #1?".
    return chosen or "sqlite:///" + quote(str(home / "state" / "so8t.db"), safe="/\\: ")


def sqlite_path(url: str) -> Path | None:
    """The file behind an SQLite URL; None for another database."""
    scheme, _, rest = url.partition("://")
    return Path(unquote(rest[1:].split("?")[0])) if scheme.split("+")[0] == "sqlite" else None


class Reader:
    """A read-only connection.  Use it as a context manager."""

    def __init__(self, url: str) -> None:
        self._path = sqlite_path(url)
        self._connection: Any
        if self._path is not None:
            try:
                self._connection = _sqlite(self._path)
            except sqlite3.Error as error:
                raise Unreadable(f"{self._path}: {error}") from error
        else:
            self._connection = _postgresql(url)

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Run a query written with ``?`` placeholders; JSON columns come back as values.

        Raises:
            Unreadable: the driver refused.
        """
        if self._path is None:
            query = query.replace("?", "%s")
        try:
            cursor = self._connection.execute(query, tuple(parameters))
            names = [column[0] for column in cursor.description]
            return [
                {name: _plain(value) if self._path and name in JSON_COLUMNS else value
                 for name, value in zip(names, row, strict=True)} for row in cursor.fetchall()
            ]
        except Exception as error:
            raise Unreadable(f"{self._path or 'the database'}: {' '.join(str(error).split())}") from error

    def one(self, query: str, parameters: Sequence[Any] = ()) -> dict[str, Any] | None:
        """The first row, or None."""
        return next(iter(self.rows(query, parameters)), None)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(Exception):
            self._connection.close()


def _sqlite(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=5.0)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if path.with_name(f"{path.name}-wal").exists() or os.access(path.parent, os.W_OK):
            raise
        # Even reading wants to write a file beside it; where nobody can write, nobody changes it either.
        connection = sqlite3.connect(f"{uri}&immutable=1", uri=True)
    return connection


def _plain(value: Any) -> Any:
    """A JSON column as SQLite stores it; a text column that only shares the name stays text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _postgresql(url: str) -> Any:
    import psycopg

    parts = urlsplit(url)
    try:
        return psycopg.connect(
            parts._replace(scheme="postgresql").geturl(), autocommit=True, connect_timeout=5,
            password=unquote(parts.password) if parts.password else None,
        )
    except psycopg.Error as error:
        raise Unreadable(f"the database: {' '.join(str(error).split())}") from error


def latest_run(reader: Reader, run_id: str | None = None) -> dict[str, Any] | None:
    """The run named, else the unfinished one that was created last and no rerun has replaced, else the last one."""
    if run_id is not None:
        return reader.one("SELECT * FROM run WHERE id = ?", [run_id])
    order = "ORDER BY created_at DESC, id DESC LIMIT 1"
    replaced = "SELECT parent FROM run WHERE parent IS NOT NULL"
    try:
        return (reader.one(f"SELECT * FROM run WHERE state <> 'completed' AND id NOT IN ({replaced}) {order}")
                or reader.one(f"SELECT * FROM run {order}"))
    except Unreadable as error:
        if error.empty:
            return None
        raise
