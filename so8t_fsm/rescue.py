"""Answering a failure by hand (``so8t recover``): look what can be done, write down that it was begun, conclude it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from so8t_fsm import journal, recovery
from so8t_fsm.answer import close_incidents, decided, forgive, ledgers_of, write_ledgers
from so8t_fsm.handle import RunHandle
from so8t_fsm.incidents import Incident, arbitrate
from so8t_fsm.rules.decide import Decision, Ledgers
from so8t_fsm.schema import run as run_table
from so8t_fsm.states import FAILURES


@dataclass(frozen=True)
class Rescue:
    """What ``so8t recover`` is about to do.

    Attributes:
        kept: the incident that the run stands at.
        incident: as it is understood now.
        decision: what is to be done about it, as it is stored.
        made: the same, when it was decided just now; None when it was begun before and is only brought to its end.
    """

    kept: journal.Kept
    incident: Incident
    decision: Mapping[str, Any]
    made: Decision | None


def rescue(handle: RunHandle) -> Rescue | None:
    """Look what can be done about the failure a run stands at; None when no rule knows it.  Writes nothing.

    The budgets are taken to be whole, because a person has looked, and the rules to be those of now, because that
    person may just have written one.
    """
    with handle.store.read() as connection:
        kept = journal.get_incident(connection, int((handle.run.incident or {})["id"]))
        if kept is None:
            return None
        seen = journal.events_of(connection, kept.run_id, kept.step, kept.attempt)
    told, decision = kept.detail.get("incident"), kept.detail.get("decision")
    incident = arbitrate(handle.rules.current(), seen) or (Incident.from_json(told) if told else None)
    if incident is None:
        return None
    if decision and kept.status == "recovering" and not decision["escalate"]:
        return Rescue(kept, incident, decision, None)
    made = decided(handle, incident, Ledgers())
    return Rescue(kept, incident, made.to_json(), made)


def take_up(handle: RunHandle, found: Rescue) -> int:
    """Write down that a person began a rescue; from now on it is carried out once.  Returns the incident's number.

    What was escalated stays so: a second answer to the same failure is an incident of its own.
    """
    kept, run = found.kept, handle.run
    if found.made is None:
        return kept.id
    with handle.fenced() as tx:
        if kept.status != "open":
            journal.close_incident(tx.connection, kept.id, "escalated")
            kept = journal.open_incident(
                tx.connection, run.id, run.step, run.attempt, state=found.incident.state, rule=found.incident.rule,
                severity=found.incident.severity, detail={
                    "message": kept.detail.get("message", ""), "incident": found.incident.to_json(), "again": kept.id})
        recovery.store_decision(tx, kept.id, found.decision)
        run = forgive(tx, run)
        run = write_ledgers(tx, run, ledgers_of(run).spent(found.made, time.time()))
        pointer = {**(run.incident or {}), "id": kept.id}
        tx.connection.execute(sa.update(run_table).where(run_table.c.id == run.id).values(incident=pointer))
        handle.run = replace(run, incident=pointer)
    return kept.id


def conclude(handle: RunHandle, stuck: recovery.Done | None, reason: str, who: str) -> None:
    """After a person's recovery: back to work, or, where an action is stuck, to the person again."""
    handle.who = who
    state = handle.run.state
    if stuck is not None:
        with handle.fenced() as tx:
            close_incidents(tx, handle.run.id, str(handle.run.step), "escalated")
        if state in FAILURES:
            handle.move("give_up", f"{reason}: {stuck}", next_retry_at=None)
    elif state in FAILURES:
        handle.move("back_off", reason, known={"budget_left": True}, next_retry_at=time.time())
    elif state == "backing_off":
        handle.move("retry", reason, known={"retry_due": True}, next_retry_at=None)
    else:
        handle.move("resume", reason, next_retry_at=None)
