"""The table of every setting, made from the models: ``python -m so8t_fsm.config_reference [--update PAGE]``.

``docs/configuration.md`` holds it between two marks; a test fails when it is not the one printed here.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, BeforeValidator, ByteSize, SecretStr
from pydantic.fields import FieldInfo

from so8t_fsm.config_problems import format_value, models_in
from so8t_fsm.settings import MACHINE_SECTIONS, UNITS, parse_duration

BEGIN = "<!-- settings: made by `python -m so8t_fsm.config_reference --update docs/configuration.md` -->"
END = "<!-- end of settings -->"
SIGNS: Mapping[type, tuple[str, str]] = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
WORDS: Mapping[Any, str] = {
    bool: "true or false", int: "whole number", float: "number", str: "text", ByteSize: "size", SecretStr: "secret",
    type(None): "null", Any: "anything",
}


def reference(sections: Mapping[str, type[BaseModel]]) -> str:
    """The settings of all sections as Markdown, one table a section."""
    parts = []
    for name, model in sections.items():
        rows = "\n".join(_rows(name, model))
        parts.append(f"### {name}\n\n{inspect.getdoc(model)}\n\n"
                     f"| Setting | Kind | Default | Meaning |\n| --- | --- | --- | --- |\n{rows}\n")
    return "\n".join(parts)


def _rows(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        key = f"{prefix}.{name}"
        inner = models_in(info.annotation)
        if inner and info.annotation in inner:
            yield from _rows(key, inner[0])
            continue
        cells = (f"`{key}`", _kind(info.annotation, info), _default(info), info.description or "")
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        many = ".*" if typing.get_origin(info.annotation) in (dict, Mapping) else "[]"
        for each in inner:
            kind = _choice(each) if len(inner) > 1 else ""
            if kind:
                yield f"| `{key}[{kind}]` | mapping | | {inspect.cleandoc(each.__doc__ or '')} |"
            yield from _rows(f"{key}[{kind}]" if kind else key + many, each)


def _choice(model: type[BaseModel]) -> str:
    """``kind: hub`` for a model that is told from its siblings by the one value it allows in a field."""
    for name, info in model.model_fields.items():
        allowed = typing.get_args(info.annotation) if typing.get_origin(info.annotation) is typing.Literal else ()
        if info.is_required() and len(allowed) == 1:
            return f"{name}: {allowed[0]}"
    return ""


def _is_duration(metadata: list[Any]) -> bool:
    return any(isinstance(m, BeforeValidator) and m.func is parse_duration for m in metadata)


def _kind(annotation: Any, info: FieldInfo) -> str:
    """``whole number ≥ 1, ≤ 8``, ``one of `a`, `b` ``, ``list of text, not empty``."""
    word = "duration" if _is_duration(info.metadata) else _word(annotation)
    bounds, limits = [], []
    for item in info.metadata:
        if type(item) in SIGNS:
            attribute, sign = SIGNS[type(item)]
            bounds.append(f"{sign} {format_value(getattr(item, attribute))}")
        elif isinstance(item, MinLen) and item.min_length:
            limits.append("not empty" if item.min_length == 1 else f"at least {item.min_length} long")
        elif isinstance(item, MaxLen):
            limits.append(f"at most {item.max_length} long")
    return ", ".join([" ".join([word, *bounds[:1]]), *bounds[1:], *limits])


def _word(annotation: Any) -> str:
    if annotation in WORDS:
        return WORDS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return "duration" if _is_duration(list(arguments[1:])) else _word(arguments[0])
    if origin is typing.Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(f"`{format_value(a)}`" for a in arguments)
    if origin in (typing.Union, types.UnionType):
        choices = [c for a in arguments if typing.get_origin(a) is typing.Literal for c in typing.get_args(a)]
        rest = [a for a in arguments if typing.get_origin(a) is not typing.Literal]
        words = [_word(typing.Literal[*choices])] if choices else []
        return " or ".join(dict.fromkeys([*words, *(_word(a) for a in rest)]))
    if origin in (list, tuple, set, frozenset):
        kinds = [_word(a) for a in arguments if a is not Ellipsis]
        return "list of " + (kinds[0] if len(set(kinds)) == 1 else ", ".join(kinds))
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "mapping, see below"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"mapping to {_word(arguments[1])}"
    return getattr(annotation, "__name__", str(annotation))


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if _is_duration(info.metadata) and isinstance(value, int | float):
        return f"`{_duration(value)}`"
    if isinstance(value, ByteSize):
        return f"`{value.human_readable(separator='')}`" if value else "`0`"
    return f"`{format_value([_plain(v) for v in value] if isinstance(value, list | tuple) else _plain(value))}`"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, BaseModel) else value


def _duration(seconds: float) -> str:
    for unit, factor in reversed(UNITS.items()):
        if seconds and (seconds / factor).is_integer():
            return f"{seconds / factor:.0f}{unit}"
    return f"{seconds:g}s"


def in_page(page: str, table: str) -> str:
    """The page with the table between its marks.

    Raises:
        ValueError: the page lacks the marks.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n\n{table}\n{END}{tail}"


def all_sections() -> Mapping[str, type[BaseModel]]:
    """The sections of every installed step, then the machine's own."""
    from so8t_fsm import registry

    found = registry.sections()
    return {**{k: v for k, v in found.items() if k not in MACHINE_SECTIONS}, **MACHINE_SECTIONS}


def main(arguments: list[str]) -> int:
    table = reference(all_sections())
    if arguments[:1] == ["--update"] and len(arguments) == 2:
        page = Path(arguments[1])
        page.write_text(in_page(page.read_text(encoding="utf-8"), table), encoding="utf-8", newline="\n")
    elif arguments:
        print("usage: python -m so8t_fsm.config_reference [--update PAGE]", file=sys.stderr)
        return 2
    else:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        print(table, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
