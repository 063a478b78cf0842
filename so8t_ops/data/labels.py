"""The four classes, from the most permissive to the strictest."""

from __future__ import annotations

from collections.abc import Iterable

LABELS: tuple[str, ...] = ("ALLOW", "ESCALATION", "DENY", "REFUSE")
"""Order is strictness: where two sources disagree, the later one wins."""


def strictest(labels: Iterable[str | None]) -> str | None:
    """The strictest label of several; None where none of them is a label."""
    known = [label for label in labels if label is not None]
    return max(known, key=LABELS.index) if known else None
