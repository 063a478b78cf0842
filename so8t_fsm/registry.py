"""The steps that are installed, found by the entry-point group ``so8t.steps``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from so8t_fsm.settings import MACHINE_SECTIONS
from so8t_fsm.states import WORKING
from so8t_fsm.step import Settings, Step

GROUP = "so8t.steps"
ALIASES = {
    "collect": "collecting", "preprocess": "preprocessing", "train": "training", "integrate": "integrating",
    "evaluate": "evaluating", "upload": "uploading", "cleanup": "cleaning_up", "clean_up": "cleaning_up",
}


class StepUnknown(Exception):
    """A step is asked for that is not installed, or can't be loaded; the message is one line."""


@cache
def installed() -> dict[str, EntryPoint]:
    """Entry points by step name.  A name registered twice is an error, not a race."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in found and point.value != found[point.name].value:
            raise StepUnknown(f"two packages bring a step {point.name!r}: {found[point.name].value} and {point.value}")
        found[point.name] = point
    return found


@cache
def step_class(name: str) -> type[Step]:
    """The class behind a step's name.

    Raises:
        StepUnknown: not installed, or its module does not import, or its attributes are wrong.
    """
    point = installed().get(name)
    if point is None:
        raise StepUnknown(f"no step is called {name!r}{suggestion(name, installed())}")
    try:
        found = point.load()
    except Exception as error:
        raise StepUnknown(f"step {name!r} ({point.value}) can't be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Step)):
        raise StepUnknown(f"step {name!r}: {point.value} is not a subclass of so8t_fsm.step.Step")
    if found.name != name or found.state not in WORKING:
        raise StepUnknown(f"step {name!r}: {point.value} says name={found.name!r}, state={found.state!r}")
    return found


def sections(names: Sequence[str] | None = None) -> Mapping[str, type[Settings]]:
    """Every configuration section: the machine's own and those the installed steps bring.

    ``names`` are the steps a run is made of: they must load.  Another installed step that doesn't is left out.
    """
    result: dict[str, type[Settings]] = {}
    for name in sorted(installed(), key=_place):
        try:
            result.update(step_class(name).sections)
        except StepUnknown:
            if names is None or name in names:
                raise
    for name in names or ():
        result.update(step_class(name).sections)
    return {**result, **MACHINE_SECTIONS}


def working_states() -> dict[str, str]:
    """The working state of every name that a rule may call a step by: a state's own name, or an installed step's.

    A step that does not load is known by its name alone.
    """
    states = {state: state for state in WORKING}
    for name in installed():
        try:
            states.setdefault(name, step_class(name).state)
        except StepUnknown:
            states.setdefault(name, "")
    return states


def _place(name: str) -> tuple[int, str]:
    return (WORKING.index(name) if name in WORKING else len(WORKING), name)


def pipeline(names: Sequence[str]) -> list[type[Step]]:
    """The steps of a run, in order.

    Raises:
        StepUnknown: one is missing, named twice, or stands before a step of an earlier state.
    """
    found = [step_class(name) for name in names]
    if len(set(names)) != len(names) or not names:
        raise StepUnknown("automation.steps must name each step once, and at least one")
    places = [WORKING.index(step.state) for step in found]
    for i in range(1, len(places)):
        if places[i] < places[i - 1]:
            raise StepUnknown(
                f"automation.steps: {names[i]!r} works in {found[i].state!r} and can't come after {names[i - 1]!r}"
            )
    return found


def resolve(name: str, names: Sequence[str]) -> str:
    """A step's name as a person types it (``train`` means ``training``).

    Raises:
        StepUnknown: the run has no such step.
    """
    chosen = ALIASES.get(name, name)
    if chosen not in names:
        raise StepUnknown(f"no step is called {name!r}{suggestion(chosen, names)}; steps: {', '.join(names)}")
    return chosen


def suggestion(name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """", did you mean 'x'?" or nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f", did you mean {close[0]!r}?" if close else ""
