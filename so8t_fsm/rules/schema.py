"""The shape of a rule file: pydantic for what is plain, by hand what has a little language of its own.

Every problem is one line, ``file:line:column: what is wrong; what to do``, and all of them are found at once.
"""

from __future__ import annotations

import difflib
import re
import signal as signals
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from so8t_fsm.config_problems import describe, format_value, suggestion
from so8t_fsm.events import SOURCES, Source
from so8t_fsm.located import KeyPath, Located
from so8t_fsm.rules.conditions import Condition, ConditionError, parse
from so8t_fsm.rules.model import ANY, OPERATORS, Action, Compare, Numbers, Selection
from so8t_fsm.rules.patterns import PatternRefused, compile_pattern
from so8t_fsm.rules.vocabulary import ACTIONS
from so8t_fsm.settings import Duration, parse_duration
from so8t_fsm.states import FAILURES
from so8t_fsm.step import Settings

TEXT_KEYS = ("message|re", "message|contains", "message|startswith")
NUMBER_KEYS = ("http_status", "errno", "winerror", "exit_code", "signal")
SHORTEST_FAMILY = 4
"""Letters that the name of a family of exceptions, ``*Timeout``, must have in a row."""
SELECTORS = (*TEXT_KEYS, "exception", *NUMBER_KEYS, "silence", "declares")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
FACT = re.compile(r"[a-z_][a-z0-9_]*(\.[A-Za-z0-9_-]+)*")


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Failure = Literal["out_of_memory", "disk_full", "network_failed", "hub_refused", "dependency_missing", "subprocess_failed",
                  "data_invalid", "diverged", "stalled", "device_failed", "crashed"]
State = Literal["none", Failure]


class OnModel(Settings):
    """Which events are looked at."""

    source: Annotated[tuple[Source, ...], BeforeValidator(_listed)] = Field(
        default=SOURCES, min_length=1, description="Where the event comes from.")
    steps: Texts = Field(
        default=(), description="In which steps, by their names or the states they work in; none named means in all.")


class BackoffModel(Settings):
    """How long to wait before the next attempt."""

    initial: Duration = Field(default=5.0, ge=0, description="After the first failure.")
    multiplier: float = Field(default=2.0, ge=1, le=10, description="What each further wait is multiplied by.")
    max: Duration = Field(default=600.0, gt=0, le=86400, description="The longest wait.")
    jitter: float = Field(default=0.2, ge=0, le=1, description="How much the wait varies, as a share of it.")

    @model_validator(mode="after")
    def _ordered(self) -> BackoffModel:
        if self.max < self.initial:
            raise ValueError("max must not be shorter than initial")
        return self


class EscalateModel(Settings):
    """What happens when nothing is left to try."""

    to: Literal["needs_attention", "paused"] = Field(default="needs_attention", description="The state entered.")
    notify: Annotated[tuple[Literal["info", "warning", "critical"], ...], BeforeValidator(_listed)] = Field(
        default=("critical",), description="The severity of the notifications sent.")


class RuleModel(Settings):
    """One rule; ``match``, ``when``, ``then`` and ``tests`` are read by hand."""

    id: str = Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=64,
                    description="Words in small letters joined by hyphens, such as disk-full")
    title: str = Field(min_length=3, max_length=120, description="What the rule does, in one line.")
    state: State = Field(description="The failure state entered; none for lines that are no incident.")
    severity: Literal["info", "warning", "critical"] = Field(default="warning", description="How bad it is.")
    status: Literal["stable", "experimental"] = Field(default="stable", description="An experimental rule never acts.")
    on: OnModel = Field(default=OnModel(), description="Which events are looked at.")
    match: Any = Field(description="Named selections and a condition.")
    role: Literal["root", "confirmation", "cascade"] = Field(default="root", description="Its rank among several.")
    takes_back: dict[Failure, Annotated[int, Field(ge=1, le=20)]] = Field(
        default={}, description="With the state none: failure states that so many lines above it told of, and that are over.")
    covers: tuple[Failure, ...] = Field(
        default=(), description="With the state none: failure states of which the traceback just below it counts no more.")
    when: Any = Field(default=None, description="Facts that must hold.")
    then: Any = Field(default=None, description="The actions, in order.")
    max_attempts: int = Field(default=3, ge=0, le=1000, description="Recoveries by this rule until it gives up.")
    backoff: BackoffModel = Field(default=BackoffModel(), description="Waiting between the attempts.")
    reset_after: Duration = Field(default=1800.0, ge=0, description="Healthy time after which its count starts anew.")
    escalate: EscalateModel = Field(default=EscalateModel(), description="What follows when it gives up.")
    explain: str = Field(default="", description="Why this is the answer, for the person who asks.")
    references: Texts = Field(default=(), description="Where more is written.")
    tests: Any = Field(default=None, description="Examples, run by `so8t rules test`.")


