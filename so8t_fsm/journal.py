"""What was seen, for good: events, the incidents they add up to, and how far each log was read.

Everything here works inside the caller's transaction, so that a log's mark, what its lines meant and the incident that
follows are stored together or not at all.  A runner's transaction is fenced (``tx.connection``), the monitor's is not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from so8t_fsm import host
from so8t_fsm.events import Event
from so8t_fsm.holder import own_identity
from so8t_fsm.reader import Reader
from so8t_fsm.schema import event as event_table
from so8t_fsm.schema import incident as incident_table
from so8t_fsm.schema import log_mark, watcher
from so8t_fsm.tail import EDGE, Mark
from so8t_fsm.tokens import conceal_all
from so8t_fsm.tokens import storable as storable

LONGEST_TEXT = 4000
LONGEST_RECORD = 8000
LIVE = ("open", "recovering")
"""An incident that somebody may still do something about."""
_LOCK = 5459541


class Overtaken(Exception):
    """Somebody else read on in the same log; what was read here since is theirs.  Load the marks again."""


# Events -------------------------------------------------------------------------------------------------------------


def add_event(connection: sa.Connection, run_id: str | None, event: Event) -> int:
    """Keep one event, without secrets and cut to a bearable length.  Returns its number."""
    told = event.to_json()
    data = {key: told[key] for key in ("exception", "exit_code", "signal", "quiet", "file", "line") if key in told}
    made = connection.execute(sa.insert(event_table).values(
        run_id=run_id, step=event.step, attempt=event.attempt, source=event.source,
        at=event.at if event.at is not None else time.time(), text=storable(event.text)[:LONGEST_TEXT],
        data=conceal_all(data, LONGEST_RECORD) or None,
    ))
    return int((made.inserted_primary_key or (0,))[0])


def events_of(
    connection: sa.Connection, run_id: str | None, step: str | None, attempt: int | None, since: float = 0.0,
) -> list[Event]:
    """The events of one attempt since a time, in the order in which they were kept."""
    query = (sa.select(event_table).where(*_is(event_table, run_id, step, attempt), event_table.c.at >= since)
             .order_by(event_table.c.id))
    found = []
    for row in connection.execute(query).mappings():
        told = {key: row[key] for key in ("source", "step", "attempt", "text", "at")}
        found.append(Event.from_json({**told, **(row["data"] or {})}))
    return found


def _is(table: sa.Table, run_id: str | None, step: str | None, attempt: int | None) -> list[sa.ColumnElement[bool]]:
    """Conditions for the rows of one attempt; None stands for an empty column."""
    return [table.c.run_id.is_not_distinct_from(run_id), table.c.step.is_not_distinct_from(step),
            table.c.attempt.is_not_distinct_from(attempt)]


# Incidents ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """One row of ``incident``.

    ``detail`` holds ``message``, ``incident`` (what arbitration said) and, once it was made, ``decision``; from the
    monitor also ``log`` (its name), ``count`` (lines that tell of it) and ``last_at``.
    """

    id: int
    run_id: str | None
    step: str | None
    attempt: int | None
    state: str
    rule: str | None
    severity: str
    status: str
    opened_at: float
    closed_at: float | None
    detail: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def open_incident(
    connection: sa.Connection, run_id: str | None, step: str | None, attempt: int | None, *, state: str,
    rule: str | None, severity: str, detail: Mapping[str, Any], status: str = "open", at: float | None = None,
) -> Kept:
    """Open the incident of an attempt, or say anew what the one that is open already is about.

    An attempt has one incident: on PostgreSQL, where two writers may do this at once, they do it one after the other.
    One that is being recovered from stays what it was when that was decided.
    """
    alone(connection)
    log = detail.get("log") if run_id is None else None
    current = current_incident(connection, run_id, step, attempt, log)
    if current is not None and current.status == "recovering":
        return current
    said = {"state": state, "rule": rule, "severity": severity, "detail": conceal_all(dict(detail), LONGEST_RECORD)}
    if current is None:
        made = connection.execute(sa.insert(incident_table).values(
            run_id=run_id, step=step, attempt=attempt, status=status, opened_at=at if at is not None else time.time(),
            **said))
        number = int((made.inserted_primary_key or (0,))[0])
    else:
        number = current.id
        connection.execute(sa.update(incident_table).where(incident_table.c.id == number).values(**said))
    found = get_incident(connection, number)
    assert found is not None
    return found


def set_status(connection: sa.Connection, number: int, status: str) -> None:
    """Say how far an incident is; one that is no longer live is closed now."""
    closed = None if status in LIVE else time.time()
    connection.execute(
        sa.update(incident_table).where(incident_table.c.id == number).values(status=status, closed_at=closed))


def close_incident(connection: sa.Connection, number: int, status: str) -> bool:
    """Close a live incident as ``recovered``, ``escalated``, ``withdrawn`` or ``observed``; False: it was closed."""
    done = connection.execute(
        sa.update(incident_table).where(incident_table.c.id == number, incident_table.c.status.in_(LIVE))
        .values(status=status, closed_at=time.time()))
    return done.rowcount == 1


def get_incident(connection: sa.Connection, number: int) -> Kept | None:
    row = connection.execute(sa.select(incident_table).where(incident_table.c.id == number)).mappings().first()
    return _kept(row) if row else None


def incidents_of(
    connection: sa.Connection, run_id: str | None, step: str | None, attempt: int | None, log: str | None = None,
) -> list[Kept]:
    """Every incident of one attempt, whatever became of it, newest last.

    Args:
        log: where ``run_id`` is None: only those seen in this log.
    """
    query = sa.select(incident_table).where(*_is(incident_table, run_id, step, attempt)).order_by(incident_table.c.id)
    found = [_kept(row) for row in connection.execute(query).mappings()]
    return [one for one in found if log is None or one.detail.get("log") == log]


def current_incident(
    connection: sa.Connection, run_id: str | None, step: str | None, attempt: int | None, log: str | None = None,
) -> Kept | None:
    """The live incident of one attempt."""
    live = [one for one in incidents_of(connection, run_id, step, attempt, log) if one.status in LIVE]
    return live[-1] if live else None


def live_incidents(connection: sa.Connection) -> list[Kept]:
    """Every incident that is open or being recovered from, oldest first."""
    query = sa.select(incident_table).where(incident_table.c.status.in_(LIVE)).order_by(incident_table.c.id)
    return [_kept(row) for row in connection.execute(query).mappings()]


def _kept(row: sa.RowMapping) -> Kept:
    return Kept(**{**row, "detail": row["detail"] or {}})


def alone(connection: sa.Connection) -> None:
    """Until this transaction ends nobody else opens an incident; on SQLite only one writes at a time anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


