"""Rules as pure functions: matching, arbitration, decisions within budgets, layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from so8t_fsm.events import Event, describe, exception_event
from so8t_fsm.incidents import Incident, arbitrate
from so8t_fsm.rules import RulesError, heard, load_rules
from so8t_fsm.rules.conditions import Condition
from so8t_fsm.rules.decide import Ledgers, decide
from so8t_fsm.rules.doors import Gates
from so8t_fsm.rules.evidence import raised
from so8t_fsm.rules.gates import gate
from so8t_fsm.rules.load import OWN_STEPS, packaged_directory
from so8t_fsm.rules.match import matches
from so8t_fsm.rules.model import Action, Backoff, Escalate, Limits, Rule, RuleSet, Selection
from so8t_fsm.rules.selftest import run_tests
from so8t_fsm.rules.vocabulary import ACTIONS
from so8t_fsm.states import FAILURES


@pytest.fixture(scope="module")
def rules() -> RuleSet:
    return load_rules([packaged_directory()])


def log(*lines: str, step: str | None = "training") -> list[Event]:
    return [Event("log", step, 1, text, line=i) for i, text in enumerate(lines, 1)]


# -- the shipped rules ------------------------------------------------------------------------------------------------


def test_shipped_rules_pass_their_own_tests(rules: RuleSet) -> None:
    results = run_tests(rules)
    assert len(results) > 90 and not [result for result in results if result.problem]


def test_every_failure_state_has_an_answer_and_a_negative(rules: RuleSet) -> None:
    for state in FAILURES:
        mine = [rule for rule in rules.rules if rule.state == state]
        assert mine and all(rule.tests and rule.then for rule in mine), state
        assert any(test.expect is None for rule in mine for test in rule.tests), f"no negative for {state}"
        record = describe(RuntimeError("?")) | {"state": state}
        found = heard(rules, exception_event(record, "training"))
        assert found is not None and found.rule.state == state and found.declared


def test_every_action_of_the_vocabulary_has_defaults() -> None:
    for model in ACTIONS.values():
        assert json.dumps(model.model_validate({}).model_dump(mode="json")) is not None
    assert {a.name for rule in load_rules([packaged_directory()]).rules for a in rule.then} <= ACTIONS.keys()


def test_events_survive_storage() -> None:
    event = exception_event(describe(OSError(28, "No space left on device")), "training", 3, at=12.5)
    stored = json.loads(json.dumps(event.to_json()))
    assert Event.from_json({**stored, "of_a_newer_version": 1}) == event


# -- arbitration ------------------------------------------------------------------------------------------------------


def failed(error: BaseException) -> Event:
    return exception_event(describe(error), "training", 1)


def test_an_oom_with_a_failed_subprocess_is_an_oom(rules: RuleSet) -> None:
    import subprocess

    events = [*log("torch.OutOfMemoryError: CUDA out of memory.", "subprocess.CalledProcessError: Command 'x' returned "
                   "non-zero exit status 1."), failed(subprocess.CalledProcessError(1, "x")),
              Event("exit", "training", 1, exit_code=1)]
    incident = arbitrate(rules, events)
    assert incident is not None
    assert (incident.state, incident.rule, incident.event.line) == ("out_of_memory", "cuda-out-of-memory", 1)
    assert [rule for rule, _ in incident.evidence] == ["subprocess-failed", "subprocess-failed", "unknown"]


def test_the_exception_speaks_before_text(rules: RuleSet) -> None:
    """An error that was survived hours ago explains nothing."""
    incident = arbitrate(rules, [*log("requests.exceptions.ConnectionError: reset"), failed(MemoryError())])
    assert incident is not None and incident.state == "out_of_memory"


def test_among_texts_the_first_of_the_last_minutes(rules: RuleSet) -> None:
    def at(seconds: float, text: str) -> Event:
        return Event("log", "training", 1, text, at=seconds)

    events = [at(0, "httpx.ReadTimeout: x"), at(5000, "OSError: [Errno 28] No space left on device"),
              at(5001, "sqlite3.DatabaseError: database disk image is malformed")]
    incident = arbitrate(rules, events)
    assert incident is not None and incident.state == "disk_full"


def test_a_killed_process_is_confirmed_by_the_kernel(rules: RuleSet) -> None:
    killed = Event("exit", "training", 1, exit_code=None, signal=9)
    alone = arbitrate(rules, [killed])
    assert alone is not None and alone.state == "out_of_memory" and not alone.confirmed
    told = arbitrate(rules, [killed, *log("Out of memory: Killed process 77 (python3) total-vm:1kB")])
    assert told is not None and told.rule == "killed-by-the-kernel" and told.confirmed
    elsewise = arbitrate(rules, [killed, *log("OSError: [Errno 28] No space left on device")])
    assert elsewise is not None and elsewise.state == "disk_full"


def test_success_and_operators_make_no_incident(rules: RuleSet) -> None:
    events = log("RuntimeError: CUDA out of memory")
    assert arbitrate(rules, events, succeeded=True) is None
    assert arbitrate(rules, [*events, Event("operator", "training", 1, "pause")]) is None
    assert arbitrate(rules, []) is None


def test_what_the_step_names_is_believed(rules: RuleSet) -> None:
    class StepFailure(Exception):
        state, hint = "data_invalid", ""

    incident = arbitrate(rules, [failed(StepFailure("cannot read x: No space left on device"))])
    assert incident is not None and incident.state == "data_invalid"


def test_the_cause_in_the_chain_counts(rules: RuleSet) -> None:
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not save the checkpoint") from error
    except RuntimeError as error:
        incident = arbitrate(rules, [failed(error)])
    assert incident is not None and incident.state == "disk_full"


def test_retry_after_of_a_real_response(rules: RuleSet) -> None:
    class Response:
        status_code = 429
        headers = {"retry-after": "77"}

    error = OSError("Too Many Requests")
    error.response = Response()  # type: ignore[attr-defined]
    incident = arbitrate(rules, [failed(error)])
    assert incident is not None and (incident.rule, incident.retry_after) == ("rate-limit", 77.0)
    decision = decide(rules, incident, {}, Ledgers(), 1000.0)
    assert decision.retry_at >= 1077.0


# -- kinds of exceptions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "name"), [
    ("acme.net.LinkDownError: gone", "LinkDownError"),
    ('Exception in thread "main" java.net.UnknownHostException: weights.invalid', "UnknownHostException"),
    ("Caused by: java.io.EOFException", "EOFException"),
    ("Unhandled exception. System.IO.FileNotFoundException: Could not find file", "FileNotFoundException"),
    ("E   requests.exceptions.ReadTimeout: timed out", "ReadTimeout"),
    ("Uncaught TypeError: x is not a function", "TypeError"),
    ("acme.core.PaperWarning: low", None),
    ("the docs say: ValueError is raised", None),
])
def test_the_last_line_of_a_traceback_in_many_languages(line: str, name: str | None) -> None:
    assert raised(line) == name


@given(st.lists(st.one_of(st.none(), st.lists(st.text("abç", min_size=1, max_size=5), max_size=4)), max_size=6),
       st.text("abç", max_size=12))
def test_gates_open_for_exactly_the_lines_that_hold_a_text(texts: list[list[str] | None], line: str) -> None:
    expected = {n for n, known in enumerate(texts) if known is None or any(text in line for text in known)}
    assert Gates(dict(enumerate(texts))).open_to(line) == expected


def test_a_heading_is_a_type_only_for_a_rule_that_names_it(rules: RuleSet) -> None:
    """`ArrowInvalid: …` and `TrainOutput: …` look alike; no ending says which of them is an exception."""
    known = heard(rules, log("ArrowInvalid: straddling object")[0])
    assert known is not None and known.rule.state == "data_invalid"
    assert heard(rules, log("TrainOutput: 3 steps")[0]) is None
    assert heard(rules, log("ChecksumOptions: strict")[0]) is None, "a family's name is no name"


@given(st.text("abcT", max_size=6), st.text("abcT", max_size=6), st.text("xyz", max_size=4))
def test_a_family_of_types_is_what_it_says_and_the_scan_looks_for_it(before: str, after: str, end: str) -> None:
    """`*Timeout*` is any name that holds it; whatever matches a line, the gate's text stands in the line."""
    family = Selection(exception=frozenset((f"{before}*Timeout*{end}", "Exact")))
    matching, other = f"{before}SomeTimeoutIn{after}{end}", f"{before}SomeTimelyIn{after}{end}"
    assert family.is_type(frozenset((matching,))) and family.is_type(frozenset(("Exact",)))
    assert not family.is_type(frozenset((other,))) and not family.is_type(frozenset())
    texts = gate(some_rule("r", selections={"x": family}))
    assert texts is not None and any(text in matching for text in texts)


