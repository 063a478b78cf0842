"""Layers of settings laid over each other, and for every path where its value comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from so8t_fsm.config_problems import booleans_as_numbers, describe, format_value, models_in, suggestion
from so8t_fsm.config_tree import every_path, get_at, setting_paths
from so8t_fsm.located import ConfigError, KeyPath, Located, dotted, parse_value
from so8t_fsm.settings import AutomationSettings
from so8t_fsm.step import Settings

ENVIRONMENT = "SO8T__"
MASK = "**********"
"""What stands for a secret wherever values are plain."""

Sections = Mapping[str, type[Settings]]
Overrides = Mapping[str, tuple[Any, str]]
"""Dotted key to (value, id of the rule that set it)."""


@dataclass(frozen=True)
class Origin:
    """Where a value was set: how provenance says it, and where messages point for the key and for the value."""

    label: str
    key: str
    value: str


class Layers:
    """The layers laid over each other so far, and for every path the last layer that touched it."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        self.values: dict[str, Any] = values or {}
        self.origins: dict[KeyPath, Origin] = {}
        self.problems: list[str] = []

    def add_file(self, document: Located) -> None:
        def origin(path: KeyPath) -> Origin:
            return Origin(document.at(path, key=True), document.at(path, key=True), document.at(path))

        for name, value in document.value.items():
            # A section whose keys are all commented out is null in YAML; it says nothing.
            self._put((name,), {} if value is None else value, origin)

    def add_environment(self, environ: Mapping[str, str], sections: Sections) -> None:
        for variable in sorted(environ):
            if variable.upper().startswith(ENVIRONMENT):
                where = f"environment {variable}"
                path = self._spelled(variable[len(ENVIRONMENT):].split("__"), sections)
                self._put_text(path, environ[variable], Origin(where, where, where))

    def add_sets(self, sets: Sequence[str]) -> None:
        for text in sets:
            key, equals, value = text.partition("=")
            where = f"--set {key.strip()}"
            if not equals:
                self.problems.append(f"{where}: no value; write it as --set section.key=value")
                continue
            self._put_text(tuple(key.strip().split(".")), value, Origin("--set", where, where))

    def add_overrides(self, overrides: Overrides) -> None:
        for key, (value, by) in overrides.items():
            where = f"recovery rule {by}"
            origin = Origin(where, where, where)
            self._put_at(tuple(key.split(".")), value, origin)

    def step_names(self) -> tuple[str, ...]:
        """The steps as far as the layers say so yet; nonsense is reported later, with everything else."""
        automation = self.values.get("automation")
        # The steps alone: a mistake beside them must not make their sections look unknown.
        known = {"steps": automation["steps"]} if isinstance(automation, Mapping) and "steps" in automation else {}
        try:
            return AutomationSettings.model_validate(known).steps
        except ValidationError:
            return AutomationSettings().steps

    def finish(self, sections: Sections) -> dict[str, Settings]:
        """Check everything.

        Raises:
            ConfigError: with every problem of every layer.
        """
        for name in self.values:
            if name not in sections:
                self.problems.append(f"{self.at((name,), True)}: unknown section '{name}'{suggestion(name, sections)}")
        typed = validate(self.values, sections, self.at, self.problems)
        if self.problems:
            raise ConfigError(*self.problems)
        return typed

    def provenance(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Where each effective setting comes from, by its dotted key."""
        return {key: self._label(path) for key, path in setting_paths(values)}

    def at(self, path: KeyPath, key: bool) -> str:
        """The place of a value or key as messages name it."""
        for end in range(len(path), 0, -1):
            origin = self.origins.get(path[:end])
            if origin:
                return origin.key if key or end < len(path) else origin.value
        return "defaults"

    def _label(self, path: KeyPath) -> str:
        if path in self.origins:
            return self.origins[path].label
        for end in range(len(path) - 1, 0, -1):
            # A mapping in a file does not speak of the keys it lacks; a scalar that a model expands speaks of them all.
            origin = self.origins.get(path[:end])
            if origin and not isinstance(get_at(self.values, path[:end]), Mapping):
                return origin.label
        return "default"

    def _put_text(self, path: tuple[str, ...], text: str, origin: Origin) -> None:
        try:
            self._put_at(path, parse_value(text, origin.value), origin)
        except ConfigError as error:
            self.problems += error.all

    def _put_at(self, path: tuple[str, ...], value: Any, origin: Origin) -> None:
        """Set one dotted key."""
        if not all(path):
            self.problems.append(f"{origin.key}: '{dotted(path)}' is no setting; write it as section.key")
            return
        for part in reversed(path[1:]):
            value = {part: value}
        self._put((path[0],), value, lambda _: origin)

    def _put(self, path: KeyPath, value: Any, origin: Callable[[KeyPath], Origin]) -> None:
        holder: Any = get_at(self.values, path[:-1])
        key = path[-1]
        if isinstance(value, Mapping) and isinstance(holder.get(key), Mapping):
            holder[key] = dict(holder[key])
            self.origins[path] = origin(path)
            for name, inner in value.items():
                self._put((*path, name), inner, origin)
            return
        for below in [p for p in self.origins if p[: len(path)] == path]:
            del self.origins[below]
        holder[key] = value
        for below in every_path(value, path):
            self.origins[below] = origin(below)

    def _spelled(self, parts: Sequence[str], sections: Sections) -> tuple[str, ...]:
        """The parts of a variable's name as the settings spell them; the case of a variable means nothing."""
        path: list[str] = []
        here: Any = self.values
        models: list[type[BaseModel]] = []
        for depth, part in enumerate(parts):
            fields = {n: f.annotation for m in models for n, f in m.model_fields.items()} if depth else dict(sections)
            names = {name.casefold(): name for name in (*(here if isinstance(here, Mapping) else ()), *fields)}
            name = names.get(part.casefold(), part.lower())
            path.append(name)
            here = here.get(name) if isinstance(here, Mapping) else None
            models = models_in(fields.get(name))
        return tuple(path)


def validate(values: Mapping[str, Any], sections: Sections, at: Callable[[KeyPath, bool], str],
              problems: list[str]) -> dict[str, Settings]:
    """Each section as its model; what a model refuses is added to ``problems``."""
    typed: dict[str, Settings] = {}
    for name, model in sections.items():
        raw = values.get(name, {})
        try:
            typed[name] = model.model_validate(raw)
        except ValidationError as error:
            problems += describe(error, model, raw, at, (name,))
            continue
        for path in booleans_as_numbers(raw, typed[name].model_dump(mode="json"), (name,)):
            problems.append(f"{at(path, False)}: {dotted(path)}: {format_value(get_at(values, path))} is not allowed: "
                            "must be a number")
    return typed


def dump(typed: Mapping[str, Settings]) -> dict[str, dict[str, Any]]:
    """The sections as plain JSON values, secrets masked."""
    return {name: model.model_dump(mode="json") for name, model in typed.items()}


def prune(value: Any, annotations: Sequence[Any]) -> Any:
    """What the models know of a stored value, without masked secrets."""
    models = [m for a in annotations for m in models_in(a)]
    if isinstance(value, list):
        return [prune(item, annotations) for item in value if item != MASK]
    if not isinstance(value, dict) or not models:
        return value
    fields: dict[str, list[Any]] = {}
    for model in models:
        for name, info in model.model_fields.items():
            fields.setdefault(name, []).append(info.annotation)
    return {k: prune(v, fields[k]) for k, v in value.items() if k in fields and v != MASK}
