"""YAML in which every key and value still knows its line and column.

YAML 1.2 by ruamel.yaml: ``1e-5`` is a number, ``on``, ``yes`` and ``no`` are strings.  Only plain values come
out (mappings with string keys, lists, strings, finite numbers, booleans, null): no tags, objects, dates or merge keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KeyPath = tuple[str | int, ...]

TAGS = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
"""What may be written without quotes.  The last three are read as the text they are."""

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What would break a message's one line, or reach a terminal as a command."""

ADVICE = (
    ("'\\t' that cannot start", "a tab character; indent with spaces"),
    ("mapping values are not allowed",
     "a second ':' in one value, or no ':' on the line above; put text with ': ' in quotes"),
    ("unknown escape character", "a backslash inside double quotes; write Windows paths in single quotes"),
    ("end of stream", "a quote is opened and never closed; close it"),
    ("<stream end>", "a bracket is opened and never closed; close it"),
    ("another document", "a second document after '---'; keep one document a file"),
    ("undefined alias", "an alias (*name) without its anchor (&name); put text that starts with '*' in quotes"),
    ("that cannot start any token", "a character that YAML keeps for itself; put the value in quotes"),
    ("could not find expected ':'", "a key without ': ' after it; write it as 'key: value'"),
    ("<block end>", "the indent does not match the lines above; line the keys up"),
)


class ConfigError(Exception):
    """Something that a person wrote cannot be used.  Each problem is one line: ``where: what is wrong; what to do``.

    Attributes:
        all: every problem found, the first one included.
    """

    def __init__(self, first: str, *more: str) -> None:
        self.all = tuple(UNPRINTABLE.sub(lambda m: ascii(m[0])[1:-1], line) for line in (first, *more))
        super().__init__(self.all[0] + (f" (and {len(more)} more)" if more else ""))