# -- decisions --------------------------------------------------------------------------------------------------------


def some_rule(name: str, state: str = "crashed", **changed: Any) -> Rule:
    values: dict[str, Any] = dict(
        id=name, title=name, state=state, severity="warning", status="stable", sources=frozenset(("log",)),
        steps=frozenset(), selections={"x": Selection(message_contains=(name,))}, condition=Condition("name", "x"),
        condition_text="x", role="root", when={}, then=(Action("restart_step"),), max_attempts=3, backoff=Backoff(),
        reset_after=1800.0, escalate=Escalate(), explain="", references=(), tests=(), where="x:1:1", layer="test")
    return Rule(**{**values, **changed})


def rule_set(*of: Rule, limits: Limits | None = None) -> RuleSet:
    return RuleSet(of, limits or Limits(), "0" * 64, ())


def incident_of(rule: Rule) -> Incident:
    return Incident(rule.id, rule.state, rule.severity, Event("log", text=rule.id), True)


def test_rule_ledger_and_root_ledger_both_count() -> None:
    a, b = some_rule("aaa", max_attempts=2), some_rule("bbb", max_attempts=2)
    rules, ledgers = rule_set(a, b), Ledgers()
    for n in (1, 2):
        decision = decide(rules, incident_of(a), {}, ledgers, 0.0)
        assert decision.escalate is None and decision.attempt == n
        ledgers = ledgers.spent(decision, 0.0)
    assert "rule 'aaa'" in str(decide(rules, incident_of(a), {}, ledgers, 0.0).escalate)
    ledgers = ledgers.spent(decide(rules, incident_of(b), {}, ledgers, 0.0), 0.0)
    assert "without progress" in str(decide(rules, incident_of(b), {}, ledgers, 0.0).escalate)


