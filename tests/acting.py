"""Actions without a run: their arguments, a scene of settings alone, and doing what was planned from its own words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from so8t_fsm import recovery
from so8t_fsm.actions import Intent, Outcome, Scene, vocabulary
from so8t_fsm.rules.vocabulary import ACTIONS


def arguments(name: str, **given: Any) -> dict[str, Any]:
    """An action's arguments with their defaults, as a rule hands them over."""
    found: dict[str, Any] = ACTIONS[name].model_validate(given).model_dump()
    return found


def imagined(values: Mapping[str, Any], state: str = "training") -> Scene:
    """A scene of which only the settings are looked at."""
    run = SimpleNamespace(id="r", steps=["training"], attempt=1)
    return Scene(None, Path("home"), run, None, values, state, state, "a test", (1, 1.0))  # type: ignore[arg-type]


def planned(name: str, values: Mapping[str, Any], state: str = "training", **given: Any) -> Intent:
    return recovery.plan(imagined(values, state), name, arguments(name, **given))


def perform(scene: Scene, name: str, intent: Intent) -> Outcome:
    return vocabulary()[name][1](scene, Intent.from_json(json.loads(json.dumps(intent.to_json()))))
