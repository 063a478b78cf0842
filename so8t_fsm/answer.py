"""The answer to a failure: one incident, one decision, its actions, and then the wait, a pause or a person."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from so8t_fsm import config, journal, recovery
from so8t_fsm.actions import Scene
from so8t_fsm.backoff import delay
from so8t_fsm.events import Event, Failure
from so8t_fsm.handle import RunHandle
from so8t_fsm.incidents import Incident, arbitrate
from so8t_fsm.rules.decide import Decision, Ledgers, decide
from so8t_fsm.schema import incident as incident_table
from so8t_fsm.schema import run as run_table
from so8t_fsm.states import FAILURES
from so8t_fsm.store import Run, Tx, now


@dataclass(frozen=True)
class Diagnosis:
    """Why an attempt failed: what a rule says, else what the exit alone says."""

    state: str
    message: str
    incident: Incident | None


def diagnose(handle: RunHandle, seen: Sequence[Event], failure: Failure) -> Diagnosis:
    """Arbitrate the events of an attempt; without a rule that knows them, the failure speaks for itself."""
    found = arbitrate(handle.rules.current(), seen)
    if found is None:
        return Diagnosis(failure.state, failure.message, None)
    if found.event.source in ("exception", "exit", "silence"):
        return Diagnosis(found.state, failure.message, found)
    return Diagnosis(found.state, found.event.text.strip().splitlines()[0][:500], found)


def open_incident(tx: Tx, handle: RunHandle, seen: Sequence[Event], diagnosis: Diagnosis) -> int:
    """Write the incident of the attempt that just failed, and what speaks of it.  Returns its number."""
    found, run = diagnosis.incident, handle.run
    evidence = {id(event) for _, event in found.evidence} | {id(found.event)} if found else set()
    for event in seen:
        if event.source != "log" or id(event) in evidence:
            journal.add_event(tx.connection, run.id, event)
    return journal.open_incident(
        tx.connection, run.id, run.step, run.attempt, state=diagnosis.state, rule=found.rule if found else None,
        severity=found.severity if found else "warning",
        detail={"message": diagnosis.message, **({"incident": found.to_json()} if found else {})},
    ).id


def close_incidents(tx: Tx, run_id: str, step: str, status: str) -> None:
    """The incidents of a step that are still being recovered from have come to an end."""
    tx.connection.execute(
        sa.update(incident_table)
        .where(incident_table.c.run_id == run_id, incident_table.c.step == step,
               incident_table.c.status.in_(("open", "recovering")))
        .values(status=status, closed_at=now()))


def ledgers_of(handle: RunHandle) -> Ledgers:
    return Ledgers.from_json((handle.run.ledgers or {}).get("recovery", {}))


def write_ledgers(tx: Tx, handle: RunHandle, ledgers: Ledgers, furthest: Mapping[str, float] | None = None) -> None:
    """Keep both ledgers with the run."""
    kept = {**(handle.run.ledgers or {}), "recovery": ledgers.to_json()}
    if furthest is not None:
        kept["furthest"] = dict(furthest)
    tx.connection.execute(sa.update(run_table).where(run_table.c.id == handle.run.id).values(ledgers=kept))
    handle.run = type(handle.run)(**{**handle.run.__dict__, "ledgers": kept})


def forgive(tx: Tx, current: Run) -> None:
    """A person said: try again.  Both ledgers begin anew; the run's total stays."""
    kept = current.ledgers or {}
    fresh = {**kept, "recovery": Ledgers.from_json(kept.get("recovery", {})).forgiven().to_json()}
    tx.connection.execute(sa.update(run_table).where(run_table.c.id == current.id).values(ledgers=fresh))


def observe_progress(tx: Tx, handle: RunHandle, step: str, position: float | None) -> None:
    """The work has come further than ever before (None: the step is done): what it cost until here is forgotten."""
    furthest = dict((handle.run.ledgers or {}).get("furthest", {}))
    if position is None:
        furthest.pop(step, None)
    elif position > furthest.get(step, float("-inf")):
        furthest[step] = position
    else:
        return
    write_ledgers(tx, handle, ledgers_of(handle).progressed(handle.rules.current(), time.time()), furthest)


def scene_of(handle: RunHandle, by: str) -> Scene:
    """Where the actions of an answer act."""
    step = handle.step
    assert step is not None
    return Scene(handle.store, handle.home, handle.run, handle.commits, handle.values(), step.state, step.name, by,
                 (handle.lease.epoch, handle.lease.seconds), handle.beat)


def facts_of(handle: RunHandle) -> dict[str, Any]:
    """What ``when`` may ask: every setting by its dotted name, the step and the attempt."""
    return {**config.flatten(handle.values()), "step": handle.run.step, "attempt": handle.run.attempt}


def stored_incident(handle: RunHandle, number: int) -> Incident | None:
    """The incident as it was arbitrated; None when no rule knew it."""
    with handle.store.read() as connection:
        kept = journal.get_incident(connection, number)
    told = kept.detail.get("incident") if kept else None
    return Incident.from_json(told) if told else None


