"""The loop: read the row, gather facts, plan, commit; run one child at a time; answer signals and operators.

Only this module, and only on its main thread, writes to the database while a run is under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from so8t_fsm import artifacts, events, host, registry, resources, runs, views
from so8t_fsm.attempt import Attempt, Outcome
from so8t_fsm.backoff import delay
from so8t_fsm.commands import Request, finish, pending
from so8t_fsm.commits import Artifact, Commits
from so8t_fsm.config import Config
from so8t_fsm.errors_log import write_incident
from so8t_fsm.holder import own_identity
from so8t_fsm.lease import Lease
from so8t_fsm.schema import attempt as attempt_table
from so8t_fsm.statedir import backup
from so8t_fsm.states import FAILURES, WORKING, Facts, Plan, Refused, plan
from so8t_fsm.step import Step
from so8t_fsm.store import KEEP, Run, StateUnusable, Store

EXIT_OK, EXIT_USAGE, EXIT_STOPPED, EXIT_PERSON = 0, 2, 75, 78
TICK = 0.2


class Reporter(Protocol):
    """Where a person watches: a terminal, a log, or nothing."""

    def say(self, message: str) -> None: ...

    def progress(self, step: str, progress: dict[str, Any]) -> None: ...

    def entered(self, run: Run, reason: str) -> None: ...


class Stopped(Exception):
    """Leave the loop with an exit code; everything is committed."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Supervisor:
    """Drives one run to ``completed``, to a person, or to a requested stop."""

    store: Store
    lease: Lease
    home: Path
    run: Run
    config: Config
    reporter: Reporter
    signals: host.StopSignals
    log: Callable[[str], None]
    notify: Callable[[str, str, str], None]
    steps: list[type[Step]] = field(init=False)
    commits: Commits = field(init=False)
    _beat_at: float = 0.0
    _asked_at: float = 0.0
    _probed_at: float = 0.0

    def __post_init__(self) -> None:
        self.steps = registry.pipeline(self.run.steps)
        self.commits = Commits(self.store, self.home)
        self.who = f"runner {own_identity()[0]}@{host.host_name()}"

    # -- the loop ---------------------------------------------------------------------------------------------------

    def drive(self) -> int:
        """Work until there is nothing left to do here.  Returns the exit code.

        Raises:
            Fenced: another runner took over; nothing more was written.
        """
        try:
            while True:
                self._obey()
                self._one()
        except Stopped as stopped:
            if str(stopped):
                self.reporter.say(str(stopped))
            return stopped.code

    def _one(self) -> None:
        state = self.run.state
        if state == "idle":
            self._move("start", "the run begins")
        elif state in WORKING:
            self._work()
        elif state in FAILURES:
            self._answer_failure()
        elif state == "backing_off":
            self._wait_for_retry()
        elif state == "waiting_for_resources":
            self._wait_for_resources()
        elif state == "completed":
            raise Stopped(EXIT_OK, f"run {self.run.id} is completed")
        elif state == "paused":
            raise Stopped(EXIT_STOPPED, "paused; `so8t resume` goes on")
        else:
            incident = self.run.incident or {}
            raise Stopped(EXIT_PERSON, f"a person is needed: {incident.get('message', 'see `so8t history`')}")

    # -- committing -------------------------------------------------------------------------------------------------

    def _facts(self, **known: Any) -> Facts:
        step = self._step()
        return Facts(step_state=step.state if step else None, **known)

    def _step(self) -> type[Step] | None:
        return next((s for s in self.steps if s.name == self.run.step), None)

    def _plan(self, trigger: str, **known: Any) -> Plan:
        planned = plan(self.run.state, trigger, self._facts(**known))
        if isinstance(planned, Refused):
            raise RuntimeError(str(planned))
        return planned

    def _move(self, trigger: str, reason: str, *, step: str | None = KEEP, known: dict[str, Any] | None = None,
              also: Callable[[Any], None] | None = None, **columns: Any) -> None:
        planned = self._plan(trigger, **(known or {}))
        with self.store.fenced(self.lease.epoch, self.lease.seconds) as tx:
            if also:
                also(tx)
            self.run = tx.transition(self.run, planned, who=self.who, reason=reason, step=step, **columns)
        self._beat_at = time.monotonic()
        self.log(f"{planned.source} -> {planned.dest}: {reason}")
        self.reporter.entered(self.run, reason)

    def _beat(self, running: Attempt | None = None) -> None:
        """Renew the lease (and show the progress) once per heartbeat."""
        if time.monotonic() - self._beat_at < self.config.automation.heartbeat_seconds:
            return
        with self.store.fenced(self.lease.epoch, self.lease.seconds) as tx:
            if running is not None and running.progress and self.run.step:
                tx.update_attempt(self.run.id, self.run.step, self.run.attempt, progress=running.progress)
        self._beat_at = time.monotonic()

    def _tick(self, _read: int) -> None:
        self._beat()

    # -- a working state --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        step = self._step()
        if step is None or step.state != self.run.state:
            self._move("advance", f"no step of this run works in {self.run.state}", known={"step_done": True},
                       **self._ending())
            return
        live = self.commits.live(self.run.id)
        found = live.get(step.name)
        if found is not None and self.commits.is_current(found, live):
            self._go_past(step, f"{step.name} is committed already")
            return
        if found is None and self._reuse(step, live):
            return
        if not self._guards_pass(step):
            return
        self._attempt(step, live)

    def _ending(self) -> dict[str, Any]:
        return {"finished_at": time.time()} if self.run.state == WORKING[-1] else {}

    def _go_past(self, step: type[Step], reason: str, also: Callable[[Any], None] | None = None) -> None:
        """Move on to the next step, which may work in the same state."""
        position = self.steps.index(step)
        following = self.steps[position + 1] if position + 1 < len(self.steps) else None
        same = following is not None and following.state == step.state
        self._move("next_step" if same else "advance", reason, step=following.name if following else None,
                   known={"step_done": True}, also=also, attempt=0, incident=None, next_retry_at=None,
                   **({} if same else self._ending()))

    def _reuse(self, step: type[Step], live: dict[str, Artifact]) -> bool:
        """Take a step's commit over from the run this one was started from."""
        plan_of = self.run.reuse or {}
        if step.name not in plan_of.get("steps", ()):
            return False
        old = self.commits.live(plan_of["run"]).get(step.name)
        if old is None or self.commits.damaged({step.name: old}, self._tick):
            self.reporter.say(f"{step.name}: nothing usable to take over from run {plan_of['run']}; it runs again")
            return False
        self._go_past(step, f"{step.name} taken over from run {old.run_id}", lambda tx: tx.add_artifact(
            self.run.id, step.name, 0, old.path, old.identity, old.inputs, old.settings, old.reused_from or old.run_id,
        ))
        return True

    def _findings(self, step: type[Step]) -> list[resources.Finding]:
        out = self.commits.directory(self.run.id, step.name)
        needs = step().needs(runs.effective(self.store, self.run), self.home, out)
        limits = self.config.resources
        return resources.check(needs, resources.Limits(limits.min_free_disk, limits.min_ram, limits.min_vram))

    def _guards_pass(self, step: type[Step]) -> bool:
        findings = self._findings(step)
        for finding in findings:
            if not finding.ok and not finding.blocks:
                self.log(f"WARNING {finding.message}")
                self.reporter.say(finding.message)
        blocking = [f.message for f in findings if f.blocks]
        if blocking:
            self._move("wait", "; ".join(blocking), incident={
                "state": "waiting_for_resources", "step": step.name, "message": "; ".join(blocking)})
        return not blocking

    def _wait_for_resources(self) -> None:
        step = self._step()
        assert step is not None
        blocking = [f.message for f in self._findings(step) if f.blocks]
        if not blocking:
            self._move("resources_ready", "what was missing is there", known={"resources_ok": True}, incident=None)
            return
        self._sleep(self.config.resources.poll_interval)

    # -- one attempt ------------------------------------------------------------------------------------------------

    def _attempt(self, step: type[Step], live: dict[str, Artifact]) -> None:
        n = self._next_attempt(step.name)
        base = self.commits.directory(self.run.id, step.name)
        self.commits.sweep(self.run, step.name)
        found = self.commits.newest_verified(
            self.lease.epoch, self.run.id, step.name, self.reporter.say, self._tick)
        out, scratch, checkpoints = base / f"staging-{n}", base / f"scratch-{n}", base / "checkpoints"
        for directory in (out, scratch, checkpoints):
            directory.mkdir(parents=True, exist_ok=True)
        artifacts.fsync_dir(base)
        artifacts.make_durable(base, self.commits.root)
        reason = f"{step.name}, attempt {n}" + (f", from checkpoint {found.n}" if found else "")
        self._move("begin", reason, also=lambda tx: tx.open_attempt(self.run, step.name, n), attempt=n)
        values = runs.effective(self.store, self.run)
        running = Attempt({
            "run": self.run.id, "step": step.name, "attempt": n, "home": str(self.home), "config": values,
            "inputs": {name: str(self.commits.root / row.path) for name, row in live.items()},
            "identities": {name: row.identity for name, row in live.items()},
            "out": str(out), "scratch": str(scratch), "checkpoints": str(checkpoints),
            "checkpoint": str(self.commits.root / found.path) if found else None,
            "next_checkpoint": self.commits.next_checkpoint(self.run.id, step.name),
            "checkpoint_interval": self.config.automation.checkpoint_interval,
            "log_level": self.config.logging.level.upper(),
            "record": self._record(),
            "disposable": [str(p) for p in self.commits.disposable(self.run) if p not in (out, scratch)],
        }, log=lambda line: self.log(f"[{step.name}#{n}] {line}"))
        running.start()
        try:
            with self.store.fenced(self.lease.epoch, self.lease.seconds) as tx:
                tx.update_attempt(self.run.id, step.name, n, pid=running.child.pid, pid_started=running.child.started,
                                  host=host.host_name())
            outcome = self._attend(step, running)
        except BaseException:
            running.kill()
            running.close()
            raise
        self._conclude(step, running, outcome, out, values)

    def _record(self) -> dict[str, Any]:
        with self.store.reader() as reader:
            return views.record(reader, self.home, self.run.id)

    def _next_attempt(self, step: str) -> int:
        with self.store.read() as connection:
            highest = connection.execute(sa.select(sa.func.max(attempt_table.c.n)).where(
                attempt_table.c.run_id == self.run.id, attempt_table.c.step == step)).scalar()
        return int(highest or 0) + 1

    def _attend(self, step: type[Step], running: Attempt) -> Outcome:
        automation = self.config.automation
        while not running.finished():
            for record in running.incoming(TICK):
                if record.get("type") == "checkpoint":
                    self._checkpoint(step.name, record)
            self.reporter.progress(step.name, running.progress)
            self._beat(running)
            self._probe(step)
            if self.signals.requested:
                running.ask_to_stop(self.signals.requested, automation.stop_grace)
                if self.signals.count > 1:
                    running.kill()
            if time.monotonic() - self._asked_at > 0.5:
                self._asked_at = time.monotonic()
                waiting = pending(self.store, self.run.id)
                if waiting:
                    running.ask_to_stop(f"{waiting[0].kind} by {waiting[0].operator}", automation.stop_grace)
            running.tend()
            if time.monotonic() - running.last_sign > automation.stall_timeout:
                running.kill(events.Failure(
                    "stalled", f"{step.name} showed no sign of life for {automation.stall_timeout:.0f} s"))
        return running.close()

    def _probe(self, step: type[Step]) -> None:
        """Measure while the step runs; a shortage is said, and answered when the step fails of it."""
        if time.monotonic() - self._probed_at < self.config.resources.probe_interval:
            return
        self._probed_at = time.monotonic()
        limits = resources.Limits(min_free_disk=self.config.resources.min_free_disk // 4)
        needs = step().needs(self.config.values, self.home, self.commits.directory(self.run.id, step.name))
        for finding in resources.probe(needs, limits):
            if finding.short:
                self.log(f"WARNING {finding.message}")

    def _checkpoint(self, step: str, record: dict[str, Any]) -> None:
        path = self.commits.directory(self.run.id, step) / "checkpoints" / str(record["n"])
        with self.store.fenced(self.lease.epoch, self.lease.seconds) as tx:
            tx.add_checkpoint(self.run.id, step, record["n"], self.run.attempt, self.commits.relative(path),
                              record["identity"], record["position"])
            tx.observe_progress(self.run.id, f"step:{step}", record["position"])
            old = self.commits.retain(tx, self.run.id, step, self.config.automation.keep_checkpoints)
        for directory in old:
            artifacts.remove_tree(directory)
        self.log(f"checkpoint {record['n']} of {step} at {record['position']:g}")

    def _conclude(self, step: type[Step], running: Attempt, outcome: Outcome, out: Path, values: dict[str, Any]) -> None:
        failure = outcome.failure
        if outcome.sealed:
            try:
                self._commit(step, out, outcome.sealed, values)
                return
            except artifacts.Damaged as error:
                failure = events.Failure("crashed", f"what {step.name} staged does not verify: {error}")
        if failure is None:
            reason = running.stop_reason or "the step stopped by itself"
            self._move("interrupt", f"stopped: {reason}", also=lambda tx: tx.close_attempt(
                self.run.id, step.name, self.run.attempt, "stopped", reason, progress=running.progress or None))
            return
        self._failed(step, failure, running.progress)

    def _commit(self, step: type[Step], out: Path, identity: str, values: dict[str, Any]) -> None:
        manifest = artifacts.verify(out, self._tick)
        if manifest.identity != identity:
            raise artifacts.Damaged(f"{out}: it changed after it was sealed")
        n = self.run.attempt
        final = self.commits.directory(self.run.id, step.name) / str(n)
        self.commits.publish(out, final)
        inputs = self.commits.inputs_of(step, self.commits.live(self.run.id))

        def rows(tx: Any) -> None:
            tx.add_artifact(self.run.id, step.name, n, self.commits.relative(final), identity, inputs,
                            self.commits.settings_of(step, values))
            tx.close_attempt(self.run.id, step.name, n, "committed")
            tx.observe_progress(self.run.id, f"step:{step.name}", None)

        self._go_past(step, f"{step.name} committed {len(manifest.files) + len(manifest.volatile)} files", rows)
        self.commits.sweep(self.run, step.name)
        try:
            backup(self.store)
        except (OSError, SQLAlchemyError, StateUnusable) as error:
            self.log(f"WARNING no backup of the database was made: {error}")

    # -- failure and waiting ----------------------------------------------------------------------------------------

    def _failed(self, step: type[Step], failure: events.Failure, progress: dict[str, Any]) -> None:
        incident = {**failure.to_json(), "step": step.name, "attempt": self.run.attempt, "at": time.time()}
        reached = max((c.position for c in self.commits.checkpoints(self.run.id, step.name)), default=None)

        def rows(tx: Any) -> None:
            tx.close_attempt(self.run.id, step.name, self.run.attempt, "failed", failure.message,
                             failure=failure.to_json(), progress=progress or None)
            incident["failures"] = tx.count_failure(self.run.id, f"step:{step.name}", reached)

        self._move(f"fail_{failure.state}", failure.message, also=rows, incident=incident)
        write_incident(self.home / self.config.logging.directory, self.run, incident)

    def _answer_failure(self) -> None:
        """The default answer, until a rule knows better: back off, at most so often without progress."""
        incident = self.run.incident or {}
        failures, allowed = int(incident.get("failures", 1)), self.config.automation.max_attempts_without_progress
        if failures < allowed:
            seconds = delay(failures, self.config.automation.backoff.initial, self.config.automation.backoff.max)
            self._move("back_off", f"try {failures + 1} of {allowed} in {seconds:.0f} s", known={"budget_left": True},
                       next_retry_at=time.time() + seconds)
            return
        self._move("give_up", f"{failures} attempts without progress", next_retry_at=None)
        self.notify("critical", f"SO8T needs you: {self.run.step}", str(incident.get("message", "")))

    def _wait_for_retry(self) -> None:
        remaining = (self.run.next_retry_at or 0.0) - time.time()
        # A clock that was set back would make this wait for as long as it went back.
        if remaining <= 0 or remaining > 2 * self.config.automation.backoff.max:
            self._move("retry", "the wait is over", known={"retry_due": True}, next_retry_at=None)
            return
        self._sleep(min(remaining, 1.0))

    def _sleep(self, seconds: float) -> None:
        """Wait, answering signals and operators within half a second and keeping the lease."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.signals.wait(min(left, 0.5))
            self._beat()
            self._obey()

    # -- operators and signals --------------------------------------------------------------------------------------

    def _obey(self) -> None:
        """Take up what an operator asked for, then leave if a signal asked to."""
        for request in pending(self.store, self.run.id):
            self._grant(request)
        if self.signals.requested:
            reason = f"stopped: {self.signals.requested}"
            if not self.run_says(reason) and self.run.state in (*WORKING, "waiting_for_resources", "backing_off"):
                self._move("interrupt", reason)
            raise Stopped(EXIT_STOPPED, f"{reason}; `so8t resume` goes on")

    def run_says(self, reason: str) -> bool:
        """Is this already the last line of the history?"""
        with self.store.reader() as reader:
            last = views.history(reader, self.run.id, last=1)
        return bool(last) and last[-1]["reason"] == reason

    def _grant(self, request: Request) -> None:
        live = self.commits.live(self.run.id)
        with self.store.fenced(self.lease.epoch, self.lease.seconds) as tx:
            self.run, outcome = finish(tx, self.run, self.steps, request, live)
        self.log(f"{request.kind} by {request.operator} ({request.reason}): {outcome}")
        self.reporter.entered(self.run, f"{request.kind} by {request.operator}: {request.reason}")
