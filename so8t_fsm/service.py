"""``resume`` from the first check to the exit code: open, lease, choose, repair, report, supervise."""

from __future__ import annotations

import getpass
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from so8t_fsm import commits as commits_module
from so8t_fsm import config, host, lease, notify, registry, reserve, runs
from so8t_fsm.answer import forgive
from so8t_fsm.handle import Reporter, RunHandle
from so8t_fsm.rulebook import Rulebook
from so8t_fsm.runlog import open_log
from so8t_fsm.schema import attempt as attempt_table
from so8t_fsm.statedir import open_state, unusable
from so8t_fsm.states import WORKING, Facts, Plan, Refused, plan
from so8t_fsm.store import Fenced, Run, StateFull, StateUnusable, Store, is_damage, is_disk_trouble
from so8t_fsm.supervisor import EXIT_OK, EXIT_PERSON, EXIT_STOPPED, Supervisor

LEASE_SECONDS = 30.0
DEFAULT_CONFIG = "configs/complete_so8t_pipeline.yaml"


@dataclass(frozen=True)
class Wish:
    """What the caller of ``resume`` asks for.

    Attributes:
        config: the file a new run starts from, or None for the default.
        sets: ``section.key=value`` for a new run.
        new: start a new run even if one is unfinished.
        run: go on with this run.
        retry: a person looked at the incident; try again with a fresh budget.
        unattended: called at logon, not by a person: a paused run stays paused.
        observe_only: failures are diagnosed, but nothing is done about them except trying again.
        rerun: (origin run, step): start a run linked to the origin that reuses the commits before the step.
    """

    config: Path | None = None
    sets: Sequence[str] = ()
    new: bool = False
    run: str | None = None
    retry: bool = False
    unattended: bool = False
    rerun: tuple[str, str] | None = None
    observe_only: bool = False


class Unusable(Exception):
    """The wish can't be granted; one line, exit code 2."""


def operator() -> str:
    """Who types: the account's name and the host's."""
    try:
        return f"{getpass.getuser()}@{host.host_name()}"
    except (OSError, KeyError):
        return f"somebody@{host.host_name()}"


def resume(home: Path, wish: Wish, reporter: Reporter, url: str | None = None) -> int:
    """Go on with a run, or start one.  Returns the exit code.

    Raises:
        Unusable, config.ConfigError, registry.StepUnknown, StateUnusable, StateTooNew: one line each, nothing changed.
    """
    began = time.time()
    while True:
        try:
            return _resume_once(home, wish, reporter, url)
        except StateFull as error:
            if not reserve.give_up(home / "state"):
                reporter.say(str(error))
                return EXIT_STOPPED
            reporter.say("the disk is full: the reserve is given up, so that the run can write down how it goes on")
            wish = _still(home, wish, url, began)


def _still(home: Path, wish: Wish, url: str | None, began: float) -> Wish:
    """What is left of a wish: the new run that it asked for may be there already."""
    try:
        store = open_state(home, url)
    except StateUnusable:
        return wish
    try:
        newest = store.latest_run()
    finally:
        store.close()
    made = newest is not None and newest.created_at >= began
    return replace(wish, new=False, rerun=None, run=newest.id) if made and newest is not None else wish


def _resume_once(home: Path, wish: Wish, reporter: Reporter, url: str | None) -> int:
    """:func:`resume`, which may be called again when it raises StateFull."""
    store = open_state(home, url, check=True, say=reporter.say)
    try:
        return _resume(store, home, wish, reporter)
    except Fenced as error:
        reporter.say(f"{error}; this one stops without having written anything more")
        return EXIT_STOPPED
    except (SQLAlchemyError, OSError) as error:
        if not (isinstance(error, SQLAlchemyError) or is_disk_trouble(error)) or is_damage(error):
            raise
        trouble = unusable(error, Path(store.url.database) if store.sqlite and store.url.database else None)
        if isinstance(trouble, StateFull):
            raise trouble from error
        reporter.say(str(trouble))
        return EXIT_STOPPED
    finally:
        store.close()


