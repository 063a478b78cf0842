"""``oom and not (advice or progress)``: a boolean expression over the names of selections.  Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

TOKEN = re.compile(r"\s*(?:([()])|([A-Za-z_][A-Za-z0-9_-]*)|(\S))")
DEEPEST = 50


class ConditionError(ValueError):
    """The expression cannot be read; the message is one line, ``column`` counts characters from 0."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


@dataclass(frozen=True)
class Condition:
    """A node: a name, or ``and``/``or``/``not`` over further nodes."""

    kind: Literal["name", "and", "or", "not"]
    name: str = ""
    parts: tuple[Condition, ...] = ()

    def holds(self, selection: Callable[[str], bool]) -> bool:
        """Evaluate, asking for each selection only when it matters."""
        if self.kind == "name":
            return selection(self.name)
        if self.kind == "not":
            return not self.parts[0].holds(selection)
        if self.kind == "and":
            return all(part.holds(selection) for part in self.parts)
        return any(part.holds(selection) for part in self.parts)

    def names(self) -> Iterator[str]:
        if self.kind == "name":
            yield self.name
        for part in self.parts:
            yield from part.names()


def parse(text: str) -> Condition:
    """Read an expression: ``not`` binds before ``and``, ``and`` before ``or``.

    Raises:
        ConditionError: it is empty, does not close its parentheses, or holds something else.
    """
    reader = _Reader(text)
    found = reader.either(0)
    if reader.token:
        raise ConditionError(f"nothing joins '{reader.token}' to what is before it; write 'and' or 'or'", reader.column)
    return found


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self._next = text, 0
        self.token, self.column = "", 0
        self.advance()

    def advance(self) -> None:
        match = TOKEN.match(self._text, self._next)
        if match is None:
            self.token, self.column = "", len(self._text)
            return
        kind = match.lastindex or 0
        self.token, self.column, self._next = match[kind], match.start(kind), match.end()
        if match[3]:
            raise ConditionError(f"'{match[3]}' has no meaning here; use names, and, or, not, ( )", self.column)

    def either(self, depth: int) -> Condition:
        return self._joined("or", lambda: self._joined("and", lambda: self._one(depth)))

    def _joined(self, word: Literal["and", "or"], part: Callable[[], Condition]) -> Condition:
        parts = [part()]
        while self.token == word:
            self.advance()
            parts.append(part())
        return parts[0] if len(parts) == 1 else Condition(word, parts=tuple(parts))

    def _one(self, depth: int) -> Condition:
        token, column = self.token, self.column
        if depth > DEEPEST:
            raise ConditionError("nested too deeply; name the parts in selections", column)
        if token in ("", ")", "and", "or"):
            where = f"before {token!r}" if token else "at the end"
            raise ConditionError(f"a selection's name is missing {where}", column)
        self.advance()
        if token == "not":
            return Condition("not", parts=(self._one(depth + 1),))
        if token != "(":
            return Condition("name", token)
        inner = self.either(depth + 1)
        if self.token != ")":
            raise ConditionError("this '(' is never closed", column)
        self.advance()
        return inner
