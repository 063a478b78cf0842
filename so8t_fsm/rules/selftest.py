"""Running the examples that travel with the rules.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from so8t_fsm.incidents import arbitrate
from so8t_fsm.rules.decide import Ledgers, decide
from so8t_fsm.rules.examples import events_of
from so8t_fsm.rules.model import Rule, RuleSet, RuleTest


@dataclass(frozen=True)
class Result:
    """How one example went; ``problem`` is None when it went as it should."""

    rule: str
    test: str
    where: str
    problem: str | None


def run_tests(rule_set: RuleSet, rules: Iterable[Rule] | None = None) -> list[Result]:
    """Run the examples of the given rules (default: all) against the whole set, so that their order counts too."""
    return [Result(rule.id, test.name, test.where, _problem(rule_set, test))
            for rule in (rule_set.rules if rules is None else rules) for test in rule.tests]


def _problem(rule_set: RuleSet, test: RuleTest) -> str | None:
    """With facts the rule that answers is compared, without them the rule that explains."""
    incident = arbitrate(rule_set, events_of(test.given), succeeded=bool(test.given.get("succeeded")))
    if incident is None:
        return None if test.expect is None else f"expected '{test.expect}', but nothing was seen"
    if not test.facts and test.actions is None:
        return None if incident.rule == test.expect else _wrong(test, incident.rule)
    decision = decide(rule_set, incident, test.facts, Ledgers(), 0.0)
    answered = decision.rule if test.expect is not None else incident.rule
    if answered != test.expect:
        return _wrong(test, answered)
    names = tuple(action.name for action in decision.actions)
    if test.actions is not None and names != test.actions:
        return f"expected the actions {', '.join(test.actions)}, but decided were {', '.join(names) or 'none'}"
    return None


def _wrong(test: RuleTest, found: str | None) -> str:
    return f"expected {repr(test.expect) if test.expect else 'no incident'}, but {found or 'no rule'!r} answered"
