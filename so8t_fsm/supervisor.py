"""The loop: what the state asks for is done, one thing at a time, until the run is over or somebody asks to stop.

It runs on the main thread, and through its handle it is the only writer of the run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from so8t_fsm import journal, reserve, resources, views
from so8t_fsm.answer import Answer
from so8t_fsm.attend import Attendance
from so8t_fsm.commands import Request, finish, pending
from so8t_fsm.commits import Artifact
from so8t_fsm.events import Event
from so8t_fsm.handle import RunHandle
from so8t_fsm.states import FAILURES, WORKING
from so8t_fsm.step import Step

EXIT_OK, EXIT_USAGE, EXIT_STOPPED, EXIT_PERSON = 0, 2, 75, 78

CLOCK_SLACK = 5.0
"""Seconds that a wait may seem longer than it was planned before the clock is taken to have been set back."""


class Stopped(Exception):
    """Leave the loop with an exit code; everything is committed."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Supervisor:
    """Drives one run to ``completed``, to a person, or to a requested stop."""

    handle: RunHandle

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
                self.handle.reporter.say(str(stopped))
            return stopped.code
        finally:
            self.handle.ears.close()

    def _one(self) -> None:
        run = self.handle.run
        if run.state == "idle":
            self.handle.move("start", "the run begins")
        elif run.state in WORKING:
            self._work()
        elif run.state in FAILURES:
            Answer(self.handle).give()
        elif run.state == "backing_off":
            self._wait_for_retry()
        elif run.state == "waiting_for_resources":
            self._wait_for_resources()
        elif run.state == "completed":
            raise Stopped(EXIT_OK, f"run {run.id} is completed")
        elif run.state == "paused":
            raise Stopped(EXIT_STOPPED, "paused; `so8t resume` goes on")
        else:
            incident = run.incident or {}
            raise Stopped(EXIT_PERSON, f"a person is needed: {incident.get('message', 'see `so8t history`')}")

    # -- working ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        handle, step = self.handle, self.handle.step
        if step is None or step.state != handle.run.state:
            handle.move("advance", f"no step of this run works in {handle.run.state}", known={"step_done": True},
                        **handle.ending())
            return
        live = handle.commits.live(handle.run.id)
        found = live.get(step.name)
        if found is not None and handle.commits.is_current(found, live):
            handle.go_past(step, f"{step.name} is committed already")
        elif not (found is None and self._reuse(step)) and self._guards_pass(step):
            self._attempt(step, live)

    def _attempt(self, step: type[Step], live: dict[str, Artifact]) -> None:
        reserve.hold(self.handle.home / "state")
        Attendance(self.handle, step).run(live)

    def _reuse(self, step: type[Step]) -> bool:
        """Take a step's commit over from the run this one was started from."""
        handle = self.handle
        wanted = handle.run.reuse or {}
        if step.name not in wanted.get("steps", ()):
            return False
        old = handle.commits.live(wanted["run"]).get(step.name)
        if old is None or handle.commits.damaged({step.name: old}, handle.tick):
            handle.say(f"{step.name}: nothing usable to take over from run {wanted['run']}; it runs again")
            return False
        handle.go_past(step, f"{step.name} taken over from run {old.run_id}", lambda tx: tx.add_artifact(
            handle.run.id, step.name, 0, old.path, old.identity, old.inputs, old.settings, old.reused_from or old.run_id,
        ))
        return True

    def _findings(self, step: type[Step]) -> list[resources.Finding]:
        handle, limits = self.handle, self.handle.config.resources
        needs = step().needs(handle.values(), handle.home, handle.commits.directory(handle.run.id, step.name))
        return resources.check(needs, resources.Limits(limits.min_free_disk, limits.min_ram, limits.min_vram))

    def _guards_pass(self, step: type[Step]) -> bool:
        findings = self._findings(step)
        for finding in findings:
            if not finding.ok and not finding.blocks:
                self.handle.say(finding.message)
        blocking = "; ".join(finding.message for finding in findings if finding.blocks)
        if blocking:
            self.handle.move("wait", blocking, incident={
                "state": "waiting_for_resources", "step": step.name, "message": blocking})
        return not blocking

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _wait_for_resources(self) -> None:
        step = self.handle.step
        assert step is not None
        if any(finding.blocks for finding in self._findings(step)):
            self._sleep(self.handle.config.resources.poll_interval)
        else:
            self.handle.move("resources_ready", "what was missing is there", known={"resources_ok": True}, incident=None)

    def _wait_for_retry(self) -> None:
        remaining = (self.handle.run.next_retry_at or 0.0) - time.time()
        planned = float((self.handle.run.incident or {}).get("wait") or self.handle.config.automation.backoff.max)
        # A clock that was set back would make this wait for as long as it went back.
        if remaining <= 0 or remaining > planned + CLOCK_SLACK:
            self.handle.move("retry", "the wait is over", known={"retry_due": True}, next_retry_at=None)
        else:
            self._sleep(min(remaining, 1.0))

    def _sleep(self, seconds: float) -> None:
        """Wait, answering signals and operators within half a second and keeping the lease; a moved run ends the wait."""
        until, rev = time.monotonic() + seconds, self.handle.run.rev
        while (left := until - time.monotonic()) > 0 and self.handle.run.rev == rev:
            self.handle.signals.wait(min(left, 0.5))
            self.handle.beat()
            self._obey()

    # -- operators and signals --------------------------------------------------------------------------------------

    def _obey(self) -> None:
        """Take up what an operator asked for, then leave if a signal asked to."""
        handle = self.handle
        for request in pending(handle.store, handle.run.id):
            self._grant(request)
        if handle.signals.requested:
            reason = f"stopped: {handle.signals.requested}"
            if not self._said(reason) and handle.run.state in (*WORKING, "waiting_for_resources", "backing_off"):
                handle.move("interrupt", reason)
            raise Stopped(EXIT_STOPPED, f"{reason}; `so8t resume` goes on")

    def _said(self, reason: str) -> bool:
        """Is this already the last line of the history?"""
        with self.handle.store.reader() as reader:
            last = views.history(reader, self.handle.run.id, last=1)
        return bool(last) and last[-1]["reason"] == reason

    def _grant(self, request: Request) -> None:
        handle = self.handle
        live = handle.commits.live(handle.run.id)
        with handle.fenced() as tx:
            handle.run, outcome = finish(tx, handle.run, handle.steps, request, live)
            said = f"{request.kind} by {request.operator}: {request.reason}"
            journal.add_event(tx.connection, handle.run.id, Event("operator", handle.run.step, text=said, at=time.time()))
        handle.log(f"{request.kind} by {request.operator} ({request.reason}): {outcome}")
        handle.reporter.entered(handle.run, f"{request.kind} by {request.operator}: {request.reason}")
