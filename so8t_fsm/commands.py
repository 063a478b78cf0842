"""What an operator may ask of a run: ``pause`` and ``force-transition``, with or without a living runner.

With one, the request is a row that the runner takes up between two breaths; without, the caller takes the lease for
a moment and commits it itself.  Both end in :func:`finish`, so both leave the same audited history row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from so8t_fsm.commits import Artifact
from so8t_fsm.registry import suggestion
from so8t_fsm.schema import artifact, command
from so8t_fsm.states import STATES, WORKING, Facts, Plan, Refused, plan, plan_force
from so8t_fsm.step import Step
from so8t_fsm.store import Run, Store, Tx, now


class CommandRefused(Exception):
    """The request can't be granted; the message says what it would need."""


@dataclass(frozen=True)
class Request:
    """One row of ``command``; ``id`` is None for a request that never was a row."""

    kind: str
    args: Mapping[str, Any]
    operator: str
    reason: str
    id: int | None = None


@dataclass(frozen=True)
class Forced:
    """What a force-transition would do: the move, the step it lands on, and what it overrides."""

    plan: Plan
    step: str | None
    missing: tuple[str, ...] = field(default=())


def add(store: Store, run_id: str, request: Request) -> int:
    """Leave a request for the runner.  Returns its number."""
    with store.write() as connection:
        result = connection.execute(sa.insert(command).values(
            run_id=run_id, kind=request.kind, args=dict(request.args), operator=request.operator,
            reason=request.reason, created_at=now(),
        ))
        key = result.inserted_primary_key
        assert key is not None
        return int(key[0])


def pending(store: Store, run_id: str) -> list[Request]:
    """Requests that nobody has taken up yet, oldest first."""
    with store.read() as connection:
        rows = connection.execute(
            sa.select(command).where(command.c.run_id == run_id, command.c.taken_at.is_(None)).order_by(command.c.id)
        ).mappings().all()
    return [Request(r["kind"], r["args"], r["operator"], r["reason"], r["id"]) for r in rows]


def outcome(store: Store, number: int, patience: float) -> str | None:
    """Wait for the runner's answer to a request, at most ``patience`` seconds."""
    until = time.monotonic() + patience
    while True:
        with store.read() as connection:
            found = connection.execute(sa.select(command.c.outcome).where(command.c.id == number)).scalar()
        if found is not None or time.monotonic() > until:
            return found
        time.sleep(0.1)


def plan_forced(
    run: Run, steps: Sequence[type[Step]], live: Mapping[str, Artifact], dest: str, step: str | None = None,
    force_missing: bool = False,
) -> Forced:
    """Work out a force-transition without doing it.

    Raises:
        CommandRefused: unknown state or step, a completed run, or commits that the destination needs are missing.
    """
    if dest not in STATES:
        raise CommandRefused(f"no state is called {dest!r}{suggestion(dest, STATES)}; states: {', '.join(STATES)}")
    names = [s.name for s in steps]
    if step is not None and step not in names:
        raise CommandRefused(f"this run has no step {step!r}{suggestion(step, names)}; steps: {', '.join(names)}")
    if run.state == "completed":
        raise CommandRefused(f"run {run.id} is completed and stays so; `so8t rerun --from STEP` starts a new one from it")
    if dest == "idle":
        raise CommandRefused("a run that has begun can't be idle again; `so8t resume --new` starts another")
    target = _target(run, steps, dest, step)
    following = names if dest == "completed" else names[: names.index(target)] if target in names else []
    missing = tuple(name for name in following if name not in live)
    if missing and (dest == "completed" or dest in WORKING) and not force_missing:
        raise CommandRefused(
            f"{dest} needs what {', '.join(missing)} would have committed; let {missing[0]} run, "
            "or add --force-missing to go on without it"
        )
    by_name = {s.name: s for s in steps}
    facts = Facts(step_state=by_name[target].state if target else None, step_done=not missing and dest not in WORKING)
    planned = plan_force(run.state, dest, facts)
    if isinstance(planned, Refused):
        raise CommandRefused(str(planned))
    lacking = tuple(f"without the commit of {name}" for name in missing)
    return Forced(Plan("force", planned.source, planned.dest, (*planned.overridden, *lacking)), target, missing)


def _target(run: Run, steps: Sequence[type[Step]], dest: str, step: str | None) -> str | None:
    if dest == "completed":
        return None
    if dest not in WORKING:
        return step or run.step or steps[0].name
    here = [s.name for s in steps if s.state == dest]
    if step is not None:
        if step not in here:
            raise CommandRefused(f"step {step!r} does not work in {dest}; there: {', '.join(here) or 'none'}")
        return step
    if not here:
        raise CommandRefused(f"no step of this run works in {dest}")
    return run.step if run.step in here else here[0]


def finish(
    tx: Tx, run: Run, steps: Sequence[type[Step]], request: Request, live: Mapping[str, Artifact],
) -> tuple[Run, str]:
    """Grant or refuse a request inside the runner's (or the operator's own) fenced transaction, and say so in its row.

    Returns the run as it is now and the answer in words.
    """
    try:
        run, answer = _pause(tx, run, request) if request.kind == "pause" else _force(tx, run, steps, request, live)
    except CommandRefused as refused:
        answer = f"refused: {refused}"
    if request.id is not None:
        tx.connection.execute(sa.update(command).where(command.c.id == request.id).values(taken_at=now(), outcome=answer))
    return run, answer


def _pause(tx: Tx, run: Run, request: Request) -> tuple[Run, str]:
    planned = plan(run.state, "pause", Facts())
    if isinstance(planned, Refused):
        raise CommandRefused(f"nothing to pause: the run is {run.state}")
    return tx.transition(run, planned, who=request.operator, reason=request.reason), "done: paused"


def _force(
    tx: Tx, run: Run, steps: Sequence[type[Step]], request: Request, live: Mapping[str, Artifact],
) -> tuple[Run, str]:
    args = request.args
    forced = plan_forced(run, steps, live, str(args["state"]), args.get("step"), bool(args.get("force_missing")))
    dest = forced.plan.dest
    if dest in WORKING and forced.step is not None and forced.step in live:
        # To force a committed step is to want it done again.
        tx.mark(artifact, run.id, forced.step, live[forced.step].n, status="superseded")
    if forced.step:
        tx.observe_progress(run.id, forced.step, None)
    columns: dict[str, Any] = {"incident": None, "next_retry_at": None, "step": forced.step, "attempt": 0}
    if dest == "backing_off":
        columns["next_retry_at"] = now()
    if dest == "completed":
        columns["finished_at"] = now()
    run = tx.transition(run, forced.plan, who=request.operator, reason=request.reason,
                        detail={"overridden": list(forced.plan.overridden)}, **columns)
    return run, f"done: {forced.plan.source} -> {dest}"