@dataclass(frozen=True)
class Mark:
    """A place in a file; both numbers count characters from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Located:
    """A YAML file.

    Attributes:
        name: how messages call the file.
        value: the top-level mapping, as plain values.
        keys, values: where each key and each value starts, by its path from the top, ``("training", "stages", 0)``.
    """

    name: str
    value: dict[str, Any]
    keys: Mapping[KeyPath, Mark]
    values: Mapping[KeyPath, Mark]

    def at(self, path: KeyPath, *, key: bool = False) -> str:
        """``file:line:column`` of a value, or of its key; where the path is not in the file, of what encloses it."""
        for end in range(len(path), -1, -1):
            near = path[:end]
            mark = self.keys.get(near) if key or end < len(path) else None
            if mark := mark or self.values.get(near):
                return f"{self.name}:{mark.line}:{mark.column}"
        return self.name


def load_yaml_located(path: Path, *, name: str | None = None, missing: str | None = None) -> Located:
    """Read one YAML file whose top level is a mapping.

    ``name`` is how messages call the file (default: the path), ``missing`` the whole message when there is none.

    Raises:
        ConfigError: it is missing, unreadable, not UTF-8, empty, not YAML, or holds what no configuration needs.
    """
    name = name or path.as_posix()
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(missing or f"{name}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror or error}; name a YAML file that can be") from None
    return parse_yaml_located(_decode(raw, name), name)


def parse_yaml_located(text: str, name: str) -> Located:
    """:func:`load_yaml_located` for text that is already there."""
    node = _compose(text, name)
    if node is None:
        raise ConfigError(f"{name}:1:1: the file is empty; write at least one 'section:' into it, or remove it")
    walk = _Walk(name)
    value = walk.value(node, ())
    if walk.problems:
        raise ConfigError(*walk.problems)
    if not isinstance(value, dict):
        mark = walk.values[()]
        raise ConfigError(f"{name}:{mark.line}:{mark.column}: the top level must be a mapping; "
                          "write it as 'section:' with its keys indented below")
    return Located(name, value, walk.keys, walk.values)


def parse_value(text: str, name: str) -> Any:
    """A value from an environment variable or an option, read as in YAML: ``4``, ``1e-5``, ``[a, b]``, ``'007'``.

    Text that is neither quoted nor in brackets is one scalar whatever it holds, so that paths and addresses need no
    quotes there.

    Raises:
        ConfigError: brackets or quotes do not match.
    """
    from ruamel.yaml import YAML, ScalarNode

    text = text.strip()
    walk = _Walk(name)
    if text[:1] in ("[", "{", "'", '"'):
        try:
            node = YAML(typ="safe", pure=True).compose(text)
        except Exception as error:  # every parser error means the same here, and the text itself may be a secret
            raise ConfigError(f"{name}: not a YAML value: {_advice(str(error))}") from None
    else:
        node = ScalarNode(tag=walk.yaml.resolver.resolve(ScalarNode, text, (True, False)), value=text)
    value = walk.value(node, ())
    if walk.problems:
        raise ConfigError(f"{name}: {walk.problems[0].removeprefix(name).split(': ', 1)[-1]}")
    return value


def _decode(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig")
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        try:
            guess = "" if b"\0" in raw or not raw.decode("cp932") else ", it looks like Shift_JIS"
        except UnicodeDecodeError:
            guess = ""
        raise ConfigError(f"{name}:{line}:{column}: not UTF-8{guess}; save the file as UTF-8") from None


def _compose(text: str, name: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        # What is never closed is noticed at the end of the file; a person looks for where it was opened.
        early = ("end of stream", "expected ':'")
        opened = error.context_mark if any(part in str(error.problem) for part in early) else None
        mark = opened or error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(f"{where}: {_advice(str(error.problem))}") from None
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        raise ConfigError(f"{name}:{line}:{column}: a control character; remove it") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply; flatten it") from None


def _advice(problem: str) -> str:
    for part, advice in ADVICE:
        if part in problem:
            return advice
    return f"not YAML: {' '.join(problem.split())}; check this line and the one above"


class _Walk:
    """Turns composed nodes into plain values, noting where each stood and what is wrong with it."""

    LIMIT = 200_000
    """Values in one file; anchors that multiply each other pass it long before memory ends."""

    def __init__(self, name: str) -> None:
        from ruamel.yaml import YAML

        self.name = name
        self.yaml = YAML(typ="safe", pure=True)
        self.keys: dict[KeyPath, Mark] = {}
        self.values: dict[KeyPath, Mark] = {}
        self.problems: list[str] = []
        self._open: set[int] = set()

    def value(self, node: Any, path: KeyPath) -> Any:
        mark = self._mark(node)
        self.values[path] = mark
        if len(self.values) > self.LIMIT:
            raise ConfigError(f"{self.name}: more than {self.LIMIT} values; are anchors repeated inside each other?")
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if kind not in TAGS:
            return self._problem(mark, f"the tag {node.tag} is not allowed; write a plain value")
        if id(node) in self._open:
            return self._problem(mark, "an alias inside its own anchor; write the value out")
        self._open.add(id(node))
        try:
            if kind == "map":
                return self._mapping(node, path)
            if kind == "seq":
                return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
            return self._scalar(node, kind, mark)
        finally:
            self._open.remove(id(node))

    def _mapping(self, node: Any, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            mark = self._mark(key_node)
            key = self._text(key_node.value, mark) if isinstance(key_node.value, str) else None
            if not key:
                self._problem(mark, "a key must be a word; put it in quotes if it needs odd characters")
            elif key == "<<":
                self._problem(mark, "merge keys (<<) are not supported; use 'extends: FILE' at the top level")
            elif key in found:
                first = self.keys[(*path, key)].line
                self._problem(mark, f"the key '{key}' is already set on line {first}; keep one of the two")
            else:
                self.keys[(*path, key)] = mark
                found[key] = self.value(value_node, (*path, key))
        return found

    def _scalar(self, node: Any, kind: str, mark: Mark) -> Any:
        if kind in ("str", "timestamp", "merge", "value"):
            return self._text(str(node.value), mark)
        try:
            value = self.yaml.constructor.construct_object(node)
        except (ValueError, KeyError):
            return self._problem(mark, f"not a valid {kind}; put text in quotes")
        if isinstance(value, float) and not math.isfinite(value):
            return self._problem(mark, f"{node.value} is not a finite number; write a number")
        return value

    def _text(self, text: str, mark: Mark) -> Any:
        """JSON writes what lies beyond 16 bits as two escapes; a lone one could never be stored again."""
        try:
            return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            return self._problem(mark, "half of a surrogate pair; write the character itself")

    def _problem(self, mark: Mark, text: str) -> None:
        self.problems.append(f"{self.name}:{mark.line}:{mark.column}: {text}")

    @staticmethod
    def _mark(node: Any) -> Mark:
        start = node.start_mark
        return Mark(start.line + 1, start.column + 1) if start else Mark(1, 1)


def dotted(path: Iterable[str | int]) -> str:
    """``("data", "sources", 0, "name")`` as ``data.sources[0].name``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
