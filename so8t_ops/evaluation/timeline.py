"""How a run spent its time, read from the machine's record of it.  Pure; a key that is missing is simply not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any, Literal

STEPS = ("collecting", "preprocessing", "training", "integrating", "evaluating", "uploading", "cleaning_up")
FAILURES = frozenset({
    "out_of_memory", "disk_full", "network_failed", "hub_refused", "dependency_missing", "subprocess_failed",
    "data_invalid", "diverged", "stalled", "device_failed", "crashed"})
WAITING = frozenset({"waiting_for_resources", "backing_off"})
PERSON = frozenset({"paused", "needs_attention"})

Kind = Literal["working", "failed", "waiting", "person"]


@dataclass(frozen=True)
class Segment:
    """One stretch of time in one state, on the lane of the step it belongs to."""

    step: str
    kind: Kind
    state: str
    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds()


def moment(value: Any) -> datetime | None:
    """An ISO-8601 time as UTC, or None where there is none to be read."""
    try:
        read = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


def kind_of(state: str) -> Kind | None:
    """What a state means for whoever waits for the run; None for a run that has not begun or is over."""
    if state in STEPS:
        return "working"
    if state in FAILURES:
        return "failed"
    if state in WAITING:
        return "waiting"
    return "person" if state in PERSON else None


def segments(record: Mapping[str, Any], now: datetime) -> list[Segment]:
    """The run as stretches of time in order; the last one ends now.

    A step that the history does not mention is taken from its own start and commit times.
    """
    rows = sorted((r for r in record.get("history") or [] if moment(r.get("at"))), key=lambda r: r.get("rev") or 0)
    found: list[Segment] = []
    lane = STEPS[0]
    for row, following in zip_longest(rows, rows[1:]):
        state = str(row.get("to_state") or "")
        kind = kind_of(state)
        lane = state if state in STEPS else str(row.get("step") or lane)
        start, end = moment(row["at"]), moment(following["at"]) if following else now
        if kind and start and end and end >= start:
            found.append(Segment(lane, kind, state, start, end))
    told = {s.step for s in found}
    for step in record.get("steps") or []:
        name, start = str(step.get("name")), moment(step.get("started_at"))
        end = moment(step.get("committed_at"))
        if name not in told and start and end and end >= start and not step.get("reused_from"):
            found.append(Segment(name, "working", name, start, end))
    return sorted(found, key=lambda s: s.start)


def seconds_by_kind(found: Sequence[Segment], step: str) -> dict[str, float]:
    """How long a step worked, was broken, waited, or stood waiting for a person."""
    total: dict[str, float] = {"working": 0.0, "failed": 0.0, "waiting": 0.0, "person": 0.0}
    for segment in found:
        if segment.step == step:
            total[segment.kind] += segment.seconds
    return total


def incidents(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every time the run left its way, in order: when, in which step and attempt, what happened and why."""
    rows = sorted(record.get("history") or [], key=lambda r: r.get("rev") or 0)
    return [
        {"at": row.get("at"), "step": row.get("step"), "attempt": row.get("attempt"), "state": row.get("to_state"),
         "trigger": row.get("trigger"), "reason": row.get("reason") or ""}
        for row in rows if row.get("to_state") in FAILURES or row.get("to_state") == "needs_attention"]


def spoken(seconds: float | None) -> str:
    """A duration as people say it: ``4.2 s``, ``3 min 05 s``, ``7 h 12 min``, ``3 d 04 h``."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02} h"


def spoken_bytes(size: float) -> str:
    """A size in binary units: ``512 B``, ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
