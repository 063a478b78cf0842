"""What a rule is, once it has been read: frozen values, nothing from YAML left in them.  Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from so8t_fsm.rules.conditions import Condition
from so8t_fsm.rules.doors import Gates

Severity = Literal["info", "warning", "critical"]
Role = Literal["root", "confirmation", "cascade"]
ANY = "*"
"""In the name of an exception's type: any characters.  Alone: whichever type."""
HARMLESS = "none"
"""The state of rules whose lines are no incident."""

OPERATORS = ("eq", "ne", "gt", "ge", "lt", "le", "in")


@dataclass(frozen=True)
class Compare:
    """One comparison, ``{ge: 500}``.  What cannot be compared does not hold."""

    operator: str
    value: Any

    def holds(self, found: Any) -> bool:
        if found is None:
            return False
        if self.operator in ("eq", "ne"):
            return bool(found == self.value) == (self.operator == "eq")
        if self.operator == "in":
            return found in self.value
        try:
            return bool({"gt": found > self.value, "ge": found >= self.value,
                         "lt": found < self.value, "le": found <= self.value}[self.operator])
        except TypeError:
            return False


Numbers = tuple[tuple[Compare, ...], ...]
"""Any of these, each of which is a list of comparisons that hold together."""


def holds(numbers: Numbers, found: int | None) -> bool:
    """Does a number pass one of the alternatives?"""
    return any(all(compare.holds(found) for compare in together) for together in numbers)


@dataclass(frozen=True)
class Selection:
    """A named part of ``match``: every key that is given must hold.

    The keys about an exception (type, HTTP status, error numbers) must hold for one and the same link of its chain.
    """

    message_re: tuple[re.Pattern[str], ...] = ()
    message_contains: tuple[str, ...] = ()
    message_startswith: tuple[str, ...] = ()
    exception: frozenset[str] = frozenset()
    http_status: Numbers = ()
    errno: Numbers = ()
    winerror: Numbers = ()
    exit_code: Numbers = ()
    signal: Numbers = ()
    silence: float | None = None
    declares: frozenset[str] = frozenset()

    @cached_property
    def _families(self) -> re.Pattern[str] | None:
        wild = [r"\w*".join(map(re.escape, name.split(ANY))) for name in sorted(self.exception - {ANY}) if ANY in name]
        return re.compile("|".join(wild)) if wild else None

    def is_type(self, names: frozenset[str], perhaps: bool = False) -> bool:
        """Is one of these, an exception's type and its bases, among those looked for?

        What is a type only ``perhaps`` must be named: it is none of a family, and none where any type will do.
        """
        if self.exception & names or (ANY in self.exception and names and not perhaps):
            return True
        families = self._families
        return families is not None and not perhaps and any(map(families.fullmatch, names))

    @property
    def of_link(self) -> bool:
        return bool(self.exception or self.http_status or self.errno or self.winerror)

    @property
    def of_end(self) -> bool:
        """Can it only hold for something other than text?"""
        return bool(self.exit_code or self.signal or self.declares) or self.silence is not None


