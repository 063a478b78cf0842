"""An old log under today's rules: what would have been seen, and what done.  Pure, apart from reading the stream."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from so8t_fsm.incidents import Incident
from so8t_fsm.rules.decide import Decision, Ledgers, decide
from so8t_fsm.rules.model import Action, RuleSet
from so8t_fsm.rules.scan import Progress, follow


@dataclass(frozen=True)
class Replayed:
    """One incident of the log, the answer to it, and the facts as they are after it."""

    incident: Incident
    decision: Decision
    facts: Mapping[str, Any]


def simulate(rule_set: RuleSet, stream: IO[bytes], name: str, facts: Mapping[str, Any]) -> Iterator[Replayed]:
    """Replay a log.  Time is that of its lines where they tell it, else each answer's wait follows the one before.

    Progress in the log resets the ledgers as it would have; what an action would have changed is changed in the facts.
    """
    ledgers, now, known = Ledgers(), 0.0, dict(facts)
    for found in follow(rule_set, stream, name):
        if isinstance(found, Progress):
            now = max(now, found.at or now)
            ledgers = ledgers.progressed(rule_set, now)
            continue
        now = max(now, found.event.at or now)
        decision = decide(rule_set, found, known, ledgers, now)
        ledgers = ledgers.spent(decision, now)
        for action in decision.actions:
            known.update(effect(action, known))
        yield Replayed(found, decision, dict(known))
        now = max(now, decision.retry_at)


def effect(action: Action, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that an action changes; those of actions outside the settings are not known."""
    def scaled(key: str, whole: bool) -> dict[str, Any]:
        was = facts.get(key)
        if not isinstance(was, int | float) or isinstance(was, bool):
            return {}
        value = max(action.arguments["min"], was * action.arguments["factor"])
        return {key: math.floor(value) if whole else value}

    if action.name == "reduce_batch_size":
        return {**scaled("training.batch_size", True), **scaled("benchmark.batch_size", True)}
    if action.name == "lower_learning_rate":
        return scaled("training.learning_rate", False)
    if action.name == "shorten_sequence":
        return scaled("training.max_length", True)
    if action.name == "enable_gradient_checkpointing":
        return {"training.gradient_checkpointing": True}
    return {}


def unknown_facts(rule_set: RuleSet, incident: Incident, facts: Mapping[str, Any]) -> list[str]:
    """Facts that rules for this state ask for and nobody gave."""
    asked = {name for rule in rule_set.rules if rule.state == incident.state for name in rule.when}
    return sorted(asked - facts.keys())
