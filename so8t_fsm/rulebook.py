"""The rules a runner goes by, kept current: a file that changes is taken up once it lints, else the old set stays."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from so8t_fsm import __version__, registry
from so8t_fsm.rules.load import RulesError, layers_of, load_rules

if TYPE_CHECKING:
    from so8t_fsm.rules.model import RuleSet

CHECKED = "rules-checked"
"""Below ``state/``: the hash of the files that last linted, so that a start need not read them all again."""


def _load(home: Path | None) -> RuleSet:
    return load_rules(layers_of(home), steps=registry.working_states())


class Rulebook:
    """The rule set of a home.

    Files that linted before, in this version, are only read when a failure asks for them; others are read at once.

    Raises (when made):
        RulesError: the files that are there now do not lint, so a run would go by no rules at all.
    """

    def __init__(self, home: Path, say: Callable[[str], None]) -> None:
        self._home, self._say = home, say
        self._seen = self._signature()
        self._rules: RuleSet | None = None
        digest, mark = self._digest(), home / "state" / CHECKED
        try:
            known = mark.read_text(encoding="ascii") == digest
        except (OSError, ValueError):
            known = False
        if not known:
            self._rules = _load(home)
            with contextlib.suppress(OSError):  # only a shortcut is lost
                mark.write_text(digest, encoding="ascii")

    def _files(self) -> Iterator[Path]:
        for _, folder in layers_of(self._home):
            yield from sorted(Path(folder).glob("*.y*ml"))

    def _digest(self) -> str:
        digest = hashlib.sha256(__version__.encode())
        for path in self._files():
            with contextlib.suppress(OSError):
                digest.update(f"\n{path}\n".encode("utf-8", "surrogateescape") + path.read_bytes())
        return digest.hexdigest()

    def _signature(self) -> tuple[tuple[str, int, int], ...]:
        found = []
        for path in self._files():
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((str(path), status.st_mtime_ns, status.st_size))
        return tuple(found)

    def current(self) -> RuleSet:
        """The rules as they are now; asks the file system, but reads only what changed."""
        signature = self._signature()
        if self._rules is None:
            self._seen = signature
            try:
                self._rules = _load(self._home)
            except RulesError as error:
                self._say(f"the recovery rules were changed but do not lint, the shipped ones answer: {error}")
                self._rules = _load(None)
        if signature != self._seen:
            self._seen = signature
            try:
                fresh = _load(self._home)
            except RulesError as error:
                self._say(f"the recovery rules were changed but do not lint, the old ones stay: {error}")
            else:
                if fresh.hash != self._rules.hash:
                    self._say(f"the recovery rules were changed: {len(fresh.rules)} rules from now on")
                self._rules = fresh
        return self._rules
