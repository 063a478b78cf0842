"""The transition table, walked from end to end: nothing can be stuck, and nothing can go round for ever."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from so8t_fsm import states
from so8t_fsm.states import (
    FAILURES,
    FINAL,
    GUARDS,
    PERSON,
    STATES,
    TRIGGERS,
    WAITING,
    WORKING,
    Edge,
    Facts,
    Plan,
    Refused,
    check,
    edges,
    plan,
    plan_force,
)

EVERY_FACT = [
    Facts(step, *flags) for step in (None, *WORKING) for flags in itertools.product((False, True), repeat=4)
]
ANY_FACT = st.sampled_from(EVERY_FACT)


def reachable(start: str, through: Iterable[Edge]) -> set[str]:
    """Every state that a path of at least one edge leads to."""
    found: set[str] = set()
    frontier = {start}
    through = list(through)
    while frontier:
        frontier = {e.dest for e in through if e.source in frontier} - found
        found |= frontier
    return found


def test_the_groups_make_up_the_states() -> None:
    assert sorted(STATES) == sorted({"idle", *WORKING, *FAILURES, *WAITING, *PERSON, *FINAL})
    assert len(STATES) == len(set(STATES))


def test_the_library_understood_the_table() -> None:
    """`transitions` keeps exactly the edges that were written, and adds none of its own."""
    written = {(t["trigger"], t["source"], t["dest"], tuple(t["conditions"])) for t in states.TRANSITIONS}  # type: ignore[arg-type]
    assert {(e.trigger, e.source, e.dest, e.guards) for e in edges()} == written
    assert set(states.table().events) == set(TRIGGERS)
    assert not states.table().models


def test_every_edge_joins_known_states_by_known_guards() -> None:
    for edge in edges():
        assert edge.source in STATES and edge.dest in STATES
        assert set(edge.guards) <= set(GUARDS)


def test_every_guard_can_hold_and_can_fail() -> None:
    for guard in GUARDS:
        assert {check(guard, facts) for facts in EVERY_FACT} == {True, False}, guard


@pytest.mark.parametrize("state", [s for s in STATES if s not in FINAL])
def test_every_state_reaches_the_end_and_a_person(state: str) -> None:
    """Nothing is a trap: the run can always be completed, and a person can always be asked."""
    found = reachable(state, edges())
    assert "completed" in found
    assert state in PERSON or found & set(PERSON)


@pytest.mark.parametrize("state", STATES)
def test_every_state_reaches_an_end_without_luck(state: str) -> None:
    """Even if no failure is ever forgiven (no budget), a state leads to `completed` or to a person."""
    spent = [e for e in edges() if "budget_left" not in e.guards and e.source not in PERSON]
    assert state in (*FINAL, *PERSON) or reachable(state, spent) & {*FINAL, *PERSON}


def test_no_edge_leaves_completed() -> None:
    assert not [e for e in edges() if e.source in FINAL]
    for trigger, facts in itertools.product(TRIGGERS, EVERY_FACT):
        assert isinstance(plan("completed", trigger, facts), Refused)


def test_only_the_last_step_reaches_completed() -> None:
    assert {(e.source, e.trigger, e.guards) for e in edges() if e.dest == "completed"} == {
        (WORKING[-1], "advance", ("step_done",))}


@pytest.mark.parametrize("working", WORKING)
def test_every_working_state_has_an_edge_to_every_failure(working: str) -> None:
    assert {e.dest for e in edges() if e.source == working and e.dest in FAILURES} == set(FAILURES)
    for failure in FAILURES:
        assert plan(working, f"fail_{failure}", Facts()) == Plan(f"fail_{failure}", working, failure)


@pytest.mark.parametrize("failure", FAILURES)
def test_no_failure_comes_back_without_a_budget(failure: str) -> None:
    """Every cycle through a failure spends budget, or passes a person, or a roll-back.

    A roll-back starts no recovery: only the beginning of `so8t resume` plans it, when a commit is damaged, and the
    ledger of the failing step stays as it was.
    """
    free = [e for e in edges() if "budget_left" not in e.guards and e.source not in PERSON and e.trigger != "roll_back"]
    assert failure not in reachable(failure, free)
    assert [e.dest for e in edges() if e.source == failure and e.trigger == "back_off"] == ["backing_off"]


def test_the_loop_never_rolls_back_by_itself() -> None:
    """The premise of the test above."""
    import inspect

    from so8t_fsm import supervisor

    assert "roll_back" not in inspect.getsource(supervisor)


def test_steps_only_advance_in_order() -> None:
    for here, following in itertools.pairwise((*WORKING, "completed")):
        assert [e.dest for e in edges() if e.trigger == "advance" and e.source == here] == [following]


@pytest.mark.parametrize("state", [*PERSON, *WAITING, *FAILURES])
def test_what_interrupted_a_step_leads_back_to_that_step_only(state: str) -> None:
    """Whatever the facts say otherwise, the way back is to the state of the run's own step."""
    for trigger, facts in itertools.product(("resume", "retry", "resources_ready", "roll_back"), EVERY_FACT):
        planned = plan(state, trigger, facts)
        if isinstance(planned, Plan):
            assert planned.dest == facts.step_state


