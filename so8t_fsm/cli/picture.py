"""The picture that ``so8t state`` shows a person."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from so8t_fsm.cli.style import MARKS, STYLES, colour


def render(facts: dict[str, Any]) -> RenderableType:
    """Seven steps with ticks, a bar for the running one, and what a person should know below."""
    steps = Table.grid(padding=(0, 1))
    for step in facts["steps"]:
        style = STYLES[step["status"]]
        active = step["name"] == facts["step"] and step["status"] in ("running", "failed", "pending")
        steps.add_row(
            Text(MARKS[step["status"]], style=style), Text(step["name"], style=style),
            _bar(facts["progress"]) if active and facts["progress"] else Text(step["status"], style="dim"),
        )
    notes = Table.grid(padding=(0, 1))
    for label, value in _notes(facts):
        notes.add_row(Text(label, style="dim"), value)
    title = Text.assemble((facts["run"], "bold"), "  ", (facts["state"], colour(facts["state"])),
                          "" if facts["runner_alive"] or facts["state"] == "completed" else "  (no runner)")
    return Panel(Group(steps, Text(), notes) if notes.row_count else steps, title=title, title_align="left", expand=False)


def _bar(progress: dict[str, Any]) -> RenderableType:
    done, total = progress.get("done") or 0, progress.get("total")
    words = f"{done:g}/{total:g} {progress.get('unit') or ''}" if total else f"{done:g} {progress.get('unit') or ''}"
    if progress.get("eta_s") is not None:
        words += f", {duration(progress['eta_s'])} left"
    if progress.get("note"):
        words += f"  {progress['note']}"
    row = Table.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=total or 1, completed=done if total else 0, width=24), Text(words))
    return row


def _notes(facts: dict[str, Any]) -> list[tuple[str, Text]]:
    notes = []
    if found := facts["checkpoint"]:
        seen = "verified" if found["verified"] else "not verified"
        notes.append(("checkpoint", Text(f"{found['step']} #{found['n']} at {found['position']:g}, {seen}, "
                                         f"{_age(found['committed_at'])} old")))
    for row in facts["overrides"]:
        notes.append(("override", Text(f"{row['key']}: {row['was']} → {row['value']} by {row['by']}, {_age(row['at'])} ago")))
    if incident := facts["incident"]:
        notes.append(("incident", Text(f"{incident.get('state')}: {incident.get('message')}", style="red")))
        if incident.get("hint"):
            notes.append(("", Text(str(incident["hint"]))))
    for seen in facts["watchers"]:
        if seen["blind"] is not None:
            notes.append(("blind", Text(f"the {seen['name']} does not see the logs, {_age(seen['since'])}: {seen['blind']}",
                                        style="red")))
    if facts["next_retry_at"]:
        left = (datetime.fromisoformat(facts["next_retry_at"]) - datetime.now(UTC)).total_seconds()
        notes.append(("next try", Text(f"in {duration(max(0.0, left))}")))
    return notes


def _age(at: str) -> str:
    return duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()))


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 14 min``, ``3 d 4 h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