@dataclass(frozen=True)
class Action:
    """One step of an answer: a name of the closed vocabulary and its arguments, defaults filled in, as plain JSON."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": dict(self.arguments)}

    def __str__(self) -> str:
        said = ", ".join(f"{key}={json.dumps(value)}" for key, value in self.arguments.items() if value is not None)
        return f"{self.name}({said})"


@dataclass(frozen=True)
class Backoff:
    """Seconds to wait before the attempt that follows: ``initial``·``multiplier``^(n−1), at most ``max``, varied by
    ``jitter`` (0.2 is ±20 %)."""

    initial: float = 5.0
    multiplier: float = 2.0
    max: float = 600.0
    jitter: float = 0.2

    def seconds(self, n: int, chance: float) -> float:
        """The wait after the n-th failure (from 1); ``chance`` in [0, 1) is where in the jitter it falls."""
        grown = self.initial
        for _ in range(min(n - 1, 64)):
            grown = min(grown * self.multiplier, self.max)
        return min(min(grown, self.max) * (1 + self.jitter * (2 * chance - 1)), self.max)


@dataclass(frozen=True)
class Escalate:
    """What happens when a rule has nothing left to try."""

    to: str = "needs_attention"
    notify: tuple[str, ...] = ("critical",)


@dataclass(frozen=True)
class RuleTest:
    """An example that travels with its rule.

    Attributes:
        given: the events of one attempt, in order, as plain values (see :mod:`so8t_fsm.rules.selftest`).
        expect: the id of the rule that must win; None when there must be no incident.
        actions: names of the actions that must be decided; None does not ask.
    """

    name: str
    given: Mapping[str, Any]
    facts: Mapping[str, Any]
    expect: str | None
    actions: tuple[str, ...] | None
    where: str


@dataclass(frozen=True)
class Rule:
    """One rule.  The attributes are the keys of the YAML; ``where`` is ``file:line:column``."""

    id: str
    title: str
    state: str
    severity: Severity
    status: Literal["stable", "experimental"]
    sources: frozenset[str]
    steps: frozenset[str]
    selections: Mapping[str, Selection]
    condition: Condition
    condition_text: str
    role: Role
    when: Mapping[str, tuple[Compare, ...]]
    then: tuple[Action, ...]
    max_attempts: int
    backoff: Backoff
    reset_after: float
    escalate: Escalate
    explain: str
    references: tuple[str, ...]
    tests: tuple[RuleTest, ...]
    where: str
    layer: str
    replaces: str | None = None
    takes_back: Mapping[str, int] = field(default_factory=dict)
    """With the state ``none``: failure states of which up to so many lines above told, and which are over as well."""
    covers: frozenset[str] = frozenset()
    """With the state ``none``: failure states of which the traceback that begins just below counts no more."""
    gate: frozenset[str] | None = None
    """Texts of which one is in every log line that the rule matches; None when nothing is known."""

    @property
    def harmless(self) -> bool:
        return self.state == HARMLESS

    @property
    def retracts(self) -> bool:
        """Does it say of other lines that they count no more?"""
        return bool(self.takes_back or self.covers)

    @property
    def wanted(self) -> bool:
        """Does a line that it matches matter to anybody?"""
        return not self.harmless or self.retracts

    def applies(self, facts: Mapping[str, Any]) -> bool:
        """Do the facts allow it?  A fact nobody knows allows nothing."""
        return all(compare.holds(facts.get(name)) for name, compares in self.when.items() for compare in compares)


@dataclass(frozen=True)
class Limits:
    """The ceiling beside every rule's own.

    Attributes:
        same_root_without_progress: recoveries from one failure state until progress is observed.
        roots: the same for single states, where it differs.
        per_hour: recoveries in any hour; further ones wait their turn.
        per_run: recoveries in a run's whole life.
    """

    same_root_without_progress: int = 3
    per_hour: int = 6
    per_run: int = 40
    roots: Mapping[str, int] = field(default_factory=dict)

    def of_root(self, root: str) -> int:
        return self.roots.get(root, self.same_root_without_progress)


@dataclass(frozen=True)
class RuleSet:
    """Rules in order, the limits, and where all of it comes from.

    Attributes:
        hash: sha256 of what was read; two sets with the same hash decide alike.
        files: every file read, in order, as ``(layer, path)``.
    """

    rules: tuple[Rule, ...]
    limits: Limits
    hash: str
    files: tuple[tuple[str, str], ...]

    @cached_property
    def _gates(self) -> Gates:
        return Gates({number: rule.gate for number, rule in enumerate(self.rules)})

    def open_to(self, line: str) -> list[Rule]:
        """The rules, in order, that a line of a log is not kept from by their gates."""
        return [self.rules[number] for number in sorted(self._gates.open_to(line))]

    def rule(self, rule_id: str) -> Rule | None:
        return next((rule for rule in self.rules if rule.id == rule_id), None)
