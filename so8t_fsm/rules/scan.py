"""Reading whole logs, of this machine and of others, for what went wrong in them.  Memory stays flat.

A log of the machine says of each line in which attempt of which step it was written, and how the attempt ended, so
each failed attempt gives at most one incident and a successful one none.  In other logs lines that stand close
together are taken for one attempt.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from so8t_fsm.encodings import decode, guess_encoding
from so8t_fsm.events import Event
from so8t_fsm.incidents import Incident, weigh
from so8t_fsm.retracted import FURTHEST_BACK, needed
from so8t_fsm.rules.lines import Line, clean
from so8t_fsm.rules.match import Match, heard
from so8t_fsm.rules.model import RuleSet
from so8t_fsm.rules.prefilter import Prefilter
from so8t_fsm.states import FAILURES

BLOCK = 1 << 20
LONGEST_RAW = 1 << 16
"""Bytes of one line that are looked at, from its end: a progress bar may rewrite one line for hours."""
GAP = 200
"""Lines without a finding after which, in a foreign log, another attempt has begun."""
KEPT = 1000
HEAD = 256
MOVES = (" -> ", "checkpoint ")


@dataclass(frozen=True)
class Progress:
    """The log tells of a checkpoint or of a finished step."""

    step: str | None
    line: int
    at: float | None = None


@dataclass
class _Attempts:
    """Findings of the attempts that are open while a log is read."""

    open: dict[str | None, list[Match]] = field(default_factory=dict)

    def add(self, found: Match) -> Iterator[Incident]:
        step = found.event.step
        kept = self.open.setdefault(step, [])
        if kept and not found.rule.harmless and self._another(kept[-1].event, found.event):
            yield from self.close(step)
            kept = self.open.setdefault(step, [])
        kept.append(found)
        if any(one.rule.harmless for one in kept[-FURTHEST_BACK:]):
            kept[-FURTHEST_BACK:] = needed(kept[-FURTHEST_BACK:])
        if len(kept) > KEPT:
            del kept[: KEPT // 2]

    @staticmethod
    def _another(last: Event, event: Event) -> bool:
        if event.attempt is not None:
            return last.attempt != event.attempt
        return (event.line or 0) - (last.line or 0) > GAP

    def close(self, step: str | None) -> Iterator[Incident]:
        incident = weigh(self.open.pop(step, []))
        if incident is not None:
            yield incident

    def drop(self, step: str | None) -> None:
        self.open.pop(step, None)


def scan(rule_set: RuleSet, stream: IO[bytes], name: str, prefilter: Prefilter | None = None) -> Iterator[Incident]:
    """The incidents in a log, in the order in which they ended."""
    return (found for found in follow(rule_set, stream, name, prefilter) if isinstance(found, Incident))


def follow(rule_set: RuleSet, stream: IO[bytes], name: str,
           prefilter: Prefilter | None = None) -> Iterator[Incident | Progress]:
    """Incidents, and the progress between them."""
    attempts = _Attempts()
    for number, line in read(stream, prefilter or Prefilter(rule_set, MOVES)):
        if line.moved is not None:
            yield from _moved(attempts, number, line)
            continue
        if line.step is None and line.text.startswith("checkpoint ") and " of " in line.text:
            yield Progress(line.text.split(" of ", 1)[1].split(" ", 1)[0], number, line.at)
        found = heard(rule_set, Event("log", line.step, line.attempt, line.text, at=line.at, file=name, line=number))
        if found is not None:
            yield from attempts.add(found)
    for step in list(attempts.open):
        yield from attempts.close(step)


def _moved(attempts: _Attempts, number: int, line: Line) -> Iterator[Incident | Progress]:
    """The machine says how an attempt ended."""
    assert line.moved is not None
    source, dest, reason = line.moved
    step = next((step for step in attempts.open if step is not None and reason.startswith(f"{step} committed")), None)
    if " committed" in reason:
        attempts.drop(step if step is not None else source)
        yield Progress(step or source, number, line.at)
    elif reason.startswith("stopped:"):
        attempts.drop(source)
    elif dest in FAILURES:
        for open_step in [name for name in attempts.open if name is not None]:
            yield from attempts.close(open_step)


def read(stream: IO[bytes], prefilter: Prefilter) -> Iterator[tuple[int, Line]]:
    """The lines that could matter, cleaned, with their numbers from 1.  A last line may lack its end."""
    number = 1
    for body in _blocks(stream):
        counted = 0
        for begin, end in prefilter.lines(body):
            number += body.count(b"\n", counted, begin)
            counted = begin
            for part in decode(body[max(begin, end - LONGEST_RAW):end], "utf-8").split("\r"):
                if part.strip():
                    yield number, clean(part)
        number += body.count(b"\n", counted)


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """The stream in pieces that end at the end of a line, as UTF-8 if it was UTF-16."""
    first = stream.read(BLOCK)
    encoding = guess_encoding(first[:HEAD])
    decoder = codecs.getincrementaldecoder(encoding)("replace") if encoding != "utf-8" else None
    first = first.removeprefix(codecs.BOM_UTF8)
    kept, block = b"", first
    while block:
        data = kept + (decoder.decode(block).lstrip("\ufeff").encode("utf-8", "replace") if decoder else block)
        cut = data.rfind(b"\n") + 1 or (len(data) if len(data) > BLOCK else 0)
        if cut:
            yield data[:cut]
        kept = data[cut:]
        block = stream.read(BLOCK)
    if kept:
        yield kept


def current_logs(directory: Path) -> list[Path]:
    """The log of the newest run below a directory, and that of the automatic start."""
    runs = sorted(directory.glob("complete_pipeline_*.log"), key=lambda path: path.stat().st_mtime)
    return [*runs[-1:], *(path for path in [directory / "automation_setup.log"] if path.is_file())]


def facts_of(incident: Incident, rule_set: RuleSet) -> dict[str, Any]:
    """An incident as ``so8t scan --json`` shows it."""
    rule = rule_set.rule(incident.rule)
    return {
        "rule": incident.rule, "state": incident.state, "severity": incident.severity, "line": incident.event.line,
        "text": incident.event.text, "actions": [action.name for action in rule.then] if rule else [],
        "file": incident.event.file, "step": incident.event.step, "attempt": incident.event.attempt,
        "confirmed": incident.confirmed,
    }


