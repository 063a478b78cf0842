"""The answer to a failure: one incident, one decision, its actions, and then the wait, a pause or a person."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from so8t_fsm import config, journal, recovery
from so8t_fsm.actions import Interrupted, Scene
from so8t_fsm.backoff import delay
from so8t_fsm.errors_log import write_incident
from so8t_fsm.events import Event, Failure
from so8t_fsm.handle import RunHandle
from so8t_fsm.incidents import Incident, arbitrate
from so8t_fsm.rules.decide import Decision, Ledgers, decide
from so8t_fsm.schema import incident as incident_table
from so8t_fsm.schema import run as run_table
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


def open_incident(tx: Tx, handle: RunHandle, seen: Sequence[Event], diagnosis: Diagnosis,
                  stored: Collection[Event] = ()) -> int:
    """Write the incident of the attempt that just failed, and what speaks of it.  Returns its number.

    Of what the child printed only the evidence is kept, the rest is in its log.  ``stored`` was kept when it was seen.
    """
    found, run = diagnosis.incident, handle.run
    evidence = {id(event) for _, event in found.evidence} | {id(found.event)} if found else set()
    known = {id(event) for event in stored}
    for event in seen:
        if id(event) not in known and (event.source != "log" or event.file is not None or id(event) in evidence):
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
               incident_table.c.status.in_(journal.LIVE))
        .values(status=status, closed_at=now()))


# Ledgers ------------------------------------------------------------------------------------------------------------


def ledgers_of(run: Run) -> Ledgers:
    """Both ledgers of a run, as its row has them."""
    return Ledgers.from_json((run.ledgers or {}).get("recovery", {}))


def write_ledgers(tx: Tx, run: Run, ledgers: Ledgers, furthest: Mapping[str, float] | None = None) -> Run:
    """Keep both ledgers, and how far each step has come, with the run.  Returns its row."""
    kept = {**(run.ledgers or {}), "recovery": ledgers.to_json()}
    if furthest is not None:
        kept["furthest"] = dict(furthest)
    tx.connection.execute(sa.update(run_table).where(run_table.c.id == run.id).values(ledgers=kept))
    return replace(run, ledgers=kept)


def forgive(tx: Tx, run: Run) -> Run:
    """A person said: try again.  Every budget begins anew; the run's total stays.  Returns the run's row."""
    tx.observe_progress(run.id, str(run.step), None)
    return write_ledgers(tx, run, ledgers_of(run).forgiven())


def observe_progress(tx: Tx, handle: RunHandle, step: str, position: float | None) -> None:
    """The work has come further than ever before (None: the step is done): what it cost until here is forgotten."""
    furthest = dict((handle.run.ledgers or {}).get("furthest", {}))
    if position is None:
        furthest.pop(step, None)
    elif position > furthest.get(step, float("-inf")):
        furthest[step] = position
    else:
        return
    ledgers = ledgers_of(handle.run)
    if ledgers.rules or ledgers.roots:
        ledgers = ledgers.progressed(handle.rules.current(), time.time())
    handle.run = write_ledgers(tx, handle.run, ledgers, furthest)


# The answer ---------------------------------------------------------------------------------------------------------


def scene_of(handle: RunHandle, by: str) -> Scene:
    """Where the actions of an answer act."""
    step = handle.step
    assert step is not None

    def beat() -> None:
        handle.beat()
        if handle.signals.requested:
            raise Interrupted(handle.signals.requested)

    return Scene(handle.store, handle.home, handle.run, handle.commits, handle.values(), step.state, step.name, by,
                 (handle.lease.epoch, handle.lease.seconds), beat)


def facts_of(handle: RunHandle) -> dict[str, Any]:
    """What ``when`` may ask: every setting by its dotted name, the step and the attempt."""
    return {**config.flatten(handle.values()), "step": handle.run.step, "attempt": handle.run.attempt}


def decided(handle: RunHandle, incident: Incident, ledgers: Ledgers, observe_only: bool = False) -> Decision:
    """What the rules say now."""
    return decide(handle.rules.current(), incident, facts_of(handle), ledgers, time.time(), chance=random.random(),
                  observe_only=observe_only, longest=handle.config.automation.backoff.max)


@dataclass
class Answer:
    """The answer to the failure state the run is in; safe to begin again after a crash at any point."""

    handle: RunHandle

    def give(self) -> None:
        """Decide once, carry out once, then leave the failure state."""
        handle = self.handle
        # A runner that was killed right after the failure's commit had no time for it.
        write_incident(handle.home / handle.config.logging.directory, handle.run, handle.run.incident or {})
        number = (handle.run.incident or {}).get("id")
        decision = self._decision(int(number)) if number is not None else None
        if decision is not None and decision["escalate"]:
            self._ask_a_person(decision["escalate"], decision["to"], decision["notify"])
        elif number is not None and decision is not None and not decision["observe_only"]:
            self._recover(int(number), decision)
        else:
            self._default(decision)

    def _decision(self, number: int) -> dict[str, Any] | None:
        """The stored decision, or a new one, stored together with what it costs; None: no rule knows the failure."""
        handle = self.handle
        with handle.store.read() as connection:
            kept = journal.get_incident(connection, number)
        detail = kept.detail if kept else {}
        if detail.get("decision"):
            return dict(detail["decision"])
        if not detail.get("incident"):
            return None
        ledgers = ledgers_of(handle.run)
        made = decided(handle, Incident.from_json(detail["incident"]), ledgers, handle.observe_only)
        with handle.fenced() as tx:
            recovery.store_decision(tx, number, made.to_json())
            handle.run = write_ledgers(tx, handle.run, ledgers.spent(made, time.time()))
        return made.to_json()

    def _recover(self, number: int, decision: Mapping[str, Any]) -> None:
        handle, rule = self.handle, decision["rule"]
        scene = scene_of(handle, f"recovery rule {rule}")
        try:
            done = recovery.carry_out(scene, number, decision["actions"], handle.say)
        except Interrupted:
            return  # the loop looks why, and the next runner goes on here
        stuck = next((action for action in done if action.needs_person), None)
        if stuck is None:
            words = "; ".join(action.words for action in done if action.status == "done") or "nothing to do but wait"
            self._wait(decision["wait_seconds"], f"rule {rule}, {decision['attempt']} of {decision['of']}: {words}")
        elif stuck.name == "pause":
            self._ask_a_person(f"rule {rule}: {stuck.words}", "paused", ["warning"])
        else:
            self._ask_a_person(f"rule {rule}: {stuck}", notify=decision["notify"])

    def _default(self, decision: Mapping[str, Any] | None) -> None:
        """Where no rule answers (or only looks on): back off, at most so often without progress."""
        handle, automation = self.handle, self.handle.config.automation
        if decision is not None:
            names = ", ".join(action["name"] for action in decision["actions"]) or "nothing"
            handle.say(f"observing only: rule {decision['rule']} would have done: {names}")
        failures = int((handle.run.incident or {}).get("failures", 1))
        allowed = automation.max_attempts_without_progress
        if failures < allowed:
            seconds = delay(failures, automation.backoff.initial, automation.backoff.max)
            self._wait(seconds, f"try {failures + 1} of {allowed}")
        else:
            self._ask_a_person(f"{failures} attempts without progress")

    def _wait(self, seconds: float, reason: str) -> None:
        handle = self.handle
        handle.move("back_off", f"{reason}; again in {seconds:.0f} s", known={"budget_left": True},
                    incident={**(handle.run.incident or {}), "wait": seconds}, next_retry_at=time.time() + seconds)

    def _ask_a_person(self, why: str, to: str = "needs_attention", notify: Sequence[str] = ()) -> None:
        handle, paused = self.handle, to == "paused"
        incident = {**(handle.run.incident or {}), "escalated": why}
        handle.move("pause" if paused else "give_up", why, incident=incident, next_retry_at=None,
                    also=lambda tx: close_incidents(tx, handle.run.id, str(handle.run.step), "escalated"))
        title = "SO8T is paused" if paused else "SO8T needs you"
        for severity in notify or ("critical",):
            handle.notify(severity, f"{title}: {handle.run.step}", f"{incident.get('message', '')}\n{why}".strip())
