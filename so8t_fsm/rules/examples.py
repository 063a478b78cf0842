"""The ``tests:`` of a rule: what is given, and which rule must win.  Reading them, and making events of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from so8t_fsm.config_problems import format_value, suggestion
from so8t_fsm.events import Event, exception_event
from so8t_fsm.located import KeyPath
from so8t_fsm.rules.lines import clean
from so8t_fsm.rules.model import HARMLESS, RuleTest
from so8t_fsm.rules.schema import SIGNALS, Reader
from so8t_fsm.states import FAILURES

GIVEN = ("step", "exception", "log", "exit_code", "signal", "silence", "probe", "operator", "succeeded")
RAISED = ("type", "bases", "message", "http_status", "errno", "winerror", "retry_after", "state", "cause")


def read_tests(reader: Reader, value: Any, path: KeyPath, rule_id: str, steps: tuple[str, ...]) -> tuple[RuleTest, ...]:
    """Check and read the tests of one rule."""
    if value is None:
        return ()
    if not isinstance(value, list):
        reader.say(path, "tests must be a list; begin each with '- name: …'")
        return ()
    found: list[RuleTest] = []
    for i, item in enumerate(value):
        test = _read_test(reader, item, (*path, i), rule_id, steps)
        if test is None:
            continue
        if any(other.name == test.name for other in found):
            reader.say((*path, i, "name"), f"another test of this rule is called '{test.name}'; choose another name")
        found.append(test)
    return tuple(found)


def _read_test(reader: Reader, item: Any, path: KeyPath, rule_id: str, steps: tuple[str, ...]) -> RuleTest | None:
    before = len(reader.problems)
    keys = reader.keys(item, path, ("name", "given", "facts", "expect"), "a test")
    if not isinstance(item, Mapping):
        return None
    for needed in ("name", "given", "expect"):
        if needed not in item:
            reader.say(path, f"the test has no '{needed}'; write one")
    name = keys.get("name", "")
    if not isinstance(name, str):
        reader.say((*path, "name"), "name must be text; put it in quotes")
    given = _given(reader, keys.get("given", {}), (*path, "given"), steps)
    facts = keys.get("facts") or {}
    if not isinstance(facts, Mapping):
        reader.say((*path, "facts"), "facts must be a mapping such as {training.batch_size: 8}")
        facts = {}
    expect, actions = _expected(reader, keys.get("expect"), (*path, "expect"), rule_id)
    if len(reader.problems) > before:
        return None
    return RuleTest(name, given, facts, expect, actions, reader.located.at(path))


def _given(reader: Reader, value: Any, path: KeyPath, steps: tuple[str, ...]) -> dict[str, Any]:
    given = reader.keys(value, path, GIVEN, "given")
    if isinstance(value, Mapping) and not value.keys() - {"step", "succeeded"}:
        reader.say(path, "given has no event; write a log, exception, exit_code, signal, silence, probe or operator")
    if "step" in given and given["step"] not in steps:
        said = str(given["step"])
        reader.say((*path, "step"), f"unknown step '{format_value(said, 40)}'{suggestion(said, steps)}")
    for name in ("log", "probe", "operator"):
        if name in given and not isinstance(given[name], str):
            reader.say((*path, name), f"{name}: {format_value(given[name], 40)} must be text; put it in quotes")
    for name in ("exit_code", "signal"):
        if name in given:
            reader.numbers(given, path, name)
    if "silence" in given:
        given["silence"] = reader.duration(given["silence"], (*path, "silence"))
    if "exception" in given:
        _raised(reader, given["exception"], (*path, "exception"))
    return given


def _raised(reader: Reader, value: Any, path: KeyPath) -> None:
    keys = reader.keys(value, path, RAISED, "exception")
    if isinstance(value, Mapping) and not isinstance(keys.get("type"), str):
        reader.say(path, "the exception has no type; write 'type: OSError'")
    if "state" in keys and keys["state"] not in FAILURES:
        reader.say((*path, "state"), f"unknown state '{format_value(keys['state'], 40)}'"
                   f"{suggestion(str(keys['state']), FAILURES)}")
    if "cause" in keys:
        _raised(reader, keys["cause"], (*path, "cause"))


def _expected(reader: Reader, value: Any, path: KeyPath, rule_id: str) -> tuple[str | None, tuple[str, ...] | None]:
    if value is None or value == HARMLESS:
        return None, None
    if not isinstance(value, Mapping):
        reader.say(path, f"expect: {format_value(value, 40)} must be 'none' or {{rule: {rule_id}}}")
        return None, None
    keys = reader.keys(value, path, ("rule", "actions"), "expect")
    rule, actions = keys.get("rule", rule_id), keys.get("actions")
    if rule == HARMLESS:
        rule = None
    if actions is not None and not (isinstance(actions, list) and all(isinstance(name, str) for name in actions)):
        reader.say((*path, "actions"), "actions must be a list of names")
        actions = None
    return rule if rule is None else str(rule), None if actions is None else tuple(actions)


def events_of(given: Mapping[str, Any]) -> list[Event]:
    """The events of one attempt that a test describes: the log's lines first, the end of the process last."""
    step = given.get("step")
    found = []
    for i, line in enumerate(str(given.get("log", "")).splitlines(), 1):
        if line.strip():
            found.append(Event("log", step, 1, clean(line).text, line=i))
    if "probe" in given:
        found.append(Event("probe", step, 1, given["probe"]))
    if "exception" in given:
        found.append(exception_event(record_of(given["exception"]), step, 1))
    if "silence" in given:
        found.append(Event("silence", step, 1, quiet=given["silence"]))
    if "exit_code" in given or "signal" in given:
        number = given.get("signal")
        found.append(Event("exit", step, 1, exit_code=given.get("exit_code"),
                           signal=SIGNALS[number] if isinstance(number, str) else number))
    if "operator" in given:
        found.append(Event("operator", step, 1, given["operator"]))
    return found


def record_of(raised: Mapping[str, Any]) -> dict[str, Any]:
    """The record that :func:`so8t_fsm.events.describe` would make of an exception described in YAML."""
    chain = []
    link: Mapping[str, Any] | None = raised
    while link is not None:
        chain.append({"message": "", **{key: link[key] for key in link if key not in ("cause", "state")},
                      "bases": [link["type"], *link.get("bases", ())]})
        link = link.get("cause")
    return {**chain[0], "chain": chain, "state": raised.get("state"), "hint": ""}
