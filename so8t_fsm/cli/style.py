"""Colours and marks of states, the same in every picture."""

from __future__ import annotations

from so8t_fsm.states import FAILURES, PERSON, WAITING, WORKING

MARKS = {"committed": "✓", "running": "▶", "failed": "✗", "pending": "·", "skipped": "–"}
STYLES = {"committed": "green", "running": "bold cyan", "failed": "red", "pending": "dim", "skipped": "dim"}


def colour(state: str) -> str:
    """The rich style of a state."""
    if state in WORKING:
        return "cyan"
    if state in FAILURES or state in PERSON:
        return "red"
    return "yellow" if state in WAITING else "green"
