"""A line of a log without what programs put in front of it: time stamps, colours, names.  Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from so8t_fsm.rules.patterns import LONGEST_LINE
from so8t_fsm.states import STATES

COLOUR = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")
STAMP = re.compile(
    r"\[?(?:\d{4}[-/]\d\d[-/]\d\d[T :_-]{1,2})?\d\d:\d\d:\d\d(?:[.,:]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?\]?:?[ \t]+(?:[-|] +)?"
    r"|\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\] |\[ {0,6}\d{1,9}\.\d{6}\] |\w{3} [ \d]\d \d\d:\d\d:\d\d \S{1,64} ")
# Which of several processes speaks: Ray and vLLM, mpirun.
SPEAKER = re.compile(
    r"(?:\((?:[A-Za-z_][\w.:-]{0,60} )?pid=\d{1,9}(?:, ip=[\w.:]{1,45})?\)|\[\d{1,4},\d{1,5}\]<std(?:err|out)>:) ?")
# vLLM's way: the level before the date, and behind it the place in the code.
LEVEL = re.compile(r"([A-Z]{4,8}) \d\d-\d\d \d\d:\d\d:\d\d \[[\w./]{1,100}:\d{1,6}\] ")
OWN = re.compile(r"\[([a-z_]\w{0,63})#(\d{1,9})\] ?")
MOVED = re.compile(r"(\w+) -> (\w+): (.*)")


@dataclass(frozen=True)
class Line:
    """What a line says, and in which attempt of which step if it says so.

    Attributes:
        moved: the two states and the reason where the machine tells of a transition.
        at: seconds since the epoch, where the line begins with a date, a time and ``Z``.
    """

    text: str
    step: str | None = None
    attempt: int | None = None
    moved: tuple[str, str, str] | None = None
    at: float | None = None


def clean(raw: str) -> Line:
    """Take the prefixes off.  Of a line rewritten by carriage returns, as by a progress bar, the last state counts."""
    text = raw.rstrip("\r\n ")
    if "\r" in text:
        text = text[text.rindex("\r") + 1:]
    text = text[: 4 * LONGEST_LINE]
    if "\x1b" in text:
        text = COLOUR.sub("", text)
    stamp = STAMP.match(text)
    at = _instant(stamp[0]) if stamp else None
    text = text[stamp.end():] if stamp else text
    own = OWN.match(text)
    if own is None:
        moved = MOVED.match(text)
        if moved and moved[1] in STATES and moved[2] in STATES:
            return Line("", moved=(moved[1], moved[2], moved[3]), at=at)
        return Line(_said(text), at=at)
    text = text[own.end():]
    stamp = STAMP.match(text)
    return Line(_said(text[stamp.end():] if stamp else text), own[1], int(own[2]), at=at)


def _said(text: str) -> str:
    speaker = SPEAKER.match(text)
    text = text[speaker.end():] if speaker else text
    level = LEVEL.match(text)
    return (f"{level[1]} {text[level.end():]}" if level else text)[:LONGEST_LINE]


def _instant(stamp: str) -> float | None:
    try:
        return datetime.fromisoformat(stamp.strip(" \t-|")).timestamp() if "Z" in stamp else None
    except ValueError:
        return None
