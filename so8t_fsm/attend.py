"""One attempt of a step, from its first directory to its last row: spawn, attend, commit or record the failure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from so8t_fsm import artifacts, events, host, journal, resources, views
from so8t_fsm.answer import close_incidents, diagnose, observe_progress, open_incident
from so8t_fsm.attempt import Attempt, Outcome
from so8t_fsm.commands import pending
from so8t_fsm.commits import Artifact
from so8t_fsm.errors_log import write_incident
from so8t_fsm.handle import RunHandle
from so8t_fsm.schema import attempt as attempt_table
from so8t_fsm.statedir import backup
from so8t_fsm.step import Step
from so8t_fsm.store import StateUnusable, Tx, is_full, one_line

TICK = 0.2
ASK_SECONDS = 0.5
"""How often operators' requests are looked for while a step runs."""
FULL_SECONDS = 5.0
"""How long a step may go on when the disk has no room for the run's own record."""


@dataclass
class Attendance:
    """What a runner does while one attempt lives."""

    handle: RunHandle
    step: type[Step]
    _asked_at: float = 0.0
    _probed_at: float = 0.0
    _short: dict[str, events.Event] = field(default_factory=dict)
    _values: dict[str, Any] = field(default_factory=dict)
    _stored: list[events.Event] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.handle.commits.directory(self.handle.run.id, self.step.name)

    def run(self, live: dict[str, Artifact]) -> None:
        """Make one attempt.  Afterwards the run has moved on, failed, or been interrupted."""
        handle, name = self.handle, self.step.name
        n = self._next_number()
        handle.commits.sweep(handle.run, name)
        found = handle.commits.newest_verified(handle.lease.epoch, handle.run.id, name, handle.say, handle.tick)
        out, scratch, checkpoints = self.folder / f"staging-{n}", self.folder / f"scratch-{n}", self.folder / "checkpoints"
        for directory in (out, scratch, checkpoints):
            directory.mkdir(parents=True, exist_ok=True)
        artifacts.fsync_dir(self.folder)
        artifacts.make_durable(self.folder, handle.commits.root)
        reason = f"{name}, attempt {n}" + (f", from checkpoint {found.n}" if found else "")
        handle.move("begin", reason, also=lambda tx: tx.open_attempt(handle.run, name, n), attempt=n)
        self._values = handle.values()
        running = Attempt({
            "run": handle.run.id, "step": name, "attempt": n, "home": str(handle.home), "config": self._values,
            "inputs": {step: str(handle.commits.root / row.path) for step, row in live.items()},
            "identities": {step: row.identity for step, row in live.items()},
            "out": str(out), "scratch": str(scratch), "checkpoints": str(checkpoints),
            "checkpoint": str(handle.commits.root / found.path) if found else None,
            "next_checkpoint": handle.commits.next_checkpoint(handle.run.id, name),
            "checkpoint_interval": handle.config.automation.checkpoint_interval,
            "log_level": handle.config.logging.level.upper(),
            "record": self._record(),
            "disposable": [str(p) for p in handle.commits.disposable(handle.run) if p not in (out, scratch)],
        }, log=lambda line: handle.log(f"[{name}#{n}] {line}"))
        running.start()
        try:
            with handle.fenced() as tx:
                tx.update_attempt(handle.run.id, name, n, pid=running.child.pid, pid_started=running.child.started,
                                  host=host.host_name())
            handle.ears.attend(name, n)
            outcome = self._attend(running)
        except BaseException:
            running.kill()
            running.close()
            raise
        self._conclude(running, outcome, out)

    def _record(self) -> dict[str, Any]:
        with self.handle.store.reader() as reader:
            return views.record(reader, self.handle.home, self.handle.run.id)

    def _next_number(self) -> int:
        with self.handle.store.read() as connection:
            highest = connection.execute(sa.select(sa.func.max(attempt_table.c.n)).where(
                attempt_table.c.run_id == self.handle.run.id, attempt_table.c.step == self.step.name)).scalar()
        return int(highest or 0) + 1

    def _attend(self, running: Attempt) -> Outcome:
        try:
            return self._watch(running)
        except SQLAlchemyError as error:
            if not is_full(error):
                raise
            return self._end_on_a_full_disk(running, one_line(error))

    def _end_on_a_full_disk(self, running: Attempt, why: str) -> Outcome:
        """The step, which filled the disk or will soon meet its end, says best why it fails; a moment is left to it."""
        until = time.monotonic() + FULL_SECONDS
        while not running.finished() and time.monotonic() < until:
            for _ in running.incoming(TICK):
                pass
        if not running.finished():
            running.kill(events.Failure("disk_full", f"no room was left for the run's own record: {why}"))
        return running.close()

    def _watch(self, running: Attempt) -> Outcome:
        handle, automation = self.handle, self.handle.config.automation
        while not running.finished():
            for record in running.incoming(TICK):
                if record.get("type") == "checkpoint":
                    self._checkpoint(record)
            handle.reporter.progress(self.step.name, running.progress)
            handle.beat(running.progress)
            self._probe()
            self._listen()
            if handle.signals.requested:
                running.ask_to_stop(handle.signals.requested, automation.stop_grace)
                if handle.signals.count > 1:
                    running.kill()
            self._look_for_requests(running)
            running.tend()
            if time.monotonic() - running.last_sign > automation.stall_timeout:
                running.kill(events.Failure(
                    "stalled", f"{self.step.name} showed no sign of life for {automation.stall_timeout:.0f} s"))
        return running.close()

    def _look_for_requests(self, running: Attempt) -> None:
        if time.monotonic() - self._asked_at < ASK_SECONDS:
            return
        self._asked_at = time.monotonic()
        waiting = pending(self.handle.store, self.handle.run.id)
        if waiting:
            running.ask_to_stop(f"{waiting[0].kind} by {waiting[0].operator}", self.handle.config.automation.stop_grace)

    def _probe(self) -> None:
        """Measure while the step runs.  A shortage is an event, stored when it begins; when the step fails, what is
        short then speaks with the other events of the attempt."""
        if time.monotonic() - self._probed_at < self.handle.config.resources.probe_interval:
            return
        self._probed_at = time.monotonic()
        short = self._measured()
        for kind in short.keys() - self._short.keys():
            self.handle.log(f"WARNING {short[kind].text}")
            self._store([short[kind]])
        self._short = short

    def _listen(self) -> None:
        """Take in what other programs write; who can't hear says so, since silence is no good sign then."""
        ears = self.handle.ears
        if heard := ears.listen():
            self._store(heard)
        if ears.told != (ears.blind, ears.way):
            if ears.blind is not None:
                self.handle.log(f"WARNING blind for what other programs log: {ears.blind}")
            ears.told = (ears.blind, ears.way)
            with self.handle.fenced() as tx:
                journal.note_watcher(tx.connection, "runner", ears.way, ears.blind)

    def _store(self, seen: list[events.Event]) -> None:
        with self.handle.fenced() as tx:
            for event in seen:
                journal.add_event(tx.connection, self.handle.run.id, event)
        self._stored += seen

    def _measured(self, over: bool = False) -> dict[str, events.Event]:
        """What is short now, by its kind.  When the step is over, GPU memory that is still taken is taken by others."""
        settings = self.handle.config.resources
        needs = self.step().needs(self.handle.config.values, self.handle.home, self.folder)
        if over:
            needs = replace(needs, network=())  # to connect takes time, and who failed of it has said so
        findings = resources.probe(needs, resources.Limits(
            settings.min_free_disk // 4, settings.min_ram // 4, needs.vram if over else 0))
        return {finding.kind: events.Event("probe", self.step.name, self.handle.run.attempt, finding.message, at=time.time())
                for finding in findings if finding.short}

    def _checkpoint(self, record: dict[str, Any]) -> None:
        handle, name = self.handle, self.step.name
        path = self.folder / "checkpoints" / str(record["n"])
        with handle.fenced() as tx:
            tx.add_checkpoint(handle.run.id, name, record["n"], handle.run.attempt, handle.commits.relative(path),
                              record["identity"], record["position"])
            tx.observe_progress(handle.run.id, name, record["position"])
            observe_progress(tx, handle, name, record["position"])
            old = handle.commits.retain(tx, handle.run.id, name, handle.config.automation.keep_checkpoints)
        for directory in old:
            artifacts.remove_tree(directory)
        handle.log(f"checkpoint {record['n']} of {name} at {record['position']:g}")

    def _conclude(self, running: Attempt, outcome: Outcome, out: Path) -> None:
        handle, failure = self.handle, outcome.failure
        if outcome.sealed:
            try:
                self._commit(out, outcome.sealed)
                return
            except artifacts.Damaged as error:
                failure = events.Failure("crashed", f"what {self.step.name} staged does not verify: {error}")
        if failure is not None:
            current, seen = handle.run, self._seen(failure, running)
            try:
                self._failed(failure, running, seen)
            except SQLAlchemyError as error:
                if not is_full(error):
                    raise
                # What the attempt staged is worthless, and most often it is what fills the disk.
                handle.run = current
                handle.commits.sweep(current, self.step.name)
                self._failed(failure, running, seen)
            return
        reason = running.stop_reason or "the step stopped by itself"
        handle.move("interrupt", f"stopped: {reason}", also=lambda tx: tx.close_attempt(
            handle.run.id, self.step.name, handle.run.attempt, "stopped", reason, progress=running.progress or None))

    def _commit(self, out: Path, identity: str) -> None:
        """Verify, rename, then the rows and the transition in one transaction; what is left over goes afterwards."""
        handle, name = self.handle, self.step.name
        manifest = artifacts.verify(out, handle.tick)
        if manifest.identity != identity:
            raise artifacts.Damaged(f"{out}: it changed after it was sealed")
        n = handle.run.attempt
        final = self.folder / str(n)
        handle.commits.publish(out, final)
        inputs = handle.commits.inputs_of(self.step, handle.commits.live(handle.run.id))

        def rows(tx: Tx) -> None:
            tx.add_artifact(handle.run.id, name, n, handle.commits.relative(final), identity, inputs,
                            handle.commits.settings_of(self.step, self._values))
            tx.close_attempt(handle.run.id, name, n, "committed")
            tx.observe_progress(handle.run.id, name, None)
            observe_progress(tx, handle, name, None)
            close_incidents(tx, handle.run.id, name, "recovered")

        handle.go_past(self.step, f"{name} committed {len(manifest.files) + len(manifest.volatile)} files", rows)
        handle.commits.sweep(handle.run, name)
        try:
            backup(handle.store)
        except (OSError, SQLAlchemyError, StateUnusable) as error:
            handle.log(f"WARNING no backup of the database was made: {error}")

    def _failed(self, failure: events.Failure, running: Attempt, seen: list[events.Event]) -> None:
        """One incident for the attempt; the run enters the state it belongs to."""
        handle, name = self.handle, self.step.name
        diagnosis = diagnose(handle, seen, failure)
        incident = {**failure.to_json(), "state": diagnosis.state, "message": diagnosis.message, "step": name,
                    "attempt": handle.run.attempt, "at": time.time(),
                    "rule": diagnosis.incident.rule if diagnosis.incident else None}
        reached = max((c.position for c in handle.commits.checkpoints(handle.run.id, name)), default=None)

        def rows(tx: Tx) -> None:
            tx.close_attempt(handle.run.id, name, handle.run.attempt, "failed", failure.message,
                             failure=failure.to_json(), progress=running.progress or None)
            incident["failures"] = tx.count_failure(handle.run.id, f"{name}/step", reached)
            incident["id"] = open_incident(tx, handle, seen, diagnosis, self._stored)

        handle.move(f"fail_{diagnosis.state}", diagnosis.message, also=rows, incident=incident)
        write_incident(handle.home / handle.config.logging.directory, handle.run, incident)

    def _seen(self, failure: events.Failure, running: Attempt) -> list[events.Event]:
        """What every source says of the attempt that just ended."""
        name, n, at = self.step.name, self.handle.run.attempt, time.time()
        seen = [events.Event("log", name, n, text, at=seen_at, line=number) for number, seen_at, text in running.last_lines()]
        self.handle.ears.listen(last=True)
        seen += self.handle.ears.heard
        # A child that ran out of memory has given it back by now: what was short when it was last looked at counts too.
        seen += {**self._short, **self._measured(over=True)}.values()
        if failure.exception is not None:
            seen.append(events.exception_event(failure.exception, name, n, at))
        if failure.state == "stalled":
            quiet = self.handle.config.automation.stall_timeout
            seen.append(events.Event("silence", name, n, failure.message, at=at, quiet=quiet))
        elif failure.exit_code is not None or failure.signal is not None:
            seen.append(events.Event("exit", name, n, failure.message, exit_code=failure.exit_code,
                                     signal=failure.signal, at=at))
        return seen
