"""A watcher without a runner: follows the logs of a home, says what went wrong, and never does anything about it.

Lines become events, the events of one attempt one incident; both are stored together with how far the logs were read,
so that it may be killed at any moment.  A runner may be alive meanwhile: transactions are short, and the incident of
an attempt is the same row for both.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from so8t_fsm import host, journal
from so8t_fsm.events import Event
from so8t_fsm.incidents import Incident, noted, weigh
from so8t_fsm.retracted import retracted
from so8t_fsm.rulebook import Rulebook
from so8t_fsm.rules.lines import clean
from so8t_fsm.rules.match import heard
from so8t_fsm.rules.prefilter import Prefilter
from so8t_fsm.schema import attempt as attempt_table
from so8t_fsm.schema import incident as incident_table
from so8t_fsm.schema import run as run_table
from so8t_fsm.store import Store, one_line
from so8t_fsm.tail import OWN_LOG, Batch, Line, Logs, Mark, log_of
from so8t_fsm.watcher import POLL_SECONDS, Watcher

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z")
TICK = 0.5
SETTLED = 10.0
"""Half a line that was not completed for so long is all there will be."""
SAVE_SECONDS = 5.0
SWEEP_SECONDS = 2.0
QUIET = 600.0
"""A log that belongs to no attempt tells of something new after so many seconds without a word."""
MOST_EVENTS = 200
"""Events that are kept of one attempt; what repeats for ever must not fill the disk."""


class Teller(Protocol):
    """Where a person, or a program, hears of it."""

    def say(self, event: str, message: str) -> None: ...

    def incident(self, event: str, kept: journal.Kept) -> None: ...


@dataclass(frozen=True)
class Case:
    """What an incident is of: an attempt of a run, an attempt that a log of another computer tells of, or a log."""

    run_id: str | None
    step: str | None
    attempt: int | None
    log: str


class Monitor:
    """Follows the logs of one home.

    Attributes:
        blind: why something that goes wrong now would not be seen, or None.
    """

    def __init__(self, store: Store, home: Path, tell: Teller, interval: float = POLL_SECONDS) -> None:
        """
        Raises:
            RulesError: the home's rules do not lint.
        """
        self.store, self.home, self.tell, self.interval = store, home, tell, interval
        self.blind: str | None = None
        self._way = ""
        self._noted: tuple[str | None, str] | None = None
        self.directory = self._directory()
        inside = self.directory.is_relative_to(home)
        self.place = self.directory.relative_to(home).as_posix() if inside else self.directory.as_posix()
        self._marks_at = self.place if store.sqlite else f"{host.host_name()}:{self.directory.as_posix()}"
        self._book = Rulebook(home, lambda message: tell.say("rules", message))
        self._rules = self._book.current()
        self._told: dict[int, tuple[str, str | None]] = {}
        self._unreadable: dict[str, str] = {}
        self._due: dict[str, float] = {}
        self._stored: dict[str, Mark] = {}
        self._saved_at = self._swept_at = 0.0
        self._load()

    def _directory(self) -> Path:
        """Where the last run writes its logs; for a home without one, where it would."""
        found = self.store.latest_run()
        section = (found.config.get("values") or {}).get("logging") or {} if found is not None else {}
        return self.home / str(section.get("directory") or "logs")

    def _load(self) -> None:
        """Go on from what is stored."""
        import psutil

        with self.store.read() as connection:
            marks = journal.load_marks(connection, self._marks_at)
        self._stored = {mark.file: mark for mark in marks}
        self._logs = Logs(self.directory, marks, wanted=Prefilter(self._rules).lines, booted=psutil.boot_time(),
                          inodes=host.is_network_path(self.directory) is None)

    # -- the two ways to look -----------------------------------------------------------------------------------------

    def once(self) -> list[journal.Kept]:
        """Take in all that is unread.  Returns the incidents that are open now."""
        self.greet()
        try:
            trouble = self._look(self._logs.names())
        except OSError as error:
            trouble = f"{self.directory}: {error.strerror or error}"
        trouble = trouble or self._save([]) or self._sweep()
        self._say_blind(trouble)
        with self.store.read() as connection:
            return journal.live_incidents(connection)

    def watch(self, asked_to_stop: Callable[[], bool]) -> None:
        """Look until asked to stop."""
        self.greet()
        with Watcher(self.directory, poll=self.interval) as watcher:
            trouble: str | None = None
            while not asked_to_stop():
                names = watcher.changed(TICK)
                self._say_blind(watcher.blind or trouble, watcher.way)
                now = time.monotonic()
                self._due.update(dict.fromkeys(names, now + SETTLED + 1))
                names |= {name for name, due in self._due.items() if due <= now}
                self._due = {name: due for name, due in self._due.items() if due > now}
                trouble = self._look(names, watcher, asked_to_stop)
                if now - self._saved_at > SAVE_SECONDS:
                    trouble = self._save([]) or trouble
                if now - self._swept_at > SWEEP_SECONDS:
                    trouble = self._sweep() or trouble
            self._save([])

    def greet(self) -> None:
        """Tell of what is open already, so that nothing goes unsaid when the one before was killed before it spoke."""
        with self.store.read() as connection:
            for kept in journal.live_incidents(connection):
                self._told[kept.id] = (kept.state, kept.rule)
                self.tell.incident("open", kept)

    def _say_blind(self, blind: str | None, way: str = "") -> None:
        if blind is not None and blind != self.blind:
            self.tell.say("blind", f"blind: {blind}")
        elif blind is None and way and (self.blind is not None or way != self._way):
            self._way = way
            self.tell.say("watching", f"watching {self.directory}: {way}")
        if (blind, way) != self._noted:
            self._noted = (blind, way)
            try:
                with self.store.write() as connection:
                    journal.note_watcher(connection, "monitor", way, blind)
            except SQLAlchemyError as error:
                self.tell.say("blind", f"what was seen can't be stored: {one_line(error)}")
        self.blind = blind

    # -- reading ------------------------------------------------------------------------------------------------------

    def _look(self, names: Iterable[str], watcher: Watcher | None = None,
              asked_to_stop: Callable[[], bool] = lambda: False) -> str | None:
        """Read all that is new in some logs, a batch of each in turn.  Returns why that failed, if it did."""
        waiting = deque(sorted(names))
        if (rules := self._book.current()) is not self._rules:
            self._rules, self._logs.wanted = rules, Prefilter(rules).lines
        while waiting and not asked_to_stop():
            name = waiting.popleft()
            try:
                batch = self._logs.take(name, SETTLED)
            except OSError as error:
                return f"{self.directory}: {error.strerror or error}"
            if batch is None:
                continue
            waiting.append(name)
            trouble = self._take_in(batch)
            if trouble is not None:
                self._due.update(dict.fromkeys(waiting, 0.0))
                return trouble
            if watcher is not None:
                waiting.extend(sorted(watcher.changed(0).difference(waiting)))
        for name, why in self._logs.problems.items():
            if self._unreadable.get(name) != why:
                self.tell.say("unreadable", f"{self.directory / name} can't be read: {why}")
        self._unreadable = dict(self._logs.problems)
        return None

    def _take_in(self, batch: Batch) -> str | None:
        found = [(case, event) for line in batch.lines if (told := self._event(batch, line)) for case, event in [told]]
        if found or time.monotonic() - self._saved_at > SAVE_SECONDS:
            return self._save(found)
        return None

    def _event(self, batch: Batch, line: Line) -> tuple[Case, Event] | None:
        """What a line tells, if any rule knows it as a sign of trouble."""
        if not line.text:
            return None
        said = clean(line.text)
        own = OWN_LOG.fullmatch(batch.log)
        if not said.text or (own is not None and said.step is None):
            return None  # the machine itself speaks of what it has seen already
        stamp = STAMP.match(line.text) if own is not None else None
        at = datetime.strptime(stamp[0], "%Y-%m-%d %H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp() if stamp else None
        event = Event("log", said.step, said.attempt, said.text, at=at, file=f"{self.place}/{batch.path.name}",
                      line=line.number)
        if heard(self._rules, event) is None:
            return None
        return Case(own[1] if own else None, said.step, said.attempt, batch.log), event

    # -- storing ------------------------------------------------------------------------------------------------------

    def _save(self, found: list[tuple[Case, Event]]) -> str | None:
        """Store the marks, the events and what they add up to, in one transaction.  Returns why that failed."""
        after = dict(self._logs.marks)
        self._saved_at = time.monotonic()
        if not found and after == self._stored:
            return None
        try:
            with self.store.write() as connection:
                cases = self._known_runs(connection, found)
                stored, kept, over = [], [], []
                for case, events in cases.items():
                    before = self._events_of(connection, case)
                    # The lock is held meanwhile: of a flood, its beginning and its end are enough to tell the cause.
                    known = noted(self._rules, [*before, *events[:MOST_EVENTS], *events[MOST_EVENTS:][-MOST_EVENTS:]])
                    telling = {id(one.event) for one in known}
                    new = [event for event in events if id(event) in telling]
                    stored += [(case.run_id, event) for event in new[:max(0, MOST_EVENTS - len(before))]]
                    incident = weigh(known) if new else None
                    if incident is not None:
                        kept += self._open(connection, case, incident, len(before) + len(events))
                    elif new:
                        over += self._withdraw(connection, case)
                journal.take_in(connection, self._marks_at, self._stored, after, stored)
        except journal.Overtaken:
            self._load()
            return None
        except SQLAlchemyError as error:
            self._logs.marks = dict(self._stored)
            return f"what was seen can't be stored: {one_line(error)}"
        self._stored = after
        for one in kept:
            if self._told.get(one.id) != (one.state, one.rule):
                self.tell.incident("reranked" if one.id in self._told else "incident", one)
                self._told[one.id] = (one.state, one.rule)
        self._say_over((one, "withdrawn") for one in over)
        return None

    def _known_runs(
        self, connection: sa.Connection, found: list[tuple[Case, Event]]
    ) -> dict[Case, list[Event]]:
        """The events by case; a run that this database does not know is known by its log alone."""
        cases: dict[Case, list[Event]] = {}
        names = {case.run_id for case, _ in found if case.run_id is not None}
        known = set(connection.execute(sa.select(run_table.c.id).where(run_table.c.id.in_(names))).scalars())
        for case, event in found:
            cases.setdefault(case if case.run_id in known else replace(case, run_id=None), []).append(event)
        return cases

    def _events_of(self, connection: sa.Connection, case: Case) -> list[Event]:
        """What is known of a case already, as far as it bears on what comes now."""
        since, current = 0.0, None
        if case.attempt is None:
            current = journal.current_incident(connection, case.run_id, case.step, case.attempt, case.log)
            since = current.opened_at if current is not None else time.time() - QUIET
        found = journal.events_of(connection, case.run_id, case.step, case.attempt, since)
        if case.run_id is None:
            # The row's time is when the line was read, not when it was written: its place in the file must tell.
            found = [replace(event, at=None) for event in found if event.file and log_of(Path(event.file).name) == case.log]
        if case.attempt is None and current is None:
            known = noted(self._rules, found)
            return [known[i].event for i in sorted(retracted(known).pending)]
        return found

    def _open(self, connection: sa.Connection, case: Case, incident: Incident, count: int) -> list[journal.Kept]:
        """Open the incident of a case, or re-rank the one that is open."""
        journal.alone(connection)
        if case.run_id is not None and self._status(connection, case) in ("committed", "stopped"):
            return []
        log = case.log if case.run_id is None else None
        earlier = journal.incidents_of(connection, case.run_id, case.step, case.attempt, log)
        if case.attempt is None:
            earlier = [one for one in earlier if one.status in journal.LIVE]
        if earlier and earlier[-1].status != "open":
            return []  # the attempt's one incident is in other hands, or closed
        detail = {"message": incident.event.text[:500], "incident": incident.to_json(), "log": case.log, "count": count,
                  "last_at": time.time()}
        return [journal.open_incident(
            connection, case.run_id, case.step, case.attempt, state=incident.state, rule=incident.rule,
            severity=incident.severity, detail=detail)]

    def _withdraw(self, connection: sa.Connection, case: Case) -> list[journal.Kept]:
        """Close the incident of a case of which everything was taken back, unless somebody is at work on it."""
        current = journal.current_incident(connection, case.run_id, case.step, case.attempt,
                                           case.log if case.run_id is None else None)
        if current is None or current.status != "open" or not journal.close_incident(connection, current.id, "withdrawn"):
            return []
        return [current]

    def _status(self, connection: sa.Connection, case: Case) -> str | None:
        return connection.execute(sa.select(attempt_table.c.status).where(
            attempt_table.c.run_id == case.run_id, attempt_table.c.step == case.step,
            attempt_table.c.n == case.attempt)).scalar()

    # -- what time shows ----------------------------------------------------------------------------------------------

    def _sweep(self) -> str | None:
        """Withdraw the incidents of attempts that came through, and close those that nothing more was heard of."""
        self._swept_at = time.monotonic()
        try:
            with self.store.read() as connection:
                over = self._over(connection)
            if not over:
                return None
            with self.store.write() as connection:
                closed = [(one, status) for one, status in over if journal.close_incident(connection, one.id, status)]
        except SQLAlchemyError as error:
            return f"what was seen can't be stored: {one_line(error)}"
        self._say_over(closed)
        return None

    def _say_over(self, closed: Iterable[tuple[journal.Kept, str]]) -> None:
        for one, status in closed:
            self._told.pop(one.id, None)
            self.tell.incident(status, replace(one, status=status))

    def _over(self, connection: sa.Connection) -> list[tuple[journal.Kept, str]]:
        query = sa.select(incident_table.c.id).join(attempt_table, sa.and_(
            attempt_table.c.run_id == incident_table.c.run_id, attempt_table.c.step == incident_table.c.step,
            attempt_table.c.n == incident_table.c.attempt,
        )).where(incident_table.c.status == "open", attempt_table.c.status == "committed")
        came_through = set(connection.execute(query).scalars())
        over: list[tuple[journal.Kept, str]] = []
        for one in journal.live_incidents(connection):
            last: Any = one.detail.get("last_at")
            if one.id in came_through:
                over.append((one, "withdrawn"))
            elif one.attempt is None and one.run_id is None and last and time.time() - float(last) > QUIET:
                over.append((one, "observed"))
        return over