def reopen(handle: RunHandle, number: int, incident: Incident, decision: Decision) -> int:
    """A second answer to the same failure, asked for by a person, is an incident of its own."""
    with handle.fenced() as tx:
        journal.close_incident(tx.connection, number, "escalated")
        fresh = journal.open_incident(
            tx.connection, handle.run.id, handle.run.step, handle.run.attempt, state=incident.state, rule=incident.rule,
            severity=incident.severity, detail={"incident": incident.to_json(), "again": number})
        recovery.store_decision(tx, fresh.id, decision.to_json())
        forgive(tx, handle.run)
    return fresh.id


def go_on(handle: RunHandle, reason: str, who: str) -> None:
    """After a person's recovery: from the failure, or from having asked for a person, back to work."""
    state = handle.step.state if handle.step else None
    handle.who = who
    if handle.run.state in FAILURES:
        handle.move("back_off", reason, known={"budget_left": True}, next_retry_at=time.time())
    elif handle.run.state == "needs_attention":
        handle.move("resume", reason, incident=None, next_retry_at=None)
    elif state is not None:
        handle.move("retry", reason, known={"retry_due": True}, next_retry_at=None)


@dataclass
class Answer:
    """The answer to the failure state the run is in; safe to begin again after a crash at any point."""

    handle: RunHandle

    def give(self) -> None:
        """Decide once, carry out once, then leave the failure state."""
        number = (self.handle.run.incident or {}).get("id")
        decision = self._decision(int(number)) if number is not None else None
        if number is None or decision is None or not (decision["escalate"] or not decision["observe_only"]):
            self._default(decision)
        elif decision["escalate"]:
            self._ask_a_person(int(number), decision)
        else:
            self._recover(int(number), decision)

    def _decision(self, number: int) -> dict[str, Any] | None:
        """The stored decision, or a new one, stored together with what it costs."""
        handle = self.handle
        with handle.store.read() as connection:
            detail = connection.execute(
                sa.select(incident_table.c.detail).where(incident_table.c.id == number)).scalar() or {}
        if detail.get("decision"):
            return dict(detail["decision"])
        if not detail.get("incident"):
            return None
        ledgers = ledgers_of(handle)
        made = decide(handle.rules.current(), Incident.from_json(detail["incident"]), facts_of(handle), ledgers, time.time(),
                      chance=random.random(), observe_only=handle.observe_only)
        stored = {**made.to_json(), "retry_after": detail["incident"].get("retry_after")}
        with handle.fenced() as tx:
            recovery.store_decision(tx, number, stored)
            write_ledgers(tx, handle, ledgers.spent(made, time.time()))
        return stored

    def _recover(self, number: int, decision: dict[str, Any]) -> None:
        handle = self.handle
        done = recovery.carry_out(scene_of(handle, f"recovery rule {decision['rule']}"), number, decision["actions"], handle.say)
        person = next((action for action in done if action.needs_person), None)
        if person is not None and person.name == "pause":
            handle.move("pause", f"rule {decision['rule']}: {person.words}", also=lambda tx: close_incidents(
                tx, handle.run.id, str(handle.run.step), "escalated"))
            handle.notify("warning", f"SO8T is paused: {handle.run.step}", person.words)
        elif person is not None:
            self._ask_a_person(number, {**decision, "escalate": f"{person.name}: {person.words}"})
        else:
            wait = float(decision["wait_seconds"])
            if not decision.get("retry_after"):
                wait = min(wait, handle.config.automation.backoff.max)
            words = "; ".join(action.words for action in done if action.status == "done") or "nothing to do but wait"
            self._wait(wait, f"rule {decision['rule']}, {decision['attempt']} of {decision['of']}: {words}")

    def _wait(self, seconds: float, reason: str) -> None:
        handle = self.handle
        incident = {**(handle.run.incident or {}), "wait": seconds}
        handle.move("back_off", f"{reason}; again in {seconds:.0f} s", known={"budget_left": True}, incident=incident,
                    next_retry_at=time.time() + seconds)

    def _ask_a_person(self, number: int, decision: dict[str, Any]) -> None:
        handle = self.handle
        to_pause = decision.get("to") == "paused"
        incident = {**(handle.run.incident or {}), "escalated": decision["escalate"]}
        handle.move("pause" if to_pause else "give_up", decision["escalate"], incident=incident, next_retry_at=None,
                    also=lambda tx: close_incidents(tx, handle.run.id, str(handle.run.step), "escalated"))
        for severity in decision.get("notify") or ("critical",):
            handle.notify(severity, f"SO8T needs you: {handle.run.step}",
                          f"{incident.get('message', '')}\n{decision['escalate']}")

    def _default(self, decision: dict[str, Any] | None) -> None:
        """Where no rule answers (or only looks on): back off, at most so often without progress."""
        handle, automation = self.handle, self.handle.config.automation
        if decision is not None:
            names = ", ".join(action["name"] for action in decision["actions"]) or "nothing"
            handle.say(f"observing only: rule {decision['rule']} would have done: {names}")
        incident = handle.run.incident or {}
        failures, allowed = int(incident.get("failures", 1)), automation.max_attempts_without_progress
        if failures < allowed:
            seconds = delay(failures, automation.backoff.initial, automation.backoff.max)
            self._wait(seconds, f"try {failures + 1} of {allowed}")
            return
        handle.move("give_up", f"{failures} attempts without progress", next_retry_at=None)
        handle.notify("critical", f"SO8T needs you: {handle.run.step}", str(incident.get("message", "")))