def _resume(store: Store, home: Path, wish: Wish, reporter: Reporter) -> int:
    with host.StopSignals() as signals:
        # The configuration is read before anything is created, so that a typo leaves no trace.
        existing = _existing(store, wish)
        loaded = _load(home, wish, existing, reporter)
        if existing is not None and existing.state == "completed":
            again = _again(store, home, existing, loaded, reporter)
            if again is None:
                reporter.say(f"run {existing.id} is completed; nothing to do")
                return EXIT_OK
            wish, existing = replace(wish, rerun=(existing.id, again)), None
        known = loaded or (snapshot_of(existing) if existing else None)
        seconds = known.automation.lease_seconds if known else LEASE_SECONDS
        try:
            held = lease.acquire(store, seconds)
        except lease.AlreadyRunning as error:
            reporter.say(f"{error}; nothing to do")
            return EXIT_OK
        try:
            current = existing or _create(store, home, wish, loaded, reporter)
            with store.fenced(held.epoch, held.seconds) as tx:
                current = tx.adopt(current)
            return _Resumption(store, home, wish, reporter, held, current, loaded, signals).go()
        finally:
            signals.saved.set()
            _release(store, held)


def _release(store: Store, held: lease.Lease) -> None:
    try:
        lease.release(store, held)
    except SQLAlchemyError:
        logging.getLogger("so8t.machine").warning("the lease could not be given back; it ends by itself")


def _existing(store: Store, wish: Wish) -> Run | None:
    if wish.run:
        found = store.run(wish.run)
        if found is None:
            raise Unusable(f"there is no run {wish.run!r}; `so8t history --runs` lists them")
        return found
    if wish.new or wish.rerun:
        return None
    unfinished = store.latest_run(unfinished=True)
    if unfinished is None and wish.config is None:
        return store.latest_run()
    if unfinished is None:
        # The same configuration twice: the second time there is nothing left to do.
        last = store.latest_run()
        if last is not None and last.config_path and Path(last.config_path) == (wish.config or Path()).absolute():
            return last
    return unfinished


def _load(home: Path, wish: Wish, existing: Run | None, reporter: Reporter) -> config.Config | None:
    """The configuration as the files are now; for an existing run whose file is gone, None."""
    if existing is not None:
        own = Path(existing.config_path) if existing.config_path else None
        if wish.config is not None and wish.config != own and not wish.run:
            reporter.say(f"run {existing.id} from {own} is unfinished and goes on; `--new` starts one from {wish.config}")
        if own is None or (not own.exists() and wish.config != own):
            return None
        return config.load(own, registry.sections, sets=wish.sets, home=home)
    if wish.rerun is not None and wish.config is None:
        return None
    return config.load(wish.config or home / DEFAULT_CONFIG, registry.sections, sets=wish.sets, home=home)


def _again(store: Store, home: Path, existing: Run, loaded: config.Config | None, reporter: Reporter) -> str | None:
    """The step from which a completed run is to be done again because its file has changed; None to leave it."""
    if loaded is None:
        return None
    live = commits_module.Commits(store, home).live(existing.id)
    changed = runs.stale_steps(existing, live, runs.overlaid(loaded.values, runs.overrides(store, existing.id)))
    for stale in changed:
        reporter.say(f"the configuration has changed since; {stale}")
    if changed and loaded.automation.on_config_change == "rerun":
        return changed[0].step
    if changed:
        reporter.say(f"`so8t rerun --from {changed[0].step}` starts a run with the new settings")
    return None


def snapshot_of(run: Run) -> config.Config:
    """The configuration a run started with."""
    return config.Config.from_json(json.dumps(run.config), registry.sections(run.steps))


