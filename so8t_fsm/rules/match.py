"""Which rule an event belongs to: files in name order, rules in order, the first that matches.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from so8t_fsm.events import Event
from so8t_fsm.rules.evidence import Evidence
from so8t_fsm.rules.model import Rule, RuleSet
from so8t_fsm.states import FAILURES


@dataclass(frozen=True)
class Match:
    """A rule and the event it holds for."""

    rule: Rule
    event: Event
    retry_after: float | None = None
    declared: bool = False
    """Did the step itself name the state?"""


def fits(rule: Rule, evidence: Evidence) -> bool:
    """Does one rule hold for an event?  What a source does not know excludes nothing: a foreign log has no step."""
    event = evidence.event
    return (
        event.source in rule.sources
        and (not rule.steps or event.step is None or event.step in rule.steps)
        and rule.condition.holds(lambda name: evidence.shows(rule.selections[name]))
    )


def _asked(rule_set: RuleSet, evidence: Evidence) -> Iterable[Rule]:
    """The rules that could hold, in order."""
    return rule_set.open_to(evidence.text) if evidence.event.source == "log" else rule_set.rules


def matches(rule_set: RuleSet, event: Event) -> Iterator[Match]:
    """All rules that hold for an event, in order.

    A step that names the state it failed in is believed: rules for other states are not asked.
    """
    evidence = Evidence(event)
    said = evidence.declared if evidence.declared in FAILURES else None
    for rule in _asked(rule_set, evidence):
        if (said is None or rule.state == said) and fits(rule, evidence):
            yield Match(rule, event, evidence.retry_after, said is not None)


def heard(rule_set: RuleSet, event: Event) -> Match | None:
    """The rule that an event speaks for: one that names a failure, or one by which a line takes others back.

    None where no rule holds, or where the first that holds says that nothing happened.  Experimental rules only watch:
    none of them may decide what an event is.

    The few rules that could see an incident are asked first; whether a harmless one stands before them matters only
    if one does.
    """
    evidence = Evidence(event)
    said = evidence.declared if evidence.declared in FAILURES else None
    harmless: list[Rule] = []
    for rule in _asked(rule_set, evidence):
        if rule.status != "stable" or (said is not None and rule.state != said):
            continue
        if rule.harmless:
            harmless.append(rule)
        elif fits(rule, evidence):
            if any(fits(before, evidence) for before in harmless):
                break
            return Match(rule, event, evidence.retry_after, said is not None)
    return next((Match(rule, event) for rule in harmless if rule.retracts and fits(rule, evidence)), None)
