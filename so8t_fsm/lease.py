"""One runner at a time, fenced by an epoch.

The lease is one row.  Taking it raises its epoch, and every write of a runner proves its epoch first
(:meth:`so8t_fsm.store.Store.fenced`).  So a runner that slept past its lease can wake up and try, but not write.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from so8t_fsm import host
from so8t_fsm.holder import Holder, own_identity
from so8t_fsm.schema import lease as table
from so8t_fsm.store import LEASE, Store, now


class AlreadyRunning(Exception):
    """Another runner is alive and holds the lease."""


@dataclass(frozen=True)
class Lease:
    epoch: int
    seconds: float


def holder(connection: sa.Connection) -> Holder | None:
    row = connection.execute(sa.select(table).where(table.c.name == LEASE)).mappings().first()
    return Holder(**{k: v for k, v in row.items() if k != "name"}) if row else None


def acquire(store: Store, seconds: float) -> Lease:
    """Take the lease, raising its epoch.

    Raises:
        AlreadyRunning: its holder is alive.
    """
    pid, started = own_identity()
    at = now()
    values = {
        "host": host.host_name(), "boot": host.boot_id(), "pid": pid, "pid_started": started,
        "heartbeat_at": at, "expires_at": at + seconds,
    }
    with store.write() as connection:
        if not store.sqlite:
            connection.execute(sa.text("LOCK TABLE lease IN EXCLUSIVE MODE"))
        current = holder(connection)
        if current is None:
            connection.execute(sa.insert(table).values(name=LEASE, epoch=1, **values))
            return Lease(1, seconds)
        if current.alive(at):
            raise AlreadyRunning(f"a runner is already at work (process {current.pid} on {current.host})")
        connection.execute(sa.update(table).where(table.c.name == LEASE).values(epoch=current.epoch + 1, **values))
        return Lease(current.epoch + 1, seconds)


def release(store: Store, lease: Lease) -> None:
    """Give the lease back; harmless when another runner has it by now."""
    with store.write() as connection:
        connection.execute(
            sa.update(table).where(table.c.name == LEASE, table.c.epoch == lease.epoch)
            .values(pid=None, pid_started=None, expires_at=None)
        )
