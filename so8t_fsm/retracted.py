"""Which texts of an attempt count no more, because another line says so.  Pure.

A harmless rule takes back what stands just above its line ("Retrying in 2 s": the refused connection ended nothing), or
covers the traceback that begins just below it ("Exception ignored in": Python printed it and went on).  Both hold within
one log and one attempt, and for the failure states that the rule names; exceptions that our own child reports, exit
codes and measurements stand whatever is written beside them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from so8t_fsm.rules.match import Match

FURTHEST_BACK = 50
"""Of so many matches above it a line may take some back."""
BEGINS = 2
"""A covered traceback begins so many lines below the line that covers it, at most."""
LONGEST_TRACEBACK = 400
"""Lines; the recursion that fills more of them is cut short by Python."""
HEADING = "Traceback (most recent call last)"
LAST_LINE = re.compile(r"[A-Za-z_][\w.]{0,200}(?:: |:?$)")


@dataclass
class _Log:
    """One log of one attempt, read in order, as far as somebody's line may still bear on it."""

    above: deque[tuple[int, int, str]] = field(default_factory=lambda: deque(maxlen=FURTHEST_BACK))
    cover: int | None = None
    heading: int | None = None
    line: int = 0
    """Of the heading, or while there is none of the line that covers."""

    def cover_of(self, place: int, line: int, text: str) -> int | None:
        """Which line covers the traceback that a failure's line belongs to.  To be asked of each failure in order."""
        cover, below, begins = self.cover, line - self.line, text.startswith(HEADING)
        if cover is None:
            return None
        if self.heading is None:
            inside = 0 < below <= BEGINS if begins else below == 1 and LAST_LINE.match(text) is not None
        else:
            inside = not begins and 0 < below <= LONGEST_TRACEBACK and (text[:1] == " " or LAST_LINE.match(text) is not None)
        if inside and begins:
            self.heading, self.line = place, line
        elif not inside or text[:1] != " ":
            self.cover = self.heading = None
        return cover if inside else None


@dataclass(frozen=True)
class Retracted:
    """Places in a sequence of matches.

    Attributes:
        over: of those that count no more, and the place of the line that says so.
        pending: of those that may yet say so of what follows.
    """

    over: dict[int, int]
    pending: frozenset[int]


def retracted(found: Sequence[Match]) -> Retracted:
    """What is taken back among the matches of one attempt; they stand in the order in which they were seen."""
    over: dict[int, int] = {}
    logs: dict[tuple[str | None, str | None, int | None], _Log] = {}
    for i, one in enumerate(found):
        event, rule = one.event, one.rule
        if event.source != "log" or event.line is None:
            continue
        log = logs.setdefault((event.file, event.step, event.attempt), _Log())
        if rule.harmless:
            for place, line, state in log.above:
                if 0 <= event.line - line <= rule.takes_back.get(state, -1):
                    over.setdefault(place, i)
            if rule.covers:
                log.cover, log.heading, log.line = i, None, event.line
            continue
        cover = log.cover_of(i, event.line, event.text)
        if cover is not None and rule.state in found[cover].rule.covers:
            over[i] = cover
        if i not in over:
            log.above.append((i, event.line, rule.state))
    pending = {place for log in logs.values() for place in (log.cover, log.heading) if place is not None}
    return Retracted(over, frozenset(pending))


def standing(found: Sequence[Match]) -> list[Match]:
    """The failures among them that nobody took back."""
    over = retracted(found).over
    return [one for i, one in enumerate(found) if i not in over and not one.rule.harmless]


def needed(found: Sequence[Match]) -> list[Match]:
    """:func:`standing`, and what decides whether lines that are yet to come will stand."""
    gone = retracted(found)
    return [one for i, one in enumerate(found)
            if i in gone.pending or (i not in gone.over and not one.rule.harmless)]
