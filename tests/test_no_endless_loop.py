"""Whatever the rules say and whatever fails: a run comes to its end, to a person, or waits for a time that will come."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage import QUICK, Stage, begin, fail, rule, rule_set

from so8t_fsm import answer
from so8t_fsm.events import describe, exception_event
from so8t_fsm.incidents import arbitrate
from so8t_fsm.rules import RuleSet
from so8t_fsm.rules.decide import HOUR, Ledgers, decide

KINDS = {
    "MemoryError": ("out_of_memory", MemoryError), "KeyError": ("crashed", KeyError),
    "ValueError": ("data_invalid", ValueError), "ZeroDivisionError": ("diverged", ZeroDivisionError),
    "ConnectionError": ("network_failed", ConnectionError),
}
"""Types of exceptions, and the state that a rule says they belong to."""

kinds = st.sampled_from(sorted(KINDS))
actions = st.sampled_from([
    "restart_step", "reduce_batch_size", "retry_with_backoff", "rollback_checkpoint", "lower_learning_rate",
    "enable_gradient_checkpointing", "reduce_dataset_size", "shorten_sequence"])
whens = st.sampled_from([{}, {"training.batch_size": {"gt": 1}}, {"training.gradient_checkpointing": False}])
waits = st.sampled_from([0.01, 1.0, 600.0])


@st.composite
def rule_bodies(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Several rules for the same exceptions too: a rule that gives up must not hand over to its sibling for ever."""
    return [
        rule(f"r{i}", draw(st.lists(actions, min_size=1, max_size=3, unique=True)), kind,
             draw(st.sampled_from([KINDS[kind][0], "crashed"])), max_attempts=draw(st.integers(1, 50)),
             reset_after=draw(waits), backoff={"initial": draw(waits), "max": 600},
             status=draw(st.sampled_from(["stable", "stable", "experimental"])),
             when=draw(whens),
             escalate={"to": draw(st.sampled_from(["needs_attention", "paused"])), "notify": ["critical"]})
        for i, kind in enumerate(draw(st.lists(kinds, min_size=1, max_size=6)))]


limits = st.fixed_dictionaries({
    "same_root_without_progress": st.integers(1, 20), "per_hour": st.integers(1, 20), "per_run": st.integers(1, 40)})


def made(bodies: list[dict[str, Any]], bounds: dict[str, int], place: Path) -> RuleSet:
    return rule_set(place, *bodies, **bounds)


@pytest.fixture(scope="module")
def place() -> Any:
    folder = Path(QUICK or ".") / f"so8t-loops-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rule_bodies(), limits, st.lists(st.tuples(kinds, st.booleans(), st.floats(0, 2 * HOUR)), min_size=1, max_size=30),
       st.data())
def test_the_ledgers_end_every_sequence(
    place: Path, bodies: list[dict[str, Any]], bounds: dict[str, int], story: list[tuple[str, bool, float]],
    data: st.DataObject,
) -> None:
    """Failures without end, with progress now and then at first: decided until somebody is asked."""
    rules, ledgers, now = made(bodies, bounds, place / "rules"), Ledgers(), 1_000_000.0
    begun: list[float] = []
    since: dict[str, int] = {}
    for number in range(bounds["per_run"] + 2):
        kind, progress, passes = story[number] if number < len(story) else (story[-1][0], False, 0.0)
        incident = arbitrate(rules, [exception_event(describe(KINDS[kind][1]("x")), "training", 1)])
        if incident is None:
            return  # nobody's failure: the machine's own count of attempts is tested below
        facts = {"training.batch_size": data.draw(st.integers(1, 8)), "training.gradient_checkpointing": False}
        decision = decide(rules, incident, facts, ledgers, now, chance=0.5)
        if not decision.acts:
            assert decision.escalate and decision.to in ("needs_attention", "paused") and decision.notify
            return
        assert decision.attempt <= decision.of and decision.wait_seconds >= 0
        ledgers = ledgers.spent(decision, now)
        ledgers = Ledgers.from_json(json.loads(json.dumps(ledgers.to_json())))
        begun.append(now)
        since[incident.root] = since.get(incident.root, 0) + 1
        assert ledgers.total == len(begun) <= bounds["per_run"]
        # Whichever rules took turns: the ledger over all of them counts the cause.
        assert since[incident.root] <= bounds["same_root_without_progress"]
        now += decision.wait_seconds + passes
        assert sum(now - at < HOUR for at in begun) <= bounds["per_hour"], "an hour was overdrawn"
        if progress:
            ledgers, since = ledgers.progressed(rules, now), {}
    raise AssertionError(f"{len(begun)} recoveries, {bounds['per_run']} are allowed")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rule_bodies(), limits, st.lists(st.tuples(kinds, st.booleans()), min_size=1, max_size=12), st.integers(1, 4),
       st.booleans())
def test_the_machine_ends_every_sequence(
    place: Path, bodies: list[dict[str, Any]], bounds: dict[str, int], story: list[tuple[str, bool]], allowed: int,
    observe: bool,
) -> None:
    """The same through the machine's own answers, rows and transitions; failures that no rule knows among them."""
    home = place / "home"
    shutil.rmtree(home, ignore_errors=True)
    stage = Stage(home, made(bodies, bounds, place / "rules")).build(automation={"max_attempts_without_progress": allowed})
    most = bounds["per_run"] + allowed * (len(story) + 1)
    with stage.handle(observe) as handle:
        failures = furthest = 0
        while handle.run.state not in ("needs_attention", "paused", "completed"):
            if handle.run.state == "backing_off":
                assert handle.run.next_retry_at is not None
                handle.move("retry", "the wait is over", known={"retry_due": True}, next_retry_at=None)
                begin(handle)
            elif handle.run.state == "training":
                kind, progress = story[failures] if failures < len(story) else (story[-1][0], False)
                if progress:
                    furthest += 1
                    with handle.fenced() as tx:
                        tx.observe_progress(handle.run.id, "training", furthest)
                        answer.observe_progress(tx, handle, "training", furthest)
                fail(handle, KINDS[kind][1]("x"))
                failures += 1
                assert failures <= most, "it never ends"
            else:
                answer.Answer(handle).give()
        assert handle.run.state in ("needs_attention", "paused")
        total = (handle.run.ledgers or {}).get("recovery", {}).get("total", 0)
        assert total <= (0 if observe else bounds["per_run"])
    assert stage.told and {row["status"] for row in stage.rows(answer.incident_table)} <= {"escalated", "observed"}


def test_causes_that_take_turns_do_not_outrun_the_ledger(place: Path) -> None:
    """Two failures in turn, fifty attempts for each rule: the run's own limit is what ends it."""
    bodies = [rule("a", ["restart_step"], max_attempts=50),
              rule("b", ["restart_step"], "KeyError", "crashed", max_attempts=50)]
    bounds = {"same_root_without_progress": 40, "per_hour": 100, "per_run": 7}
    rules = made(bodies, bounds, place / "turns-rules")
    stage = Stage(place / "turns", rules).build()
    with stage.handle() as handle:
        for number in range(8):
            fail(handle, MemoryError() if number % 2 else KeyError("x"))
            answer.Answer(handle).give()
            if handle.run.state == "backing_off":
                handle.move("retry", "due", known={"retry_due": True}, next_retry_at=None)
                begin(handle)
        assert number == 7 and handle.run.state == "needs_attention"
        assert "7 recoveries in this run, 7 are allowed" in str((handle.run.incident or {})["escalated"])