# Marks --------------------------------------------------------------------------------------------------------------


def load_marks(connection: sa.Connection, place: str) -> list[Mark]:
    """How far every file of a directory was read.  ``place`` names the directory, the same after every start."""
    query = sa.select(log_mark).where(log_mark.c.path.startswith(f"{place}/", autoescape=True))
    return [
        Mark(row["path"][len(place) + 1:].rpartition("#")[0], row["file"], row["head"], row["offset"], row["line"],
             row["encoding"], row["updated_at"])
        for row in connection.execute(query).mappings()
    ]


def save_marks(
    connection: sa.Connection, place: str, before: Mapping[str, Mark], after: Mapping[str, Mark],
) -> None:
    """Store how far the files were read.

    Args:
        before: the marks as they were stored last, by inode.
        after: as they are now.

    Raises:
        Overtaken: a stored mark is not what it was.  The transaction must be given up.
    """
    for file in before.keys() - after.keys():
        connection.execute(sa.delete(log_mark).where(log_mark.c.path == _key(place, before[file])))
    for file, mark in after.items():
        was = before.get(file)
        if was == mark:
            continue
        values = {
            "path": _key(place, mark), "file": mark.file, "head": mark.edges, "head_bytes": min(mark.offset, EDGE),
            "offset": mark.offset, "line": mark.line, "encoding": mark.encoding, "updated_at": mark.at,
        }
        if was is None:
            try:
                with connection.begin_nested():
                    connection.execute(sa.insert(log_mark).values(**values))
            except IntegrityError as error:
                raise Overtaken(mark.name) from error
            continue
        moved = connection.execute(sa.update(log_mark).where(
            log_mark.c.path == _key(place, was), log_mark.c.offset == was.offset, log_mark.c.head == was.edges,
        ).values(**values))
        if moved.rowcount != 1:
            raise Overtaken(mark.name)


def _key(place: str, mark: Mark) -> str:
    name = os.fsencode(mark.name).decode("utf-8", "backslashreplace")  # Linux allows names that are no text
    return f"{place}/{name}#{mark.file}"


def take_in(
    connection: sa.Connection, place: str, before: Mapping[str, Mark], after: Mapping[str, Mark],
    events: Iterable[tuple[str | None, Event]],
) -> list[int]:
    """Store what was read: the marks, and the events that its lines are, each with its run.  Returns their numbers.

    Raises:
        Overtaken: see :func:`save_marks`.
    """
    save_marks(connection, place, before, after)
    return [add_event(connection, run_id, event) for run_id, event in events]


# Watchers -----------------------------------------------------------------------------------------------------------


def note_watcher(connection: sa.Connection, name: str, way: str, blind: str | None) -> None:
    """This process watches the logs as ``name``, in that way; ``blind`` says why it sees nothing, if it does not."""
    pid, started = own_identity()
    at_home = (watcher.c.name == name, watcher.c.host == host.host_name())
    connection.execute(sa.delete(watcher).where(*at_home))
    connection.execute(sa.insert(watcher).values(
        name=name, host=host.host_name(), pid=pid, pid_started=started, way=way, blind=blind, at=time.time()))


# For showing --------------------------------------------------------------------------------------------------------


def show_incidents(
    reader: Reader, run_id: str | None = None, *, statuses: Sequence[str] = (), last: int | None = None,
) -> list[dict[str, Any]]:
    """Incidents as plain rows, oldest first; of one run, if given, and only in the given statuses."""
    conditions: list[str] = []
    values: list[Any] = []
    if run_id is not None:
        conditions.append("run_id = ?")
        values.append(run_id)
    if statuses:
        conditions.append(f"status IN ({', '.join('?' * len(statuses))})")
        values += statuses
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    limit = f" LIMIT {int(last)}" if last is not None else ""
    return reader.rows(f"SELECT * FROM incident {where}ORDER BY id DESC{limit}", values)[::-1]


def show_events(
    reader: Reader, run_id: str, step: str | None = None, attempt: int | None = None
) -> list[dict[str, Any]]:
    """Events of a run as plain rows, oldest first; of one step or one attempt, if given."""
    query = "SELECT * FROM event WHERE run_id = ?"
    values: list[Any] = [run_id]
    for name, value in (("step", step), ("attempt", attempt)):
        if value is not None:
            query += f" AND {name} = ?"
            values.append(value)
    return reader.rows(f"{query} ORDER BY id", values)
