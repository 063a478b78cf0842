"""The states and the transition table.  Pure: no I/O, no clock, no current state.

`transitions` is used as a table only: the machine is built once without a model, so there is no second place where a
state could live beside the database row (docs/decisions/0001).  ``plan`` looks an edge up and evaluates its guards
over plain facts; whoever called it commits the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from transitions import Machine

WORKING = (
    "collecting", "preprocessing", "training", "integrating", "evaluating", "uploading", "cleaning_up",
)
FAILURES = (
    "out_of_memory", "disk_full", "network_failed", "hub_refused", "dependency_missing", "subprocess_failed",
    "data_invalid", "diverged", "stalled", "device_failed", "crashed",
)
WAITING = ("waiting_for_resources", "backing_off")
PERSON = ("paused", "needs_attention")
STATES = ("idle", *WORKING, "completed", *FAILURES, *WAITING, *PERSON)
FINAL = ("completed",)


@dataclass(frozen=True)
class Facts:
    """What the guards look at.  Gathered by the caller, never by the table."""

    step_state: str | None = None
    """The working state of the step the run is at."""
    step_done: bool = False
    resources_ok: bool = False
    budget_left: bool = False
    retry_due: bool = False


GUARDS = {
    "step_done": "the step's artefact is committed, or the step is not part of this pipeline",
    "resources_ok": "disk, memory and network that the step needs are there",
    "resources_missing": "something the step needs is missing",
    "budget_left": "attempts without progress are left",
    "retry_due": "the time of the next attempt has come",
    **{f"at_{state}": f"the run's step belongs to {state}" for state in WORKING},
}


def check(guard: str, facts: Facts) -> bool:
    """Evaluate one guard by name."""
    if guard.startswith("at_"):
        return facts.step_state == guard[3:]
    if guard == "resources_missing":
        return not facts.resources_ok
    return bool(getattr(facts, guard))


def _edges() -> list[dict[str, object]]:
    def edge(trigger: str, source: str, dest: str, *conditions: str) -> dict[str, object]:
        return {"trigger": trigger, "source": source, "dest": dest, "conditions": list(conditions)}

    table = [edge("start", "idle", WORKING[0])]
    for here, following in zip(WORKING, (*WORKING[1:], "completed"), strict=True):
        table += [
            edge("begin", here, here, f"at_{here}"),
            edge("advance", here, following, "step_done"),
            edge("next_step", here, here, "step_done"),
            edge("wait", here, "waiting_for_resources", "resources_missing"),
            edge("interrupt", here, here),
            edge("resources_ready", "waiting_for_resources", here, f"at_{here}", "resources_ok"),
            edge("retry", "backing_off", here, f"at_{here}", "retry_due"),
        ]
        table += [edge(f"fail_{failure}", here, failure) for failure in FAILURES]
        table += [edge("resume", person, here, f"at_{here}") for person in PERSON]
    for failure in FAILURES:
        table += [edge("back_off", failure, "backing_off", "budget_left"), edge("give_up", failure, "needs_attention")]
    table += [edge("interrupt", waiting, waiting) for waiting in WAITING]
    table += [edge("pause", state, "paused") for state in (*WORKING, *FAILURES, *WAITING)]
    # A damaged artefact sends the run back to the step that made it, from wherever it is.
    order = {state: i for i, state in enumerate(WORKING)}
    for source in (*WORKING, *FAILURES, *WAITING):
        table += [
            edge("roll_back", source, dest, f"at_{dest}")
            for dest in WORKING if order[dest] <= order.get(source, len(WORKING))
        ]
    return table


TRANSITIONS = _edges()
TRIGGERS = tuple(dict.fromkeys(str(t["trigger"]) for t in TRANSITIONS))


@dataclass(frozen=True)
class Edge:
    trigger: str
    source: str
    dest: str
    guards: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A transition that may be committed.  ``overridden`` is empty except for one forced by an operator."""

    trigger: str
    source: str
    dest: str
    overridden: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """Why a trigger leads nowhere from a state: the guards that failed, or none when there is no such edge."""

    trigger: str
    source: str
    failing: tuple[str, ...]

    def __str__(self) -> str:
        if not self.failing:
            return f"nothing called {self.trigger!r} leads out of {self.source!r}"
        return f"{self.trigger!r} is refused in {self.source!r}: not true that " + ", nor that ".join(
            GUARDS[guard] for guard in self.failing
        )


@cache
def table() -> Machine:
    """The `transitions` machine: a table without a model."""
    return Machine(
        model=None, states=list(STATES), transitions=TRANSITIONS, initial=None, auto_transitions=False, send_event=True,
    )


@cache
def edges() -> tuple[Edge, ...]:
    """Every edge as the library understood it."""
    return tuple(
        Edge(str(name), str(t.source), str(t.dest), tuple(str(c.func) for c in t.conditions))
        for name, event in table().events.items() for found in event.transitions.values() for t in found
    )


@cache
def _by_trigger() -> dict[str, dict[str, list[Edge]]]:
    found: dict[str, dict[str, list[Edge]]] = {trigger: {} for trigger in TRIGGERS}
    for edge in edges():
        found[edge.trigger].setdefault(edge.source, []).append(edge)
    return found


def plan(state: str, trigger: str, facts: Facts) -> Plan | Refused:
    """The transition that ``trigger`` means in ``state``: the first edge whose guards all hold.

    Raises:
        KeyError: no such trigger exists in the whole table (a programming error).
    """
    failing: tuple[str, ...] = ()
    for edge in _by_trigger()[trigger].get(state, ()):
        failed = tuple(guard for guard in edge.guards if not check(guard, facts))
        if not failed:
            return Plan(trigger, state, edge.dest)
        # Name the guards of the edge that belongs to this step, not those of its six siblings.
        if not failing or not any(guard.startswith("at_") for guard in failed):
            failing = failed
    return Refused(trigger, state, failing)


def plan_force(state: str, dest: str, facts: Facts) -> Plan | Refused:
    """What an operator's ``force-transition`` would override.  ``completed`` is never left."""
    if state in FINAL or dest not in STATES:
        return Refused("force", state, ())
    direct = [e for e in edges() if e.source == state and e.dest == dest]
    if not direct:
        return Plan("force", state, dest, (f"no edge leads from {state} to {dest}",))
    broken = min((tuple(g for g in e.guards if not check(g, facts)) for e in direct), key=len)
    return Plan("force", state, dest, tuple(GUARDS[g] for g in broken))
