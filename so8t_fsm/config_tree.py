"""Nested settings as dotted keys: what a step's prefixes select, and what differs between two configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from so8t_fsm.config_problems import format_value
from so8t_fsm.located import KeyPath


@dataclass(frozen=True)
class Change:
    """One setting that differs; a side that lacks it is None."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} {format_value(self.old)} → {format_value(self.new)}"


def get_at(values: Any, path: KeyPath) -> Any:
    """What stands at a path.

    Raises:
        LookupError: nothing does.
    """
    for part in path:
        values = values[part]
    return values


def every_path(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The path itself and every path inside the value."""
    yield path
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from every_path(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from every_path(inner, (*path, i))


def setting_paths(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every setting as (dotted key, path); lists and empty mappings are values."""
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, Mapping) and value:
            yield from setting_paths(value, here)
        else:
            yield ".".join(here), here


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as dotted keys; lists and empty mappings are values."""
    return {key: get_at(values, path) for key, path in setting_paths(values)}


def select(values: Mapping[str, Any], prefixes: Sequence[str]) -> dict[str, Any]:
    """The settings at or below the dotted prefixes, as dotted keys: what a step's configuration hash is made of."""
    return {key: value for key, value in flatten(values).items()
            if any(key == p or key.startswith(p + ".") for p in prefixes)}


def diff(old: Mapping[str, Any], new: Mapping[str, Any], prefixes: Sequence[str] | None = None) -> list[Change]:
    """What differs between two sets of values, below the prefixes or (None) anywhere, in the new one's order."""
    before = flatten(old) if prefixes is None else select(old, prefixes)
    after = flatten(new) if prefixes is None else select(new, prefixes)
    keys = [*after, *(key for key in before if key not in after)]
    return [Change(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]
