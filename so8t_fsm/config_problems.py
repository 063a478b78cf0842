"""From a pydantic error to one line a person can act on: where it stands, what is wrong, what to do."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from so8t_fsm.located import KeyPath, dotted

At = Callable[[KeyPath, bool], str]
"""Gives the place of a value (or, with True, of its key) as a message should name it."""

SAYINGS = {
    "model_type": "must be a mapping of keys", "model_attributes_type": "must be a mapping of keys",
    "dict_type": "must be a mapping of keys",
    "list_type": "must be a list", "tuple_type": "must be a list", "string_type": "must be text; put it in quotes",
    "int_type": "must be a whole number", "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number", "float_parsing": "must be a number",
    "bool_type": "must be true or false", "bool_parsing": "must be true or false",
    "byte_size": "must be a size such as 512MiB or 10GB", "byte_size_unit": "must be a size such as 512MiB or 10GB",
}
"""pydantic's error types that read better in words of our own."""


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models inside a type annotation: ``list[A] | dict[str, B]`` gives ``[A, B]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_in(part)]


def fields_at(models: Iterable[type[BaseModel]], path: KeyPath, data: Any) -> list[FieldInfo]:
    """The fields that a path below one of the models leads to; list positions and free keys are passed through.

    Where several models may stand at one place, those whose choices (``kind: hub``) fit what ``data`` holds there.
    """
    inner, fields = list(models), []
    for part in path:
        if isinstance(data, Mapping) and (here := [m for m in _fitting(inner, data) if part in m.model_fields]):
            fields = [m.model_fields[str(part)] for m in here]
            inner = [m for f in fields for m in models_in(f.annotation)]
        data = data[part] if _holds(data, part) else None
    return fields


def keys_at(models: Iterable[type[BaseModel]], path: KeyPath, data: Any) -> list[str]:
    """The keys that may stand below a path."""
    fields = fields_at(models, path, data)
    inner = [m for f in fields for m in models_in(f.annotation)] if path else list(models)
    for part in path:
        data = data[part] if _holds(data, part) else None
    return [name for m in _fitting(inner, data) for name in m.model_fields]


def _fitting(models: list[type[BaseModel]], data: Any) -> list[type[BaseModel]]:
    def fits(model: type[BaseModel]) -> bool:
        choices = {n: typing.get_args(f.annotation) for n, f in model.model_fields.items()
                   if typing.get_origin(f.annotation) is typing.Literal}
        return isinstance(data, Mapping) and all(data[n] in allowed for n, allowed in choices.items() if n in data)

    return [m for m in models if fits(m)] or models


def _holds(data: Any, part: int | str) -> bool:
    if isinstance(data, Mapping):
        return part in data
    return isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)


def suggestion(word: str, known: Iterable[str]) -> str:
    """``", did you mean 'batch_size'?"``, or what there is to choose from, or nothing."""
    names = sorted(set(known))
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    if near:
        return f", did you mean '{near[0]}'?"
    return f"; known are {', '.join(names)}" if names else "; remove it"


def unknown_key(path: KeyPath, known: Iterable[str]) -> str:
    """``unknown key 'batchsize' in training, did you mean 'batch_size'?``"""
    return f"unknown key '{path[-1]}' in {dotted(path[:-1])}{suggestion(str(path[-1]), known)}"


def describe(error: ValidationError, model: type[BaseModel], data: Any, at: At, prefix: KeyPath = ()) -> list[str]:
    """One line for each place that a model refused.

    ``data`` is what was validated, ``prefix`` its path in the whole document, ``at`` finds places by whole paths.
    """
    lines: dict[KeyPath, str] = {}
    for item in error.errors(include_url=False):
        inside = _real_path(item["loc"], data, missing=item["type"] == "missing")
        path = (*prefix, *inside)
        if path in lines:
            continue  # a union complains once for each of its members
        if item["type"] == "extra_forbidden":
            lines[path] = f"{at(path, True)}: {unknown_key(path, keys_at([model], inside[:-1], data))}"
        elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            context = item["ctx"]
            choices = re.findall("'([^']+)'", context.get("expected_tags", ""))
            lines[path] = _wrong_kind(item["input"], (*path, context["discriminator"].strip("'")), choices, at)
        elif item["type"] == "missing":
            lines[path] = f"{at(path[:-1], True)}: {dotted(path)} is missing; give it a value"
        else:
            what = _refusal(item, fields_at([model], inside, data)).removeprefix(f"{dotted(path)}: ")
            whole = isinstance(item["input"], Mapping | BaseModel)
            lines[path] = f"{at(path, whole)}: {dotted(path)}: {what}"
    return list(lines.values())


def _wrong_kind(value: Any, path: KeyPath, choices: list[str], at: At) -> str:
    """The key that tells one model from its siblings is missing or says something else."""
    if not isinstance(value, Mapping) or path[-1] not in value:
        return f"{at(path[:-1], False)}: {dotted(path)} is missing; give it a value"
    said = format_value(value[path[-1]], 60)
    return f"{at(path, False)}: {dotted(path)}: {said} is not allowed{suggestion(said, choices)}"


def _refusal(item: Mapping[str, Any], fields: list[FieldInfo]) -> str:
    rule = SAYINGS.get(item["type"])
    if item["type"] == "string_pattern_mismatch" and fields and fields[0].description:
        rule = f"not of the right form ({fields[0].description.rstrip('.')})"  # people do not read patterns
    elif rule is None:
        text = " ".join(str(item["msg"]).removeprefix("Value error, ").split())
        rule = re.sub(r"^(Input|String|List|Tuple|Set|Dictionary|Value) should", "must", text)
    value = item["input"]
    if isinstance(value, Mapping | BaseModel) and item["type"] not in SAYINGS:
        return rule
    if any("SecretStr" in repr(field.annotation) for field in fields):
        return f"not allowed: {rule}"
    return f"{format_value(value, 60)} is not allowed: {rule}"


def _real_path(loc: tuple[int | str, ...], data: Any, missing: bool) -> KeyPath:
    """pydantic's path without the names it adds for union members and dictionary keys, which stand in no file."""
    path: list[int | str] = []
    for i, part in enumerate(loc):
        if _holds(data, part):
            data = data[part]
        elif not (missing and i == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)


def booleans_as_numbers(raw: Any, value: Any, path: KeyPath = ()) -> Iterable[KeyPath]:
    """Where ``true`` stands for a number: pydantic would silently read it as 1."""
    if isinstance(raw, bool) and isinstance(value, int | float) and not isinstance(value, bool):
        yield path
    elif isinstance(raw, Mapping) and isinstance(value, Mapping):
        for key in raw.keys() & value.keys():
            yield from booleans_as_numbers(raw[key], value[key], (*path, key))
    elif isinstance(raw, list) and isinstance(value, list):
        for i, (left, right) in enumerate(zip(raw, value, strict=False)):
            yield from booleans_as_numbers(left, right, (*path, i))


def format_value(value: Any, width: int = 0) -> str:
    """A value as YAML has it on one line: ``1e-5``, ``true``, ``[a, b]``; cut to ``width`` characters (0: whole)."""
    text = _yaml(value)
    return text if not width or len(text) <= width else text[: width - 1] + "…"


def _yaml(value: Any) -> str:
    if isinstance(value, float):
        return re.sub(r"e([+-])0*(?=\d)", lambda m: "e" + m[1].replace("+", ""), repr(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str):
        plain = value and value == value.strip() and value.isprintable() and value[0] not in "[]{}'\"#&*!|>%@`-"
        return value if plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, default=str)
