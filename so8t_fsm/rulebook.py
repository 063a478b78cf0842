"""The rules a runner goes by, kept current: a file that changes is taken up once it lints, else the old set stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from so8t_fsm.rules import RulesError, RuleSet, layers_of, load_rules


class Rulebook:
    """The rule set of a home.

    Raises (when made):
        RulesError: the files that are there now do not lint, so a run would go by no rules at all.
    """

    def __init__(self, home: Path, say: Callable[[str], None]) -> None:
        self._home, self._say = home, say
        self._seen = self._signature()
        self._rules = load_rules(layers_of(home))

    def _signature(self) -> tuple[tuple[str, int, int], ...]:
        found = []
        for _, folder in layers_of(self._home):
            for path in sorted(Path(folder).glob("*.y*ml")):
                try:
                    status = path.stat()
                except OSError:
                    continue
                found.append((str(path), status.st_mtime_ns, status.st_size))
        return tuple(found)

    def current(self) -> RuleSet:
        """The rules as they are now; asks the file system, but reads only what changed."""
        signature = self._signature()
        if signature != self._seen:
            self._seen = signature
            try:
                fresh = load_rules(layers_of(self._home))
            except RulesError as error:
                self._say(f"the recovery rules were changed but do not lint, the old ones stay: {error}")
            else:
                if fresh.hash != self._rules.hash:
                    self._say(f"the recovery rules were changed: {len(fresh.rules)} rules from now on")
                self._rules = fresh
        return self._rules