def test_only_progress_resets_and_a_rule_only_after_its_time() -> None:
    rule = some_rule("aaa", max_attempts=1, reset_after=600.0)
    rules = rule_set(rule)
    ledgers = Ledgers().spent(decide(rules, incident_of(rule), {}, Ledgers(), 0.0), 0.0)
    assert decide(rules, incident_of(rule), {}, ledgers, 1e6).escalate, "time alone proves nothing"
    soon, late = ledgers.progressed(rules, 599.0), ledgers.progressed(rules, 600.0)
    assert decide(rules, incident_of(rule), {}, soon, 599.0).escalate
    assert decide(rules, incident_of(rule), {}, late, 600.0).escalate is None
    assert Ledgers.from_json(json.loads(json.dumps(ledgers.to_json()))) == ledgers


def test_the_hour_is_kept_by_waiting() -> None:
    rule = some_rule("aaa", max_attempts=100, backoff=Backoff(1.0, 1.0, 1.0, 0.0))
    rules = rule_set(rule, limits=Limits(100, 2, 100))
    ledgers = Ledgers()
    for now in (0.0, 10.0):
        ledgers = ledgers.spent(decide(rules, incident_of(rule), {}, ledgers, now), now)
    assert decide(rules, incident_of(rule), {}, ledgers, 20.0).retry_at == 3601.0


def test_when_chooses_among_rules_of_one_event(rules: RuleSet) -> None:
    incident = arbitrate(rules, log("RuntimeError: CUDA out of memory"))
    assert incident is not None
    ladder = [({"training.batch_size": 8}, "cuda-out-of-memory"),
              ({"training.batch_size": 1, "training.gradient_checkpointing": False}, "cuda-out-of-memory-at-batch-one"),
              ({"training.batch_size": 1, "training.gradient_checkpointing": True, "training.max_length": 512},
               "cuda-out-of-memory-last-resort"),
              ({"training.batch_size": 1, "training.gradient_checkpointing": True, "training.max_length": 64},
               "gpu-memory-elsewhere")]
    for facts, expected in ladder:
        assert decide(rules, incident, facts, Ledgers(), 0.0).rule == expected


def test_experimental_rules_and_observe_only_never_act() -> None:
    trial = some_rule("aaa", status="experimental", selections={"x": Selection(message_contains=("boom",))})
    sure = some_rule("bbb", selections={"x": Selection(message_contains=("boom",))})
    rules = rule_set(trial, sure)
    incident = arbitrate(rules, log("boom"))
    assert incident is not None and incident.rule == "bbb"
    decision = decide(rules, incident, {}, Ledgers(), 0.0)
    assert (decision.rule, decision.experimental) == ("bbb", ("aaa",))
    watched = decide(rules, incident, {}, Ledgers(), 0.0, observe_only=True)
    assert not watched.acts and Ledgers().spent(watched, 0.0) == Ledgers()
    assert decide(rule_set(trial), incident, {}, Ledgers(), 0.0).escalate


@pytest.mark.parametrize(("chance", "low", "high"), [(0.0, 4.0, 4.0), (0.5, 5.0, 5.0), (0.999, 5.9, 6.0)])
def test_backoff_varies_around_its_middle_and_never_passes_its_end(chance: float, low: float, high: float) -> None:
    backoff = Backoff(5.0, 2.0, 60.0, 0.2)
    assert low <= backoff.seconds(1, chance) <= high
    assert backoff.seconds(10_000, chance) <= 60.0


