"""Which rules a line comes to: those with a text that stands in it, found by how the texts begin.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

START = 3


class Gates:
    """Texts of which a line must hold one to come through, by number; None lets every line through."""

    def __init__(self, texts: Mapping[int, Iterable[str] | None]) -> None:
        self._always = {number for number, known in texts.items() if known is None}
        self._numbers: dict[str, list[int]] = {}
        for number, known in texts.items():
            for text in known or ():
                self._numbers.setdefault(text, []).append(number)
        self._short = [text for text in self._numbers if len(text) < START]
        self._by_start: dict[str, list[str]] = {}
        for text in self._numbers:
            self._by_start.setdefault(text[:START], []).append(text)
        self._starts = frozenset(start for start in self._by_start if len(start) == START)

    def open_to(self, line: str) -> set[int]:
        """The numbers of which a text stands in the line, and those without any."""
        found = set(self._always)
        for start in self._starts & {line[i:i + START] for i in range(len(line) - START + 1)}:
            for text in self._by_start[start]:
                if text in line:
                    found.update(self._numbers[text])
        for text in self._short:
            if text in line:
                found.update(self._numbers[text])
        return found