class LimitsModel(Settings):
    """The ceiling over all rules."""

    same_root_without_progress: int = Field(
        default=3, ge=1, le=1000, description="Recoveries from one failure state until progress is observed.")
    per_hour: int = Field(default=6, ge=1, le=1000, description="Recoveries in any hour; further ones wait.")
    per_run: int = Field(default=40, ge=1, le=10000, description="Recoveries in the life of a run.")
    roots: dict[Failure, Annotated[int, Field(ge=1, le=1000)]] = Field(
        default={}, description="same_root_without_progress for single states.")


FILE_KEYS = ("version", "rules", "limits")


class Reader:
    """Reads one file and collects what is wrong with it."""

    def __init__(self, located: Located) -> None:
        self.located = located
        self.problems: list[str] = []

    def say(self, path: KeyPath, text: str, *, key: bool = False) -> None:
        self.problems.append(f"{self.located.at(path, key=key)}: {text}")

    def keys(self, value: Any, path: KeyPath, known: Iterable[str], what: str) -> dict[str, Any]:
        """The known keys of a mapping; complains about others and about what is no mapping."""
        if not isinstance(value, Mapping):
            self.say(path, f"{what} must be a mapping of keys")
            return {}
        for name in value:
            if name not in known:
                self.say((*path, name), f"unknown key '{name}' in {what}{suggestion(str(name), known)}", key=True)
        return {name: value[name] for name in value if name in known}

    def model(self, kind: type[BaseModel], value: Any, path: KeyPath) -> Any:
        """A validated model, or None with its problems noted."""
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            self.problems += describe(error, kind, value, lambda at, key: self.located.at(at, key=key), path)
            return None

    # -- match ------------------------------------------------------------------------------------------------------

    def match(self, value: Any, path: KeyPath) -> tuple[dict[str, Selection], Condition | None, str]:
        """The selections, the condition over them, and its text."""
        if not isinstance(value, Mapping):
            self.say(path, "match must be a mapping: a name for each selection, and a condition")
            return {}, None, ""
        selections: dict[str, Selection] = {}
        for name, keys in value.items():
            if name == "condition":
                continue
            if name in SELECTORS and not isinstance(keys, Mapping):
                self.say((*path, name), f"'{name}' stands where a selection's name should; write 'NAME: {{{name}: …}}'",
                         key=True)
                continue
            if not NAME.fullmatch(name) or name in ("and", "or", "not"):
                self.say((*path, name), f"'{name}' is no name for a selection; use letters, digits, - and _", key=True)
            selections[name] = self.selection(keys, (*path, name))
        if not selections:
            self.say(path, "match names no selection; write 'NAME: {message|contains: …}'")
            return {}, None, ""
        return selections, *self.condition(value, selections, path)

    def condition(self, value: Mapping[str, Any], selections: Mapping[str, Selection],
                  path: KeyPath) -> tuple[Condition | None, str]:
        text = value.get("condition")
        if text is None:
            if len(selections) > 1:
                joined = " or ".join(selections)
                self.say(path, f"condition is missing; join the selections, as in '{joined}'", key=True)
                return None, ""
            text = next(iter(selections))
        if not isinstance(text, str):
            self.say((*path, "condition"), "condition must be text such as 'oom and not advice'")
            return None, ""
        try:
            found = parse(text)
        except ConditionError as error:
            self.say((*path, "condition"), f"condition: {error} (character {error.column + 1})")
            return None, text
        used = set(found.names())
        for name in sorted(used - selections.keys()):
            self.say((*path, "condition"), f"condition names '{name}', which is no selection here"
                     f"{suggestion(name, selections)}")
        for name in (name for name in selections if name not in used):
            self.say((*path, name), f"the selection '{name}' is in no condition; use it or remove it", key=True)
        return found, text

    def selection(self, value: Any, path: KeyPath) -> Selection:
        keys = self.keys(value, path, SELECTORS, f"the selection '{path[-1]}'")
        if isinstance(value, Mapping) and not value:
            self.say(path, f"the selection '{path[-1]}' is empty; known are {', '.join(SELECTORS)}")
        patterns = [found for at, text in self.texts(keys, path, "message|re") if (found := self.pattern(at, text))]
        exceptions = []
        for where, name in self.texts(keys, path, "exception"):
            if not re.fullmatch(r"[A-Za-z_*][\w*]*", name):
                self.say(where, f"exception: '{format_value(name, 40)}' is no type's name; write it without its module")
            elif name != ANY and ANY in name and len(max(name.split(ANY), key=len)) < SHORTEST_FAMILY:
                self.say(where, f"exception: '{name}' says too little; write {SHORTEST_FAMILY} letters in a row or more")
            exceptions.append(name)
        declared = [name for _, name in self.texts(keys, path, "declares", FAILURES)]
        silence = keys.get("silence")
        if silence is not None:
            silence = self.duration(silence, (*path, "silence"))
        return Selection(
            tuple(patterns), tuple(text for _, text in self.texts(keys, path, "message|contains")),
            tuple(text for _, text in self.texts(keys, path, "message|startswith")), frozenset(exceptions),
            **{name: self.numbers(keys, path, name) for name in NUMBER_KEYS}, silence=silence,
            declares=frozenset(declared))

    def texts(self, keys: Mapping[str, Any], path: KeyPath, name: str,
              known: Iterable[str] | None = None) -> list[tuple[KeyPath, str]]:
        """The texts under a key, one or a list, each with its place."""
        if name not in keys:
            return []
        value = keys[name]
        found: list[tuple[KeyPath, str]] = []
        listed = value if isinstance(value, list) else [value]
        if not listed:
            self.say((*path, name), f"{name} is an empty list; write what to look for")
        for i, text in enumerate(listed):
            where = (*path, name, i) if isinstance(value, list) else (*path, name)
            if not isinstance(text, str) or not text:
                self.say(where, f"{name}: {format_value(text, 40)} must be text; put it in quotes")
            elif known is not None and text not in known:
                self.say(where, f"{name}: '{text}' is not known{suggestion(text, known)}")
            else:
                found.append((where, text))
        return found

    def pattern(self, where: KeyPath, text: str) -> re.Pattern[str] | None:
        try:
            return compile_pattern(text)
        except PatternRefused as error:
            self.say(where, f"message|re: '{format_value(text, 30)}': {error}")
            return None

    def duration(self, value: Any, path: KeyPath) -> float | None:
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.say(path, f"{path[-1]}: {format_value(value, 40)} {error}")
            return None
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
            self.say(path, f"{path[-1]}: {format_value(value, 40)} must be a duration such as 30s or 20m")
            return None
        return float(seconds)

    # -- numbers and facts ------------------------------------------------------------------------------------------

    def numbers(self, keys: Mapping[str, Any], path: KeyPath, name: str) -> Numbers:
        """``28``, ``[28, 122]``, ``5xx``, ``SIGKILL``, ``{ge: 500}`` or a list of these."""
        if name not in keys:
            return ()
        value = keys[name]
        listed = value if isinstance(value, list) else [value]
        if not listed:
            self.say((*path, name), f"{name} is an empty list; write a number")
        found = []
        for i, item in enumerate(listed):
            where = (*path, name, i) if isinstance(value, list) else (*path, name)
            if isinstance(item, Mapping):
                found.append(self.compares(item, where, numeric=True))
            else:
                found.append(self.number(item, where, name))
        return tuple(together for together in found if together)

    def number(self, item: Any, where: KeyPath, name: str) -> tuple[Compare, ...]:
        if isinstance(item, int) and not isinstance(item, bool):
            return (Compare("eq", item),)
        if name == "http_status" and isinstance(item, str) and re.fullmatch("[1-5]xx", item):
            return (Compare("ge", int(item[0]) * 100), Compare("lt", int(item[0]) * 100 + 100))
        if name == "signal":
            if item in SIGNALS:
                return (Compare("eq", SIGNALS[item]),)
            near = difflib.get_close_matches(str(item).upper(), SIGNALS, 1)
            advice = f", did you mean '{near[0]}'?" if near else "; write a number or a name such as SIGKILL"
            self.say(where, f"signal: {format_value(item, 40)} is not known{advice}")
            return ()
        extra = " or a class such as 5xx" if name == "http_status" else ""
        self.say(where, f"{name}: {format_value(item, 40)} must be a whole number{extra}")
        return ()

    def compares(self, value: Mapping[str, Any], path: KeyPath, *, numeric: bool = False) -> tuple[Compare, ...]:
        found = []
        for operator, wanted in self.keys(value, path, OPERATORS, "a comparison").items():
            where = (*path, operator)
            number = isinstance(wanted, int | float) and not isinstance(wanted, bool)
            if operator == "in":
                if not isinstance(wanted, list) or not wanted:
                    self.say(where, "in: needs a list of values, as in {in: [1, 2]}")
                    continue
            elif not number and (numeric or operator not in ("eq", "ne")):
                self.say(where, f"{operator}: {format_value(wanted, 40)} must be a number")
                continue
            elif isinstance(wanted, list | Mapping):
                self.say(where, f"{operator}: {format_value(wanted, 40)} must be one value")
                continue
            found.append(Compare(operator, wanted))
        if not value:
            self.say(path, f"the comparison is empty; known are {', '.join(OPERATORS)}")
        return tuple(found)

    def when(self, value: Any, path: KeyPath) -> dict[str, tuple[Compare, ...]]:
        """Facts and what must be true of them; a plain value means it must be equal."""
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.say(path, "when must be a mapping such as {training.batch_size: {gt: 1}}")
            return {}
        found = {}
        for name, wanted in value.items():
            if not FACT.fullmatch(name):
                self.say((*path, name), f"'{name}' is no fact's name; write it as training.batch_size", key=True)
            if isinstance(wanted, list):
                as_in = f"{{in: {format_value(wanted, 30)}}}"
                self.say((*path, name), f"{name}: a list compares with nothing; write {as_in}")
                continue
            found[name] = (self.compares(wanted, (*path, name)) if isinstance(wanted, Mapping)
                           else (Compare("eq", wanted),))
        return found

    # -- then -------------------------------------------------------------------------------------------------------

    def actions(self, value: Any, path: KeyPath) -> tuple[Action, ...]:
        """The actions of a rule, their arguments checked and filled up with defaults."""
        if value is None:
            return ()
        if not isinstance(value, list):
            self.say(path, "then must be a list of actions, each on a line with '- '")
            return ()
        found = [self.action(item, (*path, i)) for i, item in enumerate(value)]
        seen: set[str] = set()
        for i, action in enumerate(found):
            if action and action.name in seen:
                self.say((*path, i), f"the action '{action.name}' is there twice; keep one of the two")
            seen.add(action.name if action else "")
        return tuple(action for action in found if action)

    def action(self, item: Any, path: KeyPath) -> Action | None:
        name, where = item, path
        arguments: Any = {}
        if isinstance(item, Mapping):
            if len(item) != 1:
                self.say(path, "one action with its arguments has one key; begin the next action on a line with '- '")
                return None
            (name, arguments), = item.items()
            arguments, where = ({} if arguments is None else arguments), (*path, name)
        if not isinstance(name, str) or name not in ACTIONS:
            self.say(where, f"unknown action '{format_value(name, 40)}'{suggestion(str(name), ACTIONS)}", key=True)
            return None
        checked = self.model(ACTIONS[name], arguments, where)
        return Action(name, checked.model_dump(mode="json")) if checked is not None else None


SIGNALS: dict[str, int] = {
    # The names of Linux, so that a rule file reads the same on Windows.
    "SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGILL": 4, "SIGTRAP": 5, "SIGABRT": 6, "SIGBUS": 7, "SIGFPE": 8,
    "SIGKILL": 9, "SIGUSR1": 10, "SIGSEGV": 11, "SIGUSR2": 12, "SIGPIPE": 13, "SIGALRM": 14, "SIGTERM": 15,
    "SIGXCPU": 24, "SIGXFSZ": 25, "SIGSYS": 31,
    **{found.name: found.value for found in signals.Signals},
}

