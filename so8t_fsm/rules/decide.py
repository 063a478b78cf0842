"""What is done about an incident: the rule whose facts hold, within two ledgers and the limits.  Pure.

The clock, the facts, the ledgers and the dice come from outside; the same of them gives the same decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from so8t_fsm.incidents import Incident
from so8t_fsm.rules.match import matches
from so8t_fsm.rules.model import Action, Limits, Rule, RuleSet

HOUR = 3600.0


@dataclass(frozen=True)
class Entry:
    """How often something was tried without progress, and when last (seconds since the epoch)."""

    attempts: int = 0
    last_at: float = 0.0


@dataclass(frozen=True)
class Ledgers:
    """Both ledgers of a run and its recoveries; changed only by the three methods, each of which gives new ones.

    Attributes:
        rules: per rule, by id.
        roots: per root cause over all rules, by :attr:`Incident.root`.
        recent: when the steps were tried again that recoveries of the last hour led to.
        total: recoveries in the run's whole life; nothing resets it.
    """

    rules: Mapping[str, Entry] = field(default_factory=dict)
    roots: Mapping[str, Entry] = field(default_factory=dict)
    recent: tuple[float, ...] = ()
    total: int = 0

    def spent(self, decision: Decision, now: float) -> Ledgers:
        """After a recovery was begun.  An escalation costs nothing."""
        if decision.rule is None or not decision.acts:
            return self
        rule, root = self.rules.get(decision.rule, Entry()), self.roots.get(decision.root, Entry())
        return Ledgers(
            {**self.rules, decision.rule: Entry(rule.attempts + 1, now)},
            {**self.roots, decision.root: Entry(root.attempts + 1, now)},
            (*(at for at in self.recent if decision.retry_at - at < HOUR), decision.retry_at), self.total + 1)

    def progressed(self, rule_set: RuleSet, now: float) -> Ledgers:
        """After progress was observed: every root starts anew, and so does a rule whose ``reset_after`` has passed.

        A rule that always gains a little and always fails again within that time still comes to its end.
        """
        def healthy(rule_id: str, entry: Entry) -> bool:
            rule = rule_set.rule(rule_id)
            return rule is None or now - entry.last_at >= rule.reset_after

        return replace(self, roots={}, rules={k: e for k, e in self.rules.items() if not healthy(k, e)})

    def forgiven(self) -> Ledgers:
        """After a person said: try again.  The total stays, so that the next person can see it."""
        return replace(self, rules={}, roots={}, recent=())

    def to_json(self) -> dict[str, Any]:
        return {
            "rules": {key: [e.attempts, e.last_at] for key, e in self.rules.items()},
            "roots": {key: [e.attempts, e.last_at] for key, e in self.roots.items()},
            "recent": list(self.recent), "total": self.total,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Ledgers:
        def entries(name: str) -> dict[str, Entry]:
            return {key: Entry(int(n), float(at)) for key, (n, at) in stored.get(name, {}).items()}

        return cls(entries("rules"), entries("roots"), tuple(stored.get("recent", ())), int(stored.get("total", 0)))


@dataclass(frozen=True)
class Decision:
    """The answer to an incident: either actions and a time, or ``escalate``.

    Attributes:
        rule: id of the rule that answers; None when no rule applies.
        root: what the ledger over all rules counts by.
        actions: to be done in order, now; the step is tried again at ``retry_at``.
        attempt: which attempt of this rule it is, from 1.
        of: how many there are.
        wait_seconds, retry_at: seconds from ``now``, and seconds since the epoch.
        escalate: why a person is asked; None when the machine goes on by itself.
        to: ``needs_attention`` or ``paused``, the state entered on escalation.
        notify: severities of the notifications to send.
        observe_only: the actions are what would be done; nothing is.
        experimental: ids of rules that would have answered if they were stable.
    """

    rule: str | None
    state: str
    root: str
    actions: tuple[Action, ...] = ()
    attempt: int = 0
    of: int = 0
    wait_seconds: float = 0.0
    retry_at: float = 0.0
    escalate: str | None = None
    to: Literal["needs_attention", "paused"] = "needs_attention"
    notify: tuple[str, ...] = ()
    observe_only: bool = False
    experimental: tuple[str, ...] = ()

    @property
    def acts(self) -> bool:
        return self.escalate is None and not self.observe_only

    @property
    def pauses(self) -> bool:
        """Do the actions end in waiting for a person?"""
        return any(action.name == "pause" for action in self.actions)

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule, "state": self.state, "root": self.root, "actions": [a.to_json() for a in self.actions],
            "attempt": self.attempt, "of": self.of, "wait_seconds": self.wait_seconds, "retry_at": self.retry_at,
            "escalate": self.escalate, "to": self.to, "notify": list(self.notify), "observe_only": self.observe_only,
            "experimental": list(self.experimental),
        }

    def __str__(self) -> str:
        if self.escalate is not None:
            return f"ask a person: {self.escalate}"
        steps = "; ".join(map(str, self.actions)) or "nothing but waiting"
        would = "would: " if self.observe_only else ""
        return f"{would}{steps}; again in {self.wait_seconds:.0f} s (attempt {self.attempt} of {self.of})"


def decide(rule_set: RuleSet, incident: Incident, facts: Mapping[str, Any], ledgers: Ledgers, now: float, *,
           chance: float = 0.5, observe_only: bool = False, limits: Limits | None = None,
           longest: float = math.inf) -> Decision:
    """Choose the answer.

    Args:
        facts: what is true now, by dotted name; the run's settings (``training.batch_size``) and what was probed.
        now: seconds since the epoch.
        chance: in [0, 1), where in the jitter the wait falls.
        observe_only: decide, but have nothing done.
        limits: instead of the rule set's own.
        longest: no ``backoff`` waits longer, in seconds; what a server asks for and the hourly rate may.
    """
    limits = limits or rule_set.limits
    rule, experimental = _choose(rule_set, incident, facts)
    if rule is None:
        nothing = f"no rule for {incident.state} applies to what is true now"
        return Decision(None, incident.state, incident.root, escalate=nothing, notify=("critical",),
                        experimental=experimental)
    mine = ledgers.rules.get(rule.id, Entry())
    roots = ledgers.roots.get(incident.root, Entry())
    decision = Decision(rule.id, incident.state, incident.root, rule.then, mine.attempts + 1, rule.max_attempts,
                        observe_only=observe_only, experimental=experimental)
    why = _spent(rule, incident, limits, mine, roots, ledgers)
    if why is not None:
        to: Literal["needs_attention", "paused"] = "paused" if rule.escalate.to == "paused" else "needs_attention"
        return replace(decision, actions=(), escalate=why, to=to, notify=rule.escalate.notify)
    wait = max(_wait(rule, incident, mine.attempts + 1, chance, longest), _turn(limits, ledgers, now))
    return replace(decision, wait_seconds=wait, retry_at=now + wait)


def _choose(rule_set: RuleSet, incident: Incident, facts: Mapping[str, Any]) -> tuple[Rule | None, tuple[str, ...]]:
    """The first stable rule for this state that holds for the deciding event and for the facts."""
    experimental: list[str] = []
    for found in matches(rule_set, incident.event):
        rule = found.rule
        if rule.state != incident.state or not rule.applies(facts):
            continue
        if rule.status == "stable":
            return rule, tuple(experimental)
        experimental.append(rule.id)
    return None, tuple(experimental)


def _spent(rule: Rule, incident: Incident, limits: Limits, mine: Entry, root: Entry, ledgers: Ledgers) -> str | None:
    if mine.attempts >= rule.max_attempts:
        tried = f"was tried {mine.attempts} times without lasting progress" if mine.attempts else "allows no attempt"
        return f"the rule '{rule.id}' {tried}"
    allowed = limits.of_root(incident.root)
    if root.attempts >= allowed:
        return f"{incident.root}: {root.attempts} recoveries without progress, {allowed} are allowed"
    if ledgers.total >= limits.per_run:
        return f"{ledgers.total} recoveries in this run, {limits.per_run} are allowed"
    return None


def _wait(rule: Rule, incident: Incident, attempt: int, chance: float, longest: float) -> float:
    wait = min(rule.backoff.seconds(attempt, chance), longest)
    asked = incident.retry_after
    retry = next((action for action in rule.then if action.name == "retry_with_backoff"), None)
    if asked is None or retry is None or not retry.arguments.get("honour_retry_after", True):
        return wait
    return max(wait, min(asked, float(retry.arguments.get("max_retry_after", HOUR))))


def _turn(limits: Limits, ledgers: Ledgers, now: float) -> float:
    """Seconds until another recovery fits into the hour.  A rate is kept by waiting: it says nothing against trying."""
    within = sorted(at for at in ledgers.recent if now - at < HOUR)
    # A clock that was set back must not make anyone wait for as long as it went back.
    return min(within[-limits.per_hour] + HOUR - now, HOUR) if len(within) >= limits.per_hour else 0.0
