"""The database: one engine, two kinds of transaction, and the writes a runner makes.

``read()`` sees a consistent snapshot; ``fenced(epoch)`` first proves, inside its own transaction, that the lease still
belongs to the caller's epoch, so that a runner that was frozen and replaced cannot write anything at all.  State
changes additionally compare-and-set ``run.rev``.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, OperationalError

from so8t_fsm.reader import Reader
from so8t_fsm.schema import artifact, attempt, checkpoint, history, lease, ledger, run
from so8t_fsm.states import Plan

LEASE = "runner"
_DISK_TROUBLE = (errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV)
KEEP = "\0keep"
"""The ``step`` of a transition that stays at its step."""


# Built once: to build a statement and its cache key anew takes longer than to run it.
_RENEW = sa.update(lease).where(lease.c.name == LEASE, lease.c.epoch == sa.bindparam("held"))
_MOVE = sa.update(run).where(
    run.c.id == sa.bindparam("of_run"), run.c.rev == sa.bindparam("at_rev"), run.c.epoch == sa.bindparam("at_epoch"))
_TELL = sa.insert(history)


class Fenced(Exception):
    """Another runner holds the lease now; nothing of this one is written any more."""


class Conflict(Exception):
    """The run changed between reading and writing; read it again."""


class StateUnusable(Exception):
    """The state directory can't be used; the message is one line with what to do."""


class StateFull(StateUnusable):
    """The disk that holds the state has no room left; everything goes on once there is some."""


@dataclass(frozen=True)
class Run:
    """One row of ``run``."""

    id: str
    state: str
    step: str | None
    attempt: int
    rev: int
    epoch: int
    steps: list[str]
    config: dict[str, Any]
    config_path: str | None
    parent: str | None
    reuse: dict[str, Any] | None
    incident: dict[str, Any] | None
    next_retry_at: float | None
    created_at: float
    finished_at: float | None
    ledgers: dict[str, Any] | None = None


def now() -> float:
    """Wall-clock seconds since the epoch.  Only shown, or compared with a margin: order comes from ``rev``."""
    return time.time()


class Store:
    """An open state database.

    ``url`` is an SQLAlchemy URL; SQLite gets WAL with ``synchronous=FULL`` and ``BEGIN IMMEDIATE`` for writers,
    PostgreSQL its defaults.  The rest of the code is the same.
    """

    def __init__(self, url: str | sa.URL) -> None:
        self.url = sa.make_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = sa.create_engine(self.url, pool_pre_ping=not self.sqlite)
        if self.sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A read-only transaction; never waits for a writer on SQLite."""
        with self.engine.connect().execution_options(so8t_read_only=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A writing transaction that is not fenced: for creating things and for operators."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def fenced(self, epoch: int, extend: float = 30.0) -> Iterator[Tx]:
        """A runner's writing transaction; it also renews the lease by ``extend`` seconds.

        Raises:
            Fenced: the lease has another epoch by now.
        """
        with self.engine.begin() as connection:
            at = now()
            held = connection.execute(_RENEW, {"held": epoch, "heartbeat_at": at, "expires_at": at + extend})
            if held.rowcount != 1:
                raise Fenced(f"another runner took over (this one had epoch {epoch})")
            yield Tx(connection, epoch)

    def reader(self) -> Reader:
        """A connection for looking, apart from the engine's."""
        return Reader(self.url.render_as_string(hide_password=False))

    def run(self, run_id: str) -> Run | None:
        with self.read() as connection:
            return get_run(connection, run_id)

    def latest_run(self, unfinished: bool = False) -> Run | None:
        """The run that was created last, or the last one that is neither completed nor replaced by a rerun."""
        query = sa.select(run).order_by(run.c.created_at.desc(), run.c.id.desc()).limit(1)
        if unfinished:
            replaced = sa.select(run.c.parent).where(run.c.parent.is_not(None))
            query = query.where(run.c.state != "completed", run.c.id.not_in(replaced))
        with self.read() as connection:
            row = connection.execute(query).mappings().first()
        return Run(**row) if row else None


def get_run(connection: sa.Connection, run_id: str) -> Run | None:
    row = connection.execute(sa.select(run).where(run.c.id == run_id)).mappings().first()
    return Run(**row) if row else None


