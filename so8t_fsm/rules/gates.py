"""Texts without which a rule cannot match a line: they follow from its patterns, types and numbers.  Pure."""

from __future__ import annotations

from so8t_fsm.rules.conditions import Condition
from so8t_fsm.rules.model import ANY, Rule, Selection
from so8t_fsm.rules.patterns import Literals, best, either, literals

TYPES = frozenset(("Error", "Exception", "Timeout", "Expired", "Interrupt", "Exit", "Enabled", "Failed", "Iteration",
                   "Disconnected", "Invalid", "BadZipFile", "BadGzipFile", "errors.", "exceptions.", "exc."))
"""In the name, or the module, of any exception that is not listed by name."""
ERRNO_SAID = frozenset(("rrno", "os error ", ", kind:", "Error("))
WINERROR_SAID = frozenset(("WinError", "Windows Error", "os error "))
HTTP_SAID = frozenset((
    "Client Error", "Server Error", "lient error", "erver error", "HTTPError", "HTTPStatus", "HTTPException",
    "HTTP Error", "HTTP 4", "HTTP 5", "HTTP status", "HTTP code", "Http", "eturned error: ",
    "ERROR 4", "ERROR 5", "rror 4", "rror 5", "nexpected status", "tatus code", "tatus_code", "tatuscode", "tatus Code",
    "tatus_Code", "tatusCode",
    "Bad Request", "Unauthorized", "Payment Required", "Forbidden", "Not Found", "Conflict", "Gone", "Too Many Requests",
    "Internal Server Error", "Bad Gateway", "Unavailable", "Gateway Time", "Unprocessable", "] [4", "] [5", "HTTP error ",
    ") when calling", "got 4", "got 5", "response: ", "rror code: ", "exceptions.",
    *(f"{said}{between}{first}" for said in ("tatus", "esponse code", "rror code", "eturned")
      for between in ("", " ", ":", ": ", "=", "= ") for first in "45")))


def gate(rule: Rule) -> Literals:
    """Texts of which one is in every log line that the rule matches; empty when it matches none, None when unknown."""
    if "log" not in rule.sources:
        return frozenset()
    return _of_condition(rule.condition, {name: _of_selection(s) for name, s in rule.selections.items()})


def _of_condition(condition: Condition, known: dict[str, Literals]) -> Literals:
    if condition.kind == "name":
        return known[condition.name]
    if condition.kind == "not":
        return None
    parts = [_of_condition(part, known) for part in condition.parts]
    if condition.kind == "or":
        return either(parts)
    return frozenset() if frozenset() in parts else best(parts)


def _of_selection(selection: Selection) -> Literals:
    if selection.of_end:
        return frozenset()
    options: list[Literals] = []
    if selection.message_re:
        options.append(either(map(literals, selection.message_re)))
    if selection.message_contains:
        options.append(frozenset(selection.message_contains))
    if selection.message_startswith:
        options.append(frozenset(selection.message_startswith))
    if selection.exception:
        options.append(TYPES if ANY in selection.exception else
                       frozenset(max(name.split(ANY), key=len) for name in selection.exception))
    for numbers, said in ((selection.errno, ERRNO_SAID), (selection.winerror, WINERROR_SAID),
                          (selection.http_status, HTTP_SAID)):
        if numbers:
            options.append(said)
    return best(options)
