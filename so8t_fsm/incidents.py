"""Arbitration: many events of one attempt, at most one incident.  Pure.

Roots beat confirmations, confirmations beat cascades.  Among equals the child's own exception speaks first, then the
end of its process, then what was measured, and text last; among texts the earliest of the attempt's last minutes,
because what came long before was evidently survived, and what follows the first is its consequence.  Nor does a text
count that another line takes back.  What a probe measured is one more witness: the shipped rules let it confirm, so it
speaks where nobody names a root cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from so8t_fsm.events import Event
from so8t_fsm.retracted import retracted, standing
from so8t_fsm.rules.match import Match, heard
from so8t_fsm.rules.model import RuleSet

ROLES = {"root": 0, "confirmation": 1, "cascade": 2}
SPOKEN = {"exception": 0, "exit": 1, "silence": 1, "probe": 2, "operator": 2, "log": 3}
LAST_SECONDS, LAST_LINES = 300.0, 300
"""How far before the last thing that was seen a text may stand and still be what ended the attempt."""
EVIDENCE = 20


@dataclass(frozen=True)
class Incident:
    """Why an attempt failed.

    Attributes:
        rule: id of the rule that explains it; its ``state`` and ``severity`` follow.
        event: the event that decided.
        confirmed: a root was seen, or two different rules say the same; a process that was merely killed is not.
        evidence: other events and the rules they matched, in order, at most :data:`EVIDENCE`.
        retry_after: seconds that the other side asked to wait.
    """

    rule: str
    state: str
    severity: str
    event: Event
    confirmed: bool
    evidence: tuple[tuple[str, Event], ...] = ()
    retry_after: float | None = None

    @property
    def root(self) -> str:
        """What the ledger over all rules counts by."""
        return self.state

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule, "state": self.state, "severity": self.severity, "confirmed": self.confirmed,
            "retry_after": self.retry_after, "event": self.event.to_json(),
            "evidence": [{"rule": rule, "event": event.to_json()} for rule, event in self.evidence],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Incident:
        """Read what :meth:`to_json` made, in this version or another."""
        evidence = tuple((one["rule"], Event.from_json(one["event"])) for one in stored.get("evidence", ()))
        return cls(stored["rule"], stored["state"], stored["severity"], Event.from_json(stored["event"]),
                   bool(stored.get("confirmed")), evidence, stored.get("retry_after"))


def arbitrate(rule_set: RuleSet, events: Iterable[Event], *, succeeded: bool = False) -> Incident | None:
    """The incident of one attempt, or None: it succeeded, a person stopped it, or no rule knows any of its events."""
    seen = list(events)
    if succeeded or any(event.source == "operator" for event in seen):
        return None
    return weigh(noted(rule_set, seen))


def noted(rule_set: RuleSet, events: Iterable[Event]) -> list[Match]:
    """What rules know of the events of one attempt, in order; of lines that take others back, those that do or may yet."""
    found = [known for event in events if (known := heard(rule_set, event))]
    gone = retracted(found)
    useful = gone.pending.union(gone.over.values())
    return [one for i, one in enumerate(found) if not one.rule.harmless or i in useful]


def weigh(found: Sequence[Match]) -> Incident | None:
    """The incident that matches of one attempt add up to; they stand in the order in which they were seen."""
    found = standing(found)
    if not found:
        return None
    late = _late(found)

    def rank(i: int) -> tuple[bool, int, int, bool, int]:
        one = found[i]
        return (not one.declared, ROLES[one.rule.role], SPOKEN[one.event.source], not late[i], i if late[i] else -i)

    winner = found[min(range(len(found)), key=rank)]
    same = [one for one in found if one.rule.state == winner.rule.state]
    confirmed = any(one.rule.role == "root" for one in same) or len({one.rule.id for one in same}) > 1
    others = tuple((one.rule.id, one.event) for one in found if one is not winner)[-EVIDENCE:]
    waits = [one.retry_after for one in same if one.retry_after is not None]
    return Incident(winner.rule.id, winner.rule.state, winner.rule.severity, winner.event, confirmed, others,
                    max(waits, default=None))


def _late(found: Sequence[Match]) -> list[bool]:
    """Which events stand near the attempt's end; what carries neither time nor line does."""
    times = [one.event.at for one in found if one.event.at is not None]
    last = max(times, default=0.0)
    lines: dict[str | None, int] = {}
    for one in found:
        if one.event.line is not None:
            lines[one.event.file] = max(lines.get(one.event.file, 0), one.event.line)

    def near(event: Event) -> bool:
        if event.at is not None:
            return last - event.at <= LAST_SECONDS
        return event.line is None or lines[event.file] - event.line <= LAST_LINES

    return [near(one.event) for one in found]