STATES = st.sampled_from(["crashed", "network_failed", "out_of_memory", "diverged"])
RULES = st.lists(
    st.builds(lambda i, state, most, reset: (i, state, most, reset), st.integers(0, 9), STATES, st.integers(0, 8),
              st.sampled_from([0.0, 60.0, 1800.0])), min_size=1, max_size=6, unique_by=lambda r: r[0])
LIMITS = st.builds(Limits, st.integers(1, 6), st.integers(1, 6), st.integers(1, 30),
                   st.dictionaries(STATES, st.integers(1, 9)))


@settings(max_examples=150, deadline=None)
@given(RULES, LIMITS, st.lists(st.integers(0, 5), min_size=1, max_size=8), st.sampled_from([0, 0, 3, 7]),
       st.floats(0, 0.999))
def test_every_sequence_of_failures_ends(made: list[tuple[int, str, int, float]], limits: Limits, causes: list[int],
                                         progress_every: int, chance: float) -> None:
    """However causes alternate and whatever little progress lies between: a person is asked within the budget."""
    rules = rule_set(*(some_rule(f"rule-{i}", state, max_attempts=most, reset_after=reset)
                       for i, state, most, reset in made), limits=limits)
    ledgers, now, recoveries, since_progress = Ledgers(), 0.0, 0, {}
    for n in range(10_000):
        rule = rules.rules[causes[n % len(causes)] % len(rules.rules)]
        decision = decide(rules, incident_of(rule), {}, ledgers, now, chance=chance)
        if decision.escalate:
            break
        assert decision.retry_at >= now
        ledgers = ledgers.spent(decision, now)
        recoveries += 1
        since_progress[rule.state] = since_progress.get(rule.state, 0) + 1
        assert since_progress[rule.state] <= limits.of_root(rule.state)
        assert sum(1 for at in ledgers.recent if decision.retry_at - at < 3599.9) <= limits.per_hour
        now = decision.retry_at
        if progress_every and n % progress_every == 0:
            ledgers, since_progress = ledgers.progressed(rules, now), {}
    else:
        pytest.fail("it never ends")
    assert recoveries <= limits.per_run


# -- layers -----------------------------------------------------------------------------------------------------------


def rule_text(name: str, text: str, state: str = "disk_full") -> str:
    return (f"version: 1\nrules:\n  - id: {name}\n    title: A rule\n    state: {state}\n    match:\n"
            f"      x: {{message|contains: '{text}'}}\n    then: [restart_step]\n")


def test_a_rule_with_the_same_id_replaces_whole_and_keeps_its_place(tmp_path: Path) -> None:
    packaged, home = tmp_path / "packaged", tmp_path / "home"
    packaged.mkdir()
    home.mkdir()
    (packaged / "10-a.yaml").write_text(rule_text("aaa", "paper"))
    (packaged / "20-b.yaml").write_text(rule_text("bbb", "paper") + "limits: {per_run: 7}\n")
    (home / "05-mine.yaml").write_text(rule_text("bbb", "ink") + "limits: {per_run: 9}\n")
    (home / "15-new.yaml").write_text(rule_text("ccc", "paper"))
    both = load_rules([("packaged", packaged), ("home", home)])
    # 05-mine.yaml sorts before the file it overrides, and wins all the same.
    assert sorted(r.id for r in both.rules) == ["aaa", "bbb", "ccc"]
    replaced = both.rule("bbb")
    assert replaced is not None and replaced.layer == "home" and "20-b.yaml" in str(replaced.replaces)
    assert both.limits.per_run == 9
    found = heard(both, Event("log", text="no ink"))
    assert found is not None and found.rule.id == "bbb"
    assert both.hash != load_rules([packaged]).hash == load_rules([packaged]).hash


def test_a_rule_about_a_state_holds_for_every_step_that_works_in_it(tmp_path: Path) -> None:
    """A third party's training step is training; a rule may also name the step itself."""
    steps = {**OWN_STEPS, "distil": "training", "translate": "preprocessing"}
    text = "version: 1\nrules:\n" + "".join(
        f"  - {{id: on-{name}, title: On {name}, state: stalled, on: {{steps: [{name}]}}, "
        "match: {ink: {message|contains: 'no ink'}}}\n" for name in ("distil", "training"))
    (tmp_path / "x.yaml").write_text(text)
    rules = load_rules([tmp_path], steps=steps)

    def seen(step: str | None) -> list[str]:
        return [found.rule.id for found in matches(rules, Event("log", step, text="no ink"))]

    assert seen("distil") == ["on-distil", "on-training"]
    assert seen("training") == ["on-training"] and seen("translate") == []
    assert seen(None) == ["on-distil", "on-training"]  # a foreign log does not say
    with pytest.raises(RulesError, match="unknown step 'distil'"):
        load_rules([tmp_path])


def test_a_missing_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RulesError, match="no such file or directory"):
        load_rules([tmp_path / "nowhere"])