def test_every_question_has_one_answer() -> None:
    """All states, triggers and facts: a plan follows an edge whose guards hold, a refusal names some that don't."""
    for state, trigger, facts in itertools.product(STATES, TRIGGERS, EVERY_FACT):
        mine = [e for e in edges() if e.source == state and e.trigger == trigger]
        answer = plan(state, trigger, facts)
        if isinstance(answer, Plan):
            assert any(e.dest == answer.dest and all(check(g, facts) for g in e.guards) for e in mine)
            assert answer.overridden == ()
        elif not mine:
            assert answer.failing == ()
        else:
            assert answer.failing and not any(check(g, facts) for g in answer.failing)
            assert any(set(answer.failing) <= set(e.guards) for e in mine)
            assert not any(all(check(g, facts) for g in e.guards) for e in mine)


@given(st.sampled_from(STATES), st.sampled_from(TRIGGERS), ANY_FACT)
def test_planning_is_pure(state: str, trigger: str, facts: Facts) -> None:
    before = dataclasses.asdict(facts)
    assert plan(state, trigger, facts) == plan(state, trigger, facts)
    assert dataclasses.asdict(facts) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.step_done = True  # type: ignore[misc]


def test_an_unknown_trigger_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        plan("idle", "to_completed", Facts())


def test_a_refusal_says_why_in_words() -> None:
    facts = Facts(step_state="training")
    refused = plan("waiting_for_resources", "resources_ready", facts)
    assert isinstance(refused, Refused)
    assert refused.failing == ("resources_ok",)  # not the guards of the edges to the other six steps
    assert GUARDS["resources_ok"] in str(refused)
    assert str(plan("idle", "retry", facts)) == "nothing called 'retry' leads out of 'idle'"


@given(st.sampled_from(STATES), st.sampled_from([*STATES, "nowhere", ""]), ANY_FACT)
def test_force_says_what_it_overrides(state: str, dest: str, facts: Facts) -> None:
    forced = plan_force(state, dest, facts)
    if state in FINAL or dest not in STATES:
        assert isinstance(forced, Refused)
        return
    assert isinstance(forced, Plan) and (forced.source, forced.dest, forced.trigger) == (state, dest, "force")
    direct = [e for e in edges() if (e.source, e.dest) == (state, dest)]
    if not direct:
        assert forced.overridden == (f"no edge leads from {state} to {dest}",)
    elif any(all(check(g, facts) for g in e.guards) for e in direct):
        assert forced.overridden == ()
    else:
        failing = [{GUARDS[g] for g in e.guards if not check(g, facts)} for e in direct]
        assert set(forced.overridden) in failing and len(forced.overridden) == min(map(len, failing))


@given(st.lists(st.tuples(st.sampled_from(TRIGGERS), ANY_FACT), max_size=60))
def test_no_walk_leaves_the_table(walk: list[tuple[str, Facts]]) -> None:
    """Whatever is asked in whatever order, a failure is left as often as there is budget for it, and by a person."""
    state = "idle"
    for trigger, facts in walk:
        answer = plan(state, trigger, facts)
        if isinstance(answer, Refused):
            continue
        if state in FAILURES and answer.dest == "backing_off":
            assert facts.budget_left
        if state in PERSON:
            assert trigger == "resume"
        assert state not in FINAL
        state = answer.dest
        assert state in STATES
