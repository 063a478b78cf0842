"""``recover``: the answer to a failure, shown first and then done, without waiting for a runner."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import click

from so8t_fsm import answer, lease, recovery, service, stopping
from so8t_fsm.cli.common import emit, find_home
from so8t_fsm.cli.reporters import reporter
from so8t_fsm.commands import CommandRefused
from so8t_fsm.handle import Reporter, RunHandle
from so8t_fsm.incidents import Incident
from so8t_fsm.rulebook import Rulebook
from so8t_fsm.rules.decide import Decision, Ledgers, decide
from so8t_fsm.statedir import open_state
from so8t_fsm.states import FAILURES
from so8t_fsm.store import Store

LEASE_SECONDS = 60.0


@click.command()
@click.option("--run", "run_id", metavar="ID", help="Which run. Default: the unfinished one.")
@click.option("--dry-run", is_flag=True, help="Show the plan and stop there.")
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
    store = open_state(home)
    try:
        run = store.run(run_id) if run_id else store.latest_run(unfinished=True)
        if run is None:
            raise CommandRefused("there is no unfinished run to recover")
        if run.state not in (*FAILURES, "needs_attention", "backing_off") or not (run.incident or {}).get("id"):
            raise CommandRefused(f"run {run.id} is {run.state}: there is no incident to recover from")
        held = lease.acquire(store, LEASE_SECONDS)
    except lease.AlreadyRunning as error:
        store.close()
        raise CommandRefused(f"{error}, and it recovers by itself") from error
    except BaseException:
        store.close()
        raise
    try:
        with reporter(as_json) as watching:
            with store.fenced(held.epoch, held.seconds) as tx:
                run = tx.adopt(run)
            handle = _handle(store, held, home, run, watching)
            return _recover(handle, dry_run, yes, as_json)
    finally:
        lease.release(store, held)
        store.close()


def _handle(store: Store, held: lease.Lease, home: Path, run: Any, watching: Reporter) -> RunHandle:
    snapshot = service.snapshot_of(run)
    write, _ = service.open_log(home / snapshot.logging.directory, run, snapshot)
    return RunHandle(store, held, home, run, snapshot, watching, stopping.StopSignals(), write,
                     lambda *_: None, Rulebook(home, watching.say))


def _recover(handle: RunHandle, dry_run: bool, yes: bool, as_json: bool) -> int:
    number = int((handle.run.incident or {})["id"])
    incident = answer.stored_incident(handle, number)
    if incident is None:
        raise CommandRefused("no rule knows this failure; mend the cause and run `so8t resume --retry`")
    decision = decide(handle.rules.current(), incident, answer.facts_of(handle), Ledgers(), time.time(), chance=random.random())
    scene = answer.scene_of(handle, f"so8t recover, rule {decision.rule}")
    actions = [action.to_json() for action in decision.actions]
    plan = [{"action": entry["name"], "would": intent.words, "skip": intent.skip}
            for entry, intent in zip(actions, recovery.dry_run(scene, actions), strict=True)]
    if not as_json:
        _show(incident, decision, plan)
    if decision.escalate is not None or dry_run:
        if as_json:
            emit({"run": handle.run.id, "rule": decision.rule, "plan": plan, "done": None, "escalate": decision.escalate})
        return 78 if decision.escalate is not None else 0
    if not yes:
        click.confirm("Do it?", abort=True)
    done = recovery.carry_out(scene, answer.reopen(handle, number, incident, decision), actions, handle.say)
    stuck = next((action for action in done if action.needs_person), None)
    if stuck is None:
        answer.go_on(handle, f"so8t recover, rule {decision.rule}", service.operator())
    if as_json:
        emit({"run": handle.run.id, "rule": decision.rule, "plan": plan, "escalate": stuck.words if stuck else None,
              "done": [{"action": a.name, "status": a.status, "words": a.words} for a in done]})
    else:
        click.echo(stuck.words if stuck else "`so8t resume` goes on")
    return 78 if stuck else 0


def _show(incident: Incident, decision: Decision, plan: list[dict[str, Any]]) -> None:
    click.echo(f"{incident.state}: {incident.event.text.splitlines()[0] if incident.event.text else incident.rule}")
    click.echo(f"rule {decision.rule}" + (f": {decision.escalate}" if decision.escalate else ""))
    for entry in plan:
        click.echo(f"  {entry['action']}: {entry['would']}" + (" (nothing to do)" if entry["skip"] else ""))


