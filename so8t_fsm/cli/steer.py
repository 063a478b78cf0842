"""``pause`` and ``force-transition``: the commands with which a person interferes, audited."""

from __future__ import annotations

import click

from so8t_fsm import lease, registry
from so8t_fsm.cli.common import emit, find_home
from so8t_fsm.commands import CommandRefused, Request, add, finish, outcome, plan_forced
from so8t_fsm.commits import Commits
from so8t_fsm.service import operator
from so8t_fsm.statedir import open_state
from so8t_fsm.store import Run, Store

PATIENCE = 60.0
LEASE_SECONDS = 30.0


@click.command("force-transition")
@click.argument("state")
@click.option("--reason", required=True, help="Why; kept in the history with your name.")
@click.option("--step", help="The step to land on, where the state has several.")
@click.option("--run", "run_id", metavar="ID", help="Which run. Default: the unfinished one.")
@click.option("--force-missing", is_flag=True, help="Go there even if earlier steps have committed nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def force_transition(
    ctx: click.Context, state: str, reason: str, step: str | None, run_id: str | None, force_missing: bool, yes: bool,
    as_json: bool,
) -> int:
    """Move the run to STATE by hand, overriding the guards.

    Shows what it would override and asks. A living runner stops its step first (with a checkpoint) and goes on from
    the new state; without one the move is committed here and `so8t resume` goes on. A step that is committed already
    is done again.

    Example: so8t force-transition training --reason "new data by hand" --yes
    """
    if not reason.strip():
        raise click.UsageError("--reason must say something: it is what the history keeps")
    store = open_state(find_home(ctx.obj))
    try:
        run = _run(store, run_id)
        steps = registry.pipeline(run.steps)
        step = registry.resolve(step, run.steps) if step else None
        live = Commits(store, find_home(ctx.obj)).live(run.id)
        forced = plan_forced(run, steps, live, state, step, force_missing)
        if not as_json:
            click.echo(f"run {run.id}: {run.state} -> {state}" + (f" (step {forced.step})" if forced.step else ""))
            for overridden in forced.plan.overridden or ("nothing: the table allows it",):
                click.echo(f"  overrides: {overridden}")
        if not yes:
            click.confirm("Do it?", abort=True)
        request = Request("force", {"state": state, "step": step, "force_missing": force_missing}, operator(), reason)
        answer = _submit(store, Commits(store, find_home(ctx.obj)), run, request)
        if as_json:
            emit({"run": run.id, "from": run.state, "to": state, "step": forced.step,
                  "overridden": list(forced.plan.overridden), "outcome": answer})
        else:
            click.echo(answer)
        return 2 if answer.startswith("refused") else 0
    finally:
        store.close()


@click.command()
@click.option("--reason", default="paused by hand", show_default=True, help="Why; kept in the history.")
@click.option("--run", "run_id", metavar="ID", help="Which run. Default: the unfinished one.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def pause(ctx: click.Context, reason: str, run_id: str | None, as_json: bool) -> int:
    """Stop the run at a checkpoint and keep it stopped until `so8t resume`.

    Example: so8t pause --reason "I want to play tonight"
    """
    home = find_home(ctx.obj)
    store = open_state(home)
    try:
        run = _run(store, run_id)
        answer = _submit(store, Commits(store, home), run, Request("pause", {}, operator(), reason))
        if as_json:
            emit({"run": run.id, "outcome": answer})
        else:
            click.echo(answer)
        return 2 if answer.startswith("refused") else 0
    finally:
        store.close()


def _run(store: Store, run_id: str | None) -> Run:
    run = store.run(run_id) if run_id else store.latest_run(unfinished=True) or store.latest_run()
    if run is None:
        raise CommandRefused(f"there is no run {run_id!r}" if run_id else "there is no run yet; `so8t resume` starts one")
    return run


def _submit(store: Store, commits: Commits, run: Run, request: Request) -> str:
    """Do it here when no runner is alive, else leave it to the runner and wait for its answer."""
    try:
        held = lease.acquire(store, LEASE_SECONDS)
    except lease.AlreadyRunning:
        number = add(store, run.id, request)
        return outcome(store, number, PATIENCE) or "asked for: the runner has not answered yet, see `so8t history`"
    try:
        live = commits.live(run.id)
        with store.fenced(held.epoch, held.seconds) as tx:
            _, answer = finish(tx, tx.adopt(run), registry.pipeline(run.steps), request, live)
        return answer
    finally:
        lease.release(store, held)