@dataclass
class Tx:
    """The writes of a runner, inside one fenced transaction."""

    connection: sa.Connection
    epoch: int

    def adopt(self, current: Run) -> Run:
        """Take a run over: from now on its row carries this runner's epoch."""
        self.connection.execute(sa.update(run).where(run.c.id == current.id).values(epoch=self.epoch))
        found = get_run(self.connection, current.id)
        if found is None:
            raise Conflict(f"run {current.id} is gone")
        return found

    def transition(
        self, current: Run, plan: Plan, *, who: str, reason: str, step: str | None = KEEP,
        detail: Mapping[str, Any] | None = None, **columns: Any,
    ) -> Run:
        """Commit a planned transition: compare-and-set the run row, append one history row.

        Raises:
            Conflict: the row is not at ``current.rev`` any more, or not this runner's.
        """
        values = {"state": plan.dest, "rev": current.rev + 1, **columns}
        if step is not KEEP:
            values["step"] = step
        changed = self.connection.execute(
            _MOVE, {"of_run": current.id, "at_rev": current.rev, "at_epoch": self.epoch, **values})
        if changed.rowcount != 1:
            raise Conflict(f"run {current.id} is not at revision {current.rev} any more")
        self.connection.execute(_TELL, {
            "run_id": current.id, "rev": current.rev + 1, "at": now(), "from_state": plan.source, "to_state": plan.dest,
            "trigger": plan.trigger, "step": current.step, "attempt": columns.get("attempt", current.attempt),
            "who": who, "reason": reason, "detail": dict(detail) if detail else None,
        })
        return Run(**{**current.__dict__, **values})

    def open_attempt(self, current: Run, step: str, n: int) -> None:
        self.connection.execute(sa.insert(attempt).values(
            run_id=current.id, step=step, n=n, status="running", started_at=now(),
        ))

    def update_attempt(self, run_id: str, step: str, n: int, **columns: Any) -> None:
        self.connection.execute(
            sa.update(attempt).where(attempt.c.run_id == run_id, attempt.c.step == step, attempt.c.n == n)
            .values(**columns)
        )

    def close_attempt(self, run_id: str, step: str, n: int, status: str, reason: str = "", **columns: Any) -> None:
        self.update_attempt(run_id, step, n, status=status, reason=reason, ended_at=now(), **columns)

    def add_artifact(
        self, run_id: str, step: str, n: int, path: str, identity: str, inputs: Mapping[str, str],
        settings: Mapping[str, Any], reused_from: str | None = None,
    ) -> None:
        """Record a published directory as the step's only live commit; its checkpoints are pruned.

        Where it replaces a commit with other contents, checkpoints of later steps were made from those: they go too.
        """
        mine = sa.and_(artifact.c.run_id == run_id, artifact.c.step == step)
        before = self.connection.execute(
            sa.select(artifact.c.identity).where(mine).order_by(artifact.c.committed_at.desc()).limit(1)).scalar()
        self.connection.execute(sa.update(artifact).where(mine, artifact.c.status == "live").values(status="superseded"))
        self.connection.execute(sa.insert(artifact).values(
            run_id=run_id, step=step, n=n, path=path, identity=identity, inputs=dict(inputs), settings=dict(settings),
            status="live", reused_from=reused_from, committed_at=now(),
        ))
        outdated = sa.and_(checkpoint.c.run_id == run_id, checkpoint.c.status == "live")
        if before in (None, identity):
            outdated = sa.and_(outdated, checkpoint.c.step == step)
        self.connection.execute(sa.update(checkpoint).where(outdated).values(status="pruned"))

    def add_checkpoint(
        self, run_id: str, step: str, n: int, attempt_n: int, path: str, identity: str, position: float,
    ) -> None:
        at = now()
        self.connection.execute(sa.insert(checkpoint).values(
            run_id=run_id, step=step, n=n, attempt=attempt_n, path=path, identity=identity, position=position,
            status="live", verified_at=at, committed_at=at,
        ))

    def mark(self, table: sa.Table, run_id: str, step: str, n: int, **columns: Any) -> None:
        """Change columns of one artefact or checkpoint row."""
        self.connection.execute(
            sa.update(table).where(table.c.run_id == run_id, table.c.step == step, table.c.n == n).values(**columns)
        )

    def count_failure(self, run_id: str, key: str, reached: float | None = None) -> int:
        """Add one failure without progress to a ledger (``<step>/<what is counted>``).  Returns the count.

        ``reached`` is how far the work had come: only what goes further will count as progress.
        """
        row = self.connection.execute(
            sa.select(ledger.c.failures, ledger.c.position).where(ledger.c.run_id == run_id, ledger.c.key == key)
        ).first()
        if row is None:
            self.connection.execute(sa.insert(ledger).values(
                run_id=run_id, key=key, failures=1, position=reached, updated_at=now(),
            ))
            return 1
        furthest = max((p for p in (row.position, reached) if p is not None), default=None)
        self.connection.execute(
            sa.update(ledger).where(ledger.c.run_id == run_id, ledger.c.key == key)
            .values(failures=row.failures + 1, position=furthest, updated_at=now())
        )
        return int(row.failures) + 1

    def observe_progress(self, run_id: str, step: str, position: float | None) -> None:
        """Clear a step's ledgers when its work has gone further than ever before; ``None`` clears them in any case."""
        query = sa.update(ledger).where(ledger.c.run_id == run_id, ledger.c.key.startswith(f"{step}/", autoescape=True))
        if position is not None:
            query = query.where(sa.or_(ledger.c.position.is_(None), ledger.c.position < position))
        values = {"failures": 0, "updated_at": now()} | ({} if position is None else {"position": position})
        self.connection.execute(query.values(**values))


def _prepare_sqlite(dbapi: Any, _record: Any) -> None:
    dbapi.isolation_level = None  # the driver never begins for us
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000", "mmap_size=0",
                   "fullfsync=ON", "checkpoint_fullfsync=ON"):
        dbapi.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    read_only = connection.get_execution_options().get("so8t_read_only")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def one_line(error: BaseException) -> str:
    """The database's own words, without SQLAlchemy's statement and link."""
    origin = getattr(error, "orig", None) or error
    return " ".join(str(origin).split()) or type(error).__name__


def is_damage(error: BaseException) -> bool:
    """Does the database say that the file itself is broken (rather than busy, full or forbidden)?"""
    text = one_line(error).lower()
    return isinstance(error, DBAPIError) and any(
        sign in text for sign in ("malformed", "not a database", "disk image", "corrupt")
    )


def is_disk_trouble(error: BaseException) -> bool:
    """Is this the file system refusing (full, failing, read-only, forbidden, gone), rather than a fault of ours?"""
    return is_full(error) or (isinstance(error, OSError) and error.errno in _DISK_TROUBLE)


def is_full(error: BaseException) -> bool:
    """Is this the file system saying that there is no room?"""
    if isinstance(error, OSError):
        return error.errno in (28, 122) or getattr(error, "winerror", None) == 112
    return isinstance(error, OperationalError) and "full" in one_line(error).lower()
