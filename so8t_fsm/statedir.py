"""Opening the memory: the state directory is checked, migrated and, when damaged, restored from its own backup."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from so8t_fsm import artifacts, host, schema
from so8t_fsm.reader import database_url
from so8t_fsm.resources import existing_parent
from so8t_fsm.schema import lease as lease_table
from so8t_fsm.store import StateFull, StateUnusable, Store, is_damage, is_full, one_line

KEEP_BACKUPS = 3
# After a restore the epoch jumps, so that no runner from before the damage can still hold a valid one.
EPOCH_JUMP = 1000
SHARED_MEMORY = 64 * 1024
"""Bytes below which SQLite may find no room for the file by which its processes share memory."""

Say = Callable[[str], None]


def open_state(home: Path, url: str | None = None, *, check: bool = False, say: Say = lambda _: None) -> Store:
    """Open (and create or migrate) the database of a home.

    With ``check`` its integrity is verified first; a damaged SQLite file is put aside and its newest sound backup
    takes its place.

    Raises:
        StateUnusable: one line saying why it can't be used and what to do.
        schema.StateTooNew: a newer version wrote it.
    """
    target = sa.make_url(database_url(home, url))
    path = Path(target.database) if target.get_backend_name() == "sqlite" and target.database else None
    if path is not None:
        _prepare_directory(path)
        if check and path.exists() and not _sound(path):
            _restore(path, say)
    store = Store(target)
    try:
        with store.read() as connection:
            version = schema.current_version(connection)
        if version != schema.HEAD:
            if version is not None and store.sqlite and version in schema.known_versions():
                backup(store)
            with store.write() as connection:
                if not store.sqlite:
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(5459540)"))
                schema.migrate(connection)
        return store
    except SQLAlchemyError as error:
        store.close()
        raise unusable(error, path) from error
    except BaseException:
        store.close()
        raise


def unusable(error: BaseException, path: Path | None) -> StateUnusable:
    """The exception that says :func:`explain`'s line."""
    return (StateFull if _no_room(error, path) else StateUnusable)(explain(error, path))


def _no_room(error: BaseException, path: Path | None) -> bool:
    # Where SQLite finds no room for the file it shares memory by, it speaks of an I/O error.
    unclear = isinstance(error, DBAPIError | sqlite3.DatabaseError) and "disk i/o error" in one_line(error).lower()
    return is_full(error) or (unclear and path is not None and shutil.disk_usage(path.parent).free < SHARED_MEMORY)


def explain(error: BaseException, path: Path | None) -> str:
    """One line for a person: what is wrong with the state directory and what to do."""
    where = str(path) if path else "the database"
    if is_damage(error):
        return f"{where} is damaged ({one_line(error)}); `so8t resume` puts it aside and restores the last backup"
    if _no_room(error, path):
        free = shutil.disk_usage(path.parent).free if path else 0
        return f"{where}: the disk is full ({free:,} bytes free); make room and run `so8t resume`, nothing was lost"
    text = one_line(error)
    if isinstance(error, OSError):
        return f"the disk refuses ({text}); see to it and run `so8t resume`, nothing was lost"
    if "readonly" in text or "unable to open" in text or "read-only" in text.lower():
        return f"{where} can't be written ({text}); check the permissions of its directory, or use --home elsewhere"
    if "locked" in text:
        return f"{where} is locked by another program; close it and try again"
    return f"{where}: {text}"


def _prepare_directory(path: Path) -> None:
    network = host.is_network_path(path.parent)
    if network:
        raise StateUnusable(
            f"{path.parent} is on a network drive ({network}), where SQLite can lose data; "
            "use --home on a local disk, or SO8T_DATABASE with PostgreSQL"
        )
    try:
        artifacts.make_durable(path.parent, existing_parent(path.parent.parent) or path.parent)
    except OSError as error:
        raise StateUnusable(f"{path.parent}: {error.strerror}; use --home where you may write") from error


def _sound(path: Path) -> bool:
    """`PRAGMA quick_check`, which reads every page once."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return bool(connection.execute("PRAGMA quick_check").fetchone() == ("ok",))
    except sqlite3.DatabaseError as error:
        if any(sign in str(error) for sign in ("malformed", "not a database", "disk image", "corrupt")):
            return False
        raise unusable(error, path) from error


def _restore(path: Path, say: Say) -> None:
    stamp = int(time.time())
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    for candidate in sorted((path.parent / "backups").glob("so8t-*.db"), reverse=True):
        if _sound(candidate):
            temporary = path.with_name(f".{path.name}.restoring")
            temporary.write_bytes(candidate.read_bytes())
            artifacts.fsync_file(temporary)
            os.replace(temporary, path)
            artifacts.fsync_dir(path.parent)
            _raise_epoch(path)
            say(f"the database was damaged: kept as {aside.name}, restored from backups/{candidate.name}")
            return
    artifacts.fsync_dir(path.parent)
    say(f"the database was damaged and has no backup yet: kept as {aside.name}, starting with an empty one")


def _raise_epoch(path: Path) -> None:
    store = Store(sa.URL.create("sqlite", database=str(path)))
    try:
        with store.write() as connection:
            connection.execute(sa.update(lease_table).values(
                epoch=lease_table.c.epoch + EPOCH_JUMP, pid=None, pid_started=None, expires_at=None,
            ))
    finally:
        store.close()


def backup(store: Store) -> Path | None:
    """Write a consistent one-file copy of the SQLite database below ``state/backups`` and keep the newest three.

    PostgreSQL has its own tools: nothing is done.

    Raises:
        StateUnusable, OSError: the copy could not be made.
    """
    if not store.sqlite or not store.url.database:
        return None
    folder = Path(store.url.database).parent / "backups"
    artifacts.make_durable(folder, folder.parent)
    numbers = [int(p.stem.split("-")[1]) for p in folder.glob("so8t-*.db") if p.stem.split("-")[1].isdigit()]
    final = folder / f"so8t-{max(numbers, default=0) + 1:08d}.db"
    temporary = folder / f".{final.name}.tmp"
    temporary.unlink(missing_ok=True)
    raw = store.engine.raw_connection()
    try:
        raw.cursor().execute("VACUUM INTO ?", (str(temporary),))
    except sqlite3.Error as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StateUnusable(f"{final}: {one_line(error)}") from error
    finally:
        raw.close()
    artifacts.fsync_file(temporary)
    os.replace(temporary, final)
    artifacts.fsync_dir(folder)
    for old in sorted(folder.glob("so8t-*.db"))[:-KEEP_BACKUPS]:
        old.unlink()
    return final
