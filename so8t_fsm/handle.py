"""The run as the runner that holds the lease may change it: read the row, plan, commit.

The loop, the attempts and the answers to failures share one of these; nothing else writes while a run is under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from so8t_fsm import host, registry, runs, stopping
from so8t_fsm.commits import Commits
from so8t_fsm.config import Config
from so8t_fsm.ears import Ears
from so8t_fsm.holder import own_identity
from so8t_fsm.lease import Lease
from so8t_fsm.rulebook import Rulebook
from so8t_fsm.states import WORKING, Facts, Refused, plan
from so8t_fsm.step import Step
from so8t_fsm.store import KEEP, Run, Store, Tx


class Reporter(Protocol):
    """Where a person watches: a terminal, a log, or nothing."""

    def say(self, message: str) -> None: ...

    def progress(self, step: str, progress: dict[str, Any]) -> None: ...

    def entered(self, run: Run, reason: str) -> None: ...


@dataclass
class RunHandle:
    """One adopted run.

    Attributes:
        run: its row as this runner last wrote it.
        config: the snapshot it started with; overrides are in :meth:`values`.
        log: writes one line to ``logs/complete_pipeline_<run>.log``.
        notify: severity, title, body; to whoever the configuration names.
        rules: the recovery rules as they are now.
        observe_only: failures are diagnosed and answers decided, but no action is done.
        ears: what other programs write into the logs while a step runs.
    """

    store: Store
    lease: Lease
    home: Path
    run: Run
    config: Config
    reporter: Reporter
    signals: stopping.StopSignals
    log: Callable[[str], None]
    notify: Callable[[str, str, str], None]
    rules: Rulebook
    observe_only: bool = False
    steps: list[type[Step]] = field(init=False)
    commits: Commits = field(init=False)
    who: str = field(init=False)
    ears: Ears = field(init=False)
    _beat_at: float = 0.0

    def __post_init__(self) -> None:
        self.steps = registry.pipeline(self.run.steps)
        self.commits = Commits(self.store, self.home)
        self.ears = Ears(self.home / self.config.logging.directory, self.rules.current)
        self.who = f"runner {own_identity()[0]}@{host.host_name()}"

    @property
    def step(self) -> type[Step] | None:
        """The step the run is at."""
        return next((step for step in self.steps if step.name == self.run.step), None)

    def values(self) -> dict[str, Any]:
        """The settings as they are now: the snapshot under the overrides."""
        return runs.effective(self.store, self.run)

    def say(self, message: str) -> None:
        """Tell the person who watches, and the log."""
        self.log(message)
        self.reporter.say(message)

    def move(self, trigger: str, reason: str, *, step: str | None = KEEP, known: dict[str, Any] | None = None,
             also: Callable[[Tx], None] | None = None, **columns: Any) -> None:
        """Plan a transition and commit it, together with what ``also`` writes, in one fenced transaction.

        Raises:
            Fenced, Conflict: another runner took over, or the row is not what this one last wrote.
        """
        current = self.step
        planned = plan(self.run.state, trigger, Facts(step_state=current.state if current else None, **(known or {})))
        if isinstance(planned, Refused):
            raise RuntimeError(str(planned))
        with self.fenced() as tx:
            if also:
                also(tx)
            self.run = tx.transition(self.run, planned, who=self.who, reason=reason, step=step, **columns)
        self._beat_at = time.monotonic()
        self.log(f"{planned.source} -> {planned.dest}: {reason}")
        self.reporter.entered(self.run, reason)

    def fenced(self) -> Any:
        """A writing transaction of this runner; it renews the lease."""
        return self.store.fenced(self.lease.epoch, self.lease.seconds)

    def beat(self, progress: dict[str, Any] | None = None) -> None:
        """Renew the lease, and keep the running attempt's progress, once per heartbeat."""
        if time.monotonic() - self._beat_at < self.config.automation.heartbeat_seconds:
            return
        with self.fenced() as tx:
            if progress and self.run.step:
                tx.update_attempt(self.run.id, self.run.step, self.run.attempt, progress=progress)
        self._beat_at = time.monotonic()

    def tick(self, _read: int) -> None:
        """:meth:`beat`, as hashing calls it."""
        self.beat()

    def go_past(self, step: type[Step], reason: str, also: Callable[[Tx], None] | None = None) -> None:
        """Move on to the next step, which may work in the same state."""
        position = self.steps.index(step)
        following = self.steps[position + 1] if position + 1 < len(self.steps) else None
        same = following is not None and following.state == step.state
        self.move("next_step" if same else "advance", reason, step=following.name if following else None,
                  known={"step_done": True}, also=also, attempt=0, incident=None, next_retry_at=None,
                  **({} if same else self.ending()))

    def ending(self) -> dict[str, Any]:
        """The columns that are written with the last transition of all."""
        return {"finished_at": time.time()} if self.run.state == WORKING[-1] else {}
