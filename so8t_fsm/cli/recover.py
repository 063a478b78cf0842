"""``recover``: the answer to a failure, shown first and then done, without waiting for a runner."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from so8t_fsm import answer, lease, recovery, rescue, service
from so8t_fsm.cli.common import emit, find_home
from so8t_fsm.cli.reporters import reporter
from so8t_fsm.commands import CommandRefused
from so8t_fsm.handle import Reporter, RunHandle
from so8t_fsm.reader import database_url, sqlite_path
from so8t_fsm.rulebook import Rulebook
from so8t_fsm.runlog import open_log
from so8t_fsm.statedir import open_state
from so8t_fsm.states import FAILURES
from so8t_fsm.stopping import StopSignals
from so8t_fsm.store import Run, Store, now

LEASE_SECONDS = 60.0
NOBODY = lease.Lease(0, LEASE_SECONDS)
"""A claim that nobody ever held: what would write under it is refused."""
EXIT_PERSON = 78


@click.command()
@click.option("--run", "run_id", metavar="ID", help="Which run. Default: the unfinished one.")
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan and what was done as JSON.")
@click.pass_context
def recover(ctx: click.Context, run_id: str | None, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Answer the failure a run stands at: show what the rules would do, ask, do it.

    For a run that no runner is driving. What was used up of the budgets is forgiven, because a person has looked.
    Afterwards `so8t resume` goes on.

    Example: so8t recover --dry-run
    """
    home = find_home(ctx.obj)
    with ExitStack() as stack:
        store = _open(home)
        stack.callback(store.close)
        run = _chosen(store, run_id)
        snapshot = service.snapshot_of(run)
        held = NOBODY
        write: Callable[[str], None] = _forget
        if dry_run:
            _nobody_runs(store)
        else:
            held = _take(store)
            stack.callback(lease.release, store, held)
            write, close = open_log(home, run.id, snapshot.logging)
            stack.callback(close)
            with store.fenced(held.epoch, held.seconds) as tx:
                # Only now nobody else can have changed it since.
                run = _answerable(tx.adopt(run))
        watching = _Silent() if as_json else stack.enter_context(reporter(False))
        handle = RunHandle(store, held, home, run, snapshot, watching, StopSignals(), write,
                           lambda *_: None, Rulebook(home, watching.say))
        return _recover(handle, dry_run, yes, as_json)


def _open(home: Path) -> Store:
    path = sqlite_path(database_url(home))
    if path is not None and not path.exists():
        raise CommandRefused("there is no run yet; `so8t resume` starts one")
    return open_state(home)


def _chosen(store: Store, run_id: str | None) -> Run:
    run = store.run(run_id) if run_id else store.latest_run(unfinished=True)
    if run is None:
        raise CommandRefused(f"there is no run {run_id!r}; `so8t history --runs` lists them" if run_id
                             else "every run is completed: there is nothing to recover from")
    return _answerable(run)


def _answerable(run: Run) -> Run:
    if run.state not in (*FAILURES, "needs_attention", "backing_off") or not (run.incident or {}).get("id"):
        hint = "; `so8t resume` goes on" if run.state == "paused" else ""
        raise CommandRefused(f"run {run.id} is {run.state}: there is nothing to recover from{hint}")
    return run


def _take(store: Store) -> lease.Lease:
    try:
        return lease.acquire(store, LEASE_SECONDS)
    except lease.AlreadyRunning as error:
        raise CommandRefused(f"{error}, and it recovers by itself") from error


def _nobody_runs(store: Store) -> None:
    with store.read() as connection:
        holder = lease.holder(connection)
    if holder is not None and holder.alive(now()):
        raise CommandRefused(f"a runner is at work (process {holder.pid} on {holder.host}), and it recovers by itself")


def _recover(handle: RunHandle, dry_run: bool, yes: bool, as_json: bool) -> int:
    found = rescue.rescue(handle)
    if found is None:
        raise CommandRefused("no rule knows this failure; mend the cause and run `so8t resume --retry`")
    rule, actions, escalate = found.decision["rule"], found.decision["actions"], found.decision["escalate"]
    scene = answer.scene_of(handle, f"so8t recover, rule {rule}")
    plan = [{"action": entry["name"], "would": intent.words, "skip": intent.skip} for entry in actions
            for intent in (recovery.plan(scene, entry["name"], entry["arguments"]),)]
    told = {"run": handle.run.id, "state": found.incident.state, "rule": rule, "plan": plan, "done": None,
            "escalate": escalate}
    if not as_json:
        _show(told, str((handle.run.incident or {}).get("message", "")))
    if escalate is not None or dry_run:
        if as_json:
            emit(told)
        return EXIT_PERSON if escalate is not None else 0
    if not yes:
        click.confirm("Do it?", abort=True, err=as_json)
    done = recovery.carry_out(scene, rescue.take_up(handle, found), actions, handle.say)
    stuck = next((action for action in done if action.needs_person), None)
    rescue.conclude(handle, stuck, f"so8t recover, rule {rule}", service.operator())
    if as_json:
        emit({**told, "escalate": stuck.words if stuck else None,
              "done": [{"action": action.name, "status": action.status, "words": action.words} for action in done]})
    elif stuck is None:
        click.echo("`so8t resume` goes on")
    return EXIT_PERSON if stuck else 0


def _show(told: dict[str, Any], message: str) -> None:
    click.echo(f"{told['state']}: {message}")
    click.echo(f"rule {told['rule']}" + (f": {told['escalate']}" if told["escalate"] else ""))
    for entry in told["plan"]:
        click.echo(f"  {entry['action']}: {entry['would']}" + (" (nothing to do)" if entry["skip"] else ""))


def _forget(_line: str) -> None:
    """A dry run leaves no line in the log either."""


class _Silent(Reporter):
    """For --json: what happened is told once, at the end."""

    def say(self, message: str) -> None: ...

    def progress(self, step: str, progress: dict[str, Any]) -> None: ...

    def entered(self, run: Run, reason: str) -> None: ...
