"""What other programs write into their logs while an attempt runs: the runner hears its child through a pipe, the rest here.

A converter's own log, a driver's, a downloader's: a line in one of them that some rule knows is an event of the attempt
that was running.  What stood there before is no evidence and is passed over; so nothing need be remembered of how far
the logs were read, and a monitor that follows the same logs is not in the way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from so8t_fsm import host
from so8t_fsm.events import Event
from so8t_fsm.incidents import noted
from so8t_fsm.rules.lines import clean
from so8t_fsm.rules.match import heard
from so8t_fsm.rules.model import RuleSet
from so8t_fsm.rules.prefilter import Prefilter
from so8t_fsm.tail import OWN_LOG, Batch, Logs
from so8t_fsm.watcher import Watcher

MOST = 200
"""Events that are taken in of one attempt; what repeats for ever must not fill the disk."""


class Ears:
    """Hears the logs of one directory that the machine does not write itself.

    Attributes:
        heard: the events of this attempt so far, at most :data:`MOST`.
        blind: why something that goes wrong in a log now would not be heard, or None.
        way: how it hears, for a person.
        told: the last ``(blind, way)`` that was passed on to whoever asks for the state.
    """

    def __init__(self, directory: Path, rules: Callable[[], RuleSet]) -> None:
        self.directory = directory
        self.heard: list[Event] = []
        self.blind: str | None = None
        self.told: tuple[str | None, str] | None = None
        self._rules = rules
        self._known: RuleSet | None = None
        self._step: tuple[str, int] = ("", 0)
        self._watcher: Watcher | None = None
        self._logs: Logs | None = None

    @property
    def way(self) -> str:
        return self._watcher.way if self._watcher is not None else ""

    def attend(self, step: str, attempt: int) -> None:
        """From here on, what is heard belongs to this attempt."""
        self._step, self.heard = (step, attempt), []
        if self._watcher is None:
            self._watcher = Watcher(self.directory).__enter__()
        self._logs = Logs(self.directory, wanted=_nothing, inodes=host.is_network_path(self.directory) is None)
        for _ in self._batches(self._all(), settled=0.0):
            pass
        self._known = None  # what is wanted is set again with the first line that may matter

    def listen(self, last: bool = False) -> list[Event]:
        """What was written since; never waits.

        Args:
            last: the attempt is over, so look at every log, and take a line for whole that has no end yet.
        """
        if self._watcher is None:
            return []
        names = self._watcher.changed(0.0)
        trouble = self._watcher.blind
        found: list[Event] = []
        named = self._all() if last else {name for name in names if not OWN_LOG.fullmatch(name)}
        if named and trouble is None:
            trouble = self._take(named, 0.0 if last else float("inf"), found)
        self.blind = trouble
        if not found:
            return []
        telling = {id(one.event) for one in noted(self._rules(), [*self.heard, *found])}
        kept = [event for event in found if id(event) in telling][:MOST - len(self.heard)]
        self.heard += kept
        return kept

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.__exit__(None, None, None)
            self._watcher = None

    def _take(self, names: Iterable[str], settled: float, found: list[Event]) -> str | None:
        """Read on in some logs.  Returns why one could not be read."""
        assert self._logs is not None
        rules = self._rules()
        if rules is not self._known:
            self._known, self._logs.wanted = rules, Prefilter(rules).lines
        for batch in self._batches(names, settled):
            found += self._events(rules, batch)
        return next((f"{self.directory / name}: {why}" for name, why in self._logs.problems.items()), None)

    def _events(self, rules: RuleSet, batch: Batch) -> list[Event]:
        step, attempt = self._step
        events = (Event("log", step, attempt, clean(line.text).text, at=time.time(),
                        file=f"{self.directory.name}/{batch.path.name}", line=line.number) for line in batch.lines)
        return [event for event in events if event.text and heard(rules, event) is not None]

    def _batches(self, names: Iterable[str], settled: float) -> Iterable[Batch]:
        assert self._logs is not None
        for name in names:
            try:
                while (batch := self._logs.take(name, settled)) is not None:
                    yield batch
            except OSError:
                return  # the watcher says so, and why

    def _all(self) -> set[str]:
        assert self._logs is not None
        try:
            return {name for name in self._logs.names() if not OWN_LOG.fullmatch(name)}
        except OSError:
            return set()


def _nothing(body: bytes) -> Iterable[tuple[int, int]]:
    return ()
