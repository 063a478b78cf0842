"""Secrets have no business in a database or a log: what looks like one is taken out of text before it is kept.

Only what has the form of a secret is known here; a secret whose value we hold ourselves (a notification's URL) is
taken out by value, in :func:`so8t_fsm.notify.redact`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

# The groups are what stays: enough to see which secret it was.
_FORMS = re.compile(
    r"\b(hf_|api_org_|gh[opsur]_|github_pat_|glpat-|xox[abeprs]-|sk-(?:ant-|proj-)?|AKIA|ya29\.|pypi-)[A-Za-z0-9_.\-]{12,}"
    r"|\b((?:Bearer|Basic)\s+)[A-Za-z0-9+/_.~=\-]{6,}"
    r"|(://)[^/\s:@]{1,200}:[^/\s@]{1,200}(?=@)"
    r"|\b([\w-]{0,40}(?:token|secret|passw(?:or)?d|passwd|api[_-]?key|access[_-]?key|signature|credential)\"?'?\s?[=:]\s?[\"']?)"
    r"(?!\s|[\"']?(?:None|null|true|false|not|is|was|and|for|has|invalid|missing|expired)\b)[^\s\"'&,;)\]}]{6,}"
    r"|(hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/)[\w/\-]{8,}",
    re.IGNORECASE)


def conceal(text: str) -> str:
    """``text`` with ``hf_***`` for ``hf_AbC…``, ``Bearer ***``, ``token=***``, ``https://***@host``."""
    return _FORMS.sub(lambda match: (match[match.lastindex] if match.lastindex else "") + HIDDEN, text)


def storable(text: str) -> str:
    """Text as any database takes it: without secrets, zeros and halves of characters."""
    return conceal(text.replace("\0", "")).encode("utf-8", "replace").decode()


def conceal_all(value: Any, longest: int | None = None) -> Any:
    """:func:`storable` for every text inside plain JSON values; texts are cut to ``longest`` characters, if given."""
    if isinstance(value, str):
        return storable(value)[:longest]
    if isinstance(value, Mapping):
        return {key: conceal_all(inner, longest) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [conceal_all(inner, longest) for inner in value]
    return value