def _create(store: Store, home: Path, wish: Wish, loaded: config.Config | None, reporter: Reporter) -> Run:
    path = str((wish.config or home / DEFAULT_CONFIG).absolute())
    if wish.rerun is None:
        assert loaded is not None
        return runs.create(store, loaded, path)
    origin_id, step = wish.rerun
    origin = store.run(origin_id)
    assert origin is not None
    if wish.config is None:
        path = origin.config_path or path
        loaded = config.load(path, registry.sections, sets=wish.sets, home=home) if Path(path).exists() else None
    loaded = loaded or snapshot_of(origin)
    reused = runs.before(origin.steps, step)
    live = commits_module.Commits(store, home).live(origin.id)
    for stale in runs.stale_steps(origin, {k: v for k, v in live.items() if k in reused}, loaded.values):
        reporter.say(f"taken over although it would come out differently: {stale}")
    return runs.create(store, loaded, path, parent=origin.id, reuse={"run": origin.id, "steps": reused})


@dataclass
class _Resumption:
    """One run, adopted under a lease: what has to be put right before the loop may start."""

    store: Store
    home: Path
    wish: Wish
    reporter: Reporter
    held: lease.Lease
    run: Run
    loaded: config.Config | None
    signals: host.StopSignals

    def go(self) -> int:
        snapshot = snapshot_of(self.run)
        commits = commits_module.Commits(self.store, self.home)
        self._close_cut_off_attempts()
        changed = self._report_changes(commits)
        if changed and self.loaded is not None and self.loaded.automation.on_config_change == "rerun":
            return self._rerun(changed)
        if not self._let_in():
            return EXIT_PERSON if self.run.state == "needs_attention" else EXIT_STOPPED
        away = commits.away(row.path for row in commits.live(self.run.id).values())
        if away:
            self.reporter.say(f"{away[0]} is not there, and committed files are; connect it, then `so8t resume`")
            return EXIT_STOPPED
        self._verify(commits)
        rules = Rulebook(self.home, self.reporter.say)
        write, close = open_log(self.home, self.run.id, snapshot.logging)
        secrets = self.loaded or snapshot
        urls = [url.get_secret_value() for url in secrets.notifications.urls]
        if secrets.notifications.desktop:
            urls.append(notify.desktop_url())
        try:
            handle = RunHandle(
                self.store, self.held, self.home, self.run, snapshot, self.reporter, self.signals, write,
                lambda severity, title, body: self._notify(urls, severity, title, body, snapshot),
                rules, self.wish.observe_only,
            )
            with host.keep_awake():
                code = Supervisor(handle).drive()
            if code == EXIT_OK:
                self._notify(urls, "info", f"SO8T: run {self.run.id} is completed", "", snapshot)
            return code
        finally:
            close()

    def _notify(self, urls: list[str], severity: str, title: str, body: str, snapshot: config.Config) -> None:
        level: notify.Severity = severity if severity in ("warning", "critical") else "info"  # type: ignore[assignment]
        for failed in notify.notify(urls, title, body, level, snapshot.notifications.min_severity):
            self.reporter.say(failed)

    def _move(self, planned: Plan | Refused, reason: str, who: str, **columns: Any) -> None:
        if isinstance(planned, Refused):
            raise Unusable(str(planned))
        with self.store.fenced(self.held.epoch, self.held.seconds) as tx:
            self.run = tx.transition(self.run, planned, who=who, reason=reason, **columns)
        self.reporter.entered(self.run, reason)

    def _facts(self) -> Facts:
        # Without a step the run is past its last one, on the way through the states that are left.
        state = next((s.state for s in registry.pipeline(self.run.steps) if s.name == self.run.step), WORKING[-1])
        return Facts(step_state=state)

    def _close_cut_off_attempts(self) -> None:
        """A running attempt without its runner was cut off: kill what is left of it and say why it ended."""
        with self.store.read() as connection:
            rows = connection.execute(sa.select(attempt_table).where(
                attempt_table.c.run_id == self.run.id, attempt_table.c.status == "running")).mappings().all()
        for row in rows:
            if row["pid"] and row["host"] == host.host_name():
                host.kill_orphan(row["pid"], row["pid_started"] or 0.0)
            rebooted = _boot_time() > row["started_at"]
            reason = "the computer was restarted" if rebooted else "its runner was killed"
            with self.store.fenced(self.held.epoch, self.held.seconds) as tx:
                tx.close_attempt(self.run.id, row["step"], row["n"], "cut_off", reason)
            if self.run.state in WORKING:
                self._move(plan(self.run.state, "interrupt", Facts()),
                           f"{row['step']}, attempt {row['n']}, was cut off: {reason}", operator())

    def _report_changes(self, commits: commits_module.Commits) -> list[runs.Stale]:
        if self.loaded is None:
            return []
        # What recovery changed is no change of the file: a step that it helped through is not stale.
        wanted = runs.overlaid(self.loaded.values, runs.overrides(self.store, self.run.id))
        changed = runs.stale_steps(self.run, commits.live(self.run.id), wanted)
        for stale in changed:
            self.reporter.say(f"the configuration has changed since; {stale}")
        pending = config.diff(self.run.config["values"], self.loaded.values)
        if changed and self.loaded.automation.on_config_change == "keep":
            self.reporter.say("kept: this run goes on with the settings it started with "
                              f"(`so8t rerun --from {changed[0].step}` starts one with the new ones)")
        elif pending and not changed and self.run.rev > 0:
            self.reporter.say("the configuration has changed since; this run keeps: " + ", ".join(str(c) for c in pending))
        return changed

    def _rerun(self, changed: list[runs.Stale]) -> int:
        """`automation.on_config_change: rerun`: this run is left as it is, a new one reuses what is still right."""
        assert self.loaded is not None
        first = changed[0].step
        if self.run.state not in ("completed", "paused", "needs_attention"):
            self._move(plan(self.run.state, "pause", self._facts()), "superseded: its configuration changed", operator())
        fresh = runs.create(self.store, self.loaded, self.run.config_path, parent=self.run.id,
                            reuse={"run": self.run.id, "steps": runs.before(self.run.steps, first)})
        self.reporter.say(f"run {fresh.id} starts from {first} with the new settings")
        with self.store.fenced(self.held.epoch, self.held.seconds) as tx:
            self.run = tx.adopt(fresh)
        return self.go()

    def _verify(self, commits: commits_module.Commits) -> None:
        """Verify every commit; a damaged one is put aside and the run goes back to the step that made it."""
        live = commits.live(self.run.id)
        beat = time.monotonic()

        def tick(_read: int) -> None:
            nonlocal beat
            if time.monotonic() - beat > self.held.seconds / 4:
                beat = time.monotonic()
                with self.store.fenced(self.held.epoch, self.held.seconds):
                    pass

        damaged = commits.damaged(live, tick)
        if not damaged:
            return
        for name, why in damaged.items():
            self.reporter.say(f"the commit of {name} is damaged and put aside: {why}")
            commits.set_aside(self.held.epoch, live[name])
        first = next(step for step in registry.pipeline(self.run.steps) if step.name in damaged)
        if self.run.step in runs.before(self.run.steps, first.name):
            return  # forced back to an earlier step, the run comes by the damaged one anyway
        self._move(plan(self.run.state, "roll_back", Facts(step_state=first.state)),
                   f"the commit of {first.name} is damaged; it runs again", operator(), step=first.name, attempt=0,
                   incident=None, next_retry_at=None)

    def _let_in(self) -> bool:
        """May the loop go on from a state in which a person was asked for?"""
        if self.run.state == "paused":
            if self.wish.unattended:
                self.reporter.say(f"run {self.run.id} is paused; `so8t resume` goes on")
                return False
            if "escalated" in (self.run.incident or {}):
                # A rule paused it and a person answered: what was tried before counts no more.
                self._forgive()
            self._move(plan("paused", "resume", self._facts()), "resumed", operator(), incident=None)
        elif self.run.state == "needs_attention":
            if not self.wish.retry:
                incident = self.run.incident or {}
                self.reporter.say(
                    f"run {self.run.id} needs a person: {self.run.step}: {incident.get('message', '')}; "
                    "put it right and run `so8t resume --retry`")
                return False
            self._forgive()
            self._move(plan("needs_attention", "resume", self._facts()), "a person says: try again", operator(),
                       incident=None)
        return True

    def _forgive(self) -> None:
        with self.store.fenced(self.held.epoch, self.held.seconds) as tx:
            self.run = forgive(tx, self.run)


def _boot_time() -> float:
    import psutil

    return psutil.boot_time()
