"""What can be read off an event: the links of its exception chain, and the numbers in a line of text.  Pure.

A log line that is the last line of a traceback (``httpx2.ReadTimeout: …``) is read as an exception of that type, so a
rule that names types and numbers holds for the record a child sent and for the log of a program that sent none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from so8t_fsm.events import Event
from so8t_fsm.rules.model import Selection, holds
from so8t_fsm.rules.patterns import LONGEST_LINE

LONGEST_CHAIN = 4 * LONGEST_LINE

# A type name with its module, or one that says by its ending what it is; Python's way, the JVM's, .NET's and node's.
RAISED = re.compile(
    r"^(?:\[?rank ?\d+\]?: ?|E {2,6}|Exception in thread \"[^\"]{1,80}\" |Caused by: |Unhandled exception\.? |Uncaught "
    r"|(?:ERROR|FATAL|Error):? )?(?:(?:[A-Za-z_]\w*\.)+_?([A-Z]\w*)"
    r"|(?:socket|select|zlib|struct|binascii|re)\.(timeout|gaierror|herror|error)"
    r"|([A-Z]\w*(?:Error|Exception|Timeout|Expired|Interrupt|Exit|Enabled|Failed|Iteration|Disconnected)|Exception"
    r"|BadZipFile|BadGzipFile))(?:: |:$|$|:(?=[A-Z]))")
# A word of several humps before a colon: a type if a rule knows it by name, else perhaps a heading.
HEADED = re.compile(r"^(?:E {2,6})?([A-Z][a-z0-9]+(?:[A-Z][A-Za-z0-9]*)+): ")
NO_ERROR = re.compile(r"Warning$")
ERRNO = re.compile(
    r"\b[Ee]rrno[ :=]{1,3}(\d{1,5})\b|\bos error (\d{1,5})\b|\bcode: (\d{1,5}), kind:|Error\((\d{1,5}), ['\"]")
WINERROR = re.compile(r"\bWin(?:dows )?Error[ :]{1,2}(\d{1,5})\b|\bos error (\d{1,5})\b")
HTTP = re.compile(
    r"\b([45]\d\d) (?:Client|Server) Error|(?:[Cc]lient|[Ss]erver) error \(?'?([45]\d\d)\b|HTTP ?Error:? ([45]\d\d)\b"
    r"|HTTP ?Error:? HTTP Error ([45]\d\d)\b|[Rr]eturned error: ([45]\d\d)\b|[Ss]tatus[ _]?[Cc]ode:? ?([45]\d\d)\b"
    r"|\b(?:ERROR|Error|error) ([45]\d\d): |^\w*(?:HTTP|Http)\w*: ([45]\d\d)\b|[Uu]nexpected status(?: code)?:? ([45]\d\d)\b"
    r"|\b(?:[Ss]tatus|[Rr]esponse code|[Ee]rror code|[Rr]eturned)[:=]? ?([45]\d\d)(?=$|[.,;:)'\"\]]|\s+(?:[A-Z]|for |from ))"
    r"|\bHTTP (?:status )?(?:code )?([45]\d\d)\b|\b([45]\d\d)[ :,-]{1,3}"
    r"(?:Bad Request|Unauthorized|Payment Required|Forbidden|Not Found|Conflict|Gone|Too Many Requests|Internal Server Error"
    r"|Bad Gateway|Service (?:Temporarily )?Unavailable|Gateway Time-?[Oo]ut|Unprocessable)\b"
    r"|^\S{1,80}: \[\w{1,8}\] \[([45]\d\d)\]|\bHTTP error ([45]\d\d)\b|\(([45]\d\d)\) when calling"
    r"|\bgot ([45]\d\d)$|response: ([45]\d\d)\b|[Ee]rror code: ([45]\d\d)\b"
    r"|exceptions\.\w{1,40}: ([45]\d\d) ")
RETRY_AFTER = re.compile(r"[Rr]etry[- ][Aa]fter:? (\d{1,6})")


@dataclass(frozen=True)
class Link:
    """One exception of a chain, or what a line of text says of one.

    Attributes:
        names: the type and its bases.
        perhaps: the name may be none of an exception, so that it counts only where a rule names it.
    """

    names: frozenset[str]
    http_status: int | None = None
    errno: int | None = None
    winerror: int | None = None
    perhaps: bool = False


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    return next((int(group) for group in match.groups() if group), None) if match else None


def raised(line: str) -> str | None:
    """The type of the exception that a line is the last line of, if it is one."""
    match = RAISED.match(line)
    name = (match[1] or match[2] or match[3]) if match else None
    return None if name is None or NO_ERROR.search(name) else name


@dataclass(frozen=True)
class Evidence:
    """An event, prepared for being matched against many rules."""

    event: Event

    @cached_property
    def text(self) -> str:
        return self.event.text[:LONGEST_CHAIN if self.event.source == "exception" else LONGEST_LINE]

    @cached_property
    def links(self) -> tuple[Link, ...]:
        record = self.event.exception
        if record is not None:
            return tuple(_link(link) for link in record.get("chain") or [record])
        if self.event.source not in ("log", "probe"):
            return ()
        name = raised(self.text)
        headed = HEADED.match(self.text) if name is None else None
        known = name or (headed[1] if headed else None)
        return (Link(frozenset((known,) if known else ()), _number(HTTP, self.text), _number(ERRNO, self.text),
                     _number(WINERROR, self.text), perhaps=headed is not None),)

    @cached_property
    def declared(self) -> str | None:
        """The failure state that the step itself named."""
        return str(self.event.exception.get("state") or "") or None if self.event.exception else None

    @cached_property
    def retry_after(self) -> float | None:
        """Seconds that the other side asked to wait."""
        chain = (self.event.exception or {}).get("chain") or []
        said = [float(link["retry_after"]) for link in chain if link.get("retry_after") is not None]
        found = RETRY_AFTER.search(self.text)
        return max(said, default=float(found[1]) if found else None)

    def shows(self, selection: Selection) -> bool:
        """Do all keys of a selection hold?"""
        event, text = self.event, self.text
        if selection.exit_code and not holds(selection.exit_code, event.exit_code):
            return False
        if selection.signal and not holds(selection.signal, event.signal):
            return False
        if selection.silence is not None and (event.quiet is None or event.quiet < selection.silence):
            return False
        if selection.declares and self.declared not in selection.declares:
            return False
        if selection.message_contains and not any(part in text for part in selection.message_contains):
            return False
        if selection.message_startswith and not text.startswith(selection.message_startswith):
            return False
        if selection.message_re and not any(pattern.search(text) for pattern in selection.message_re):
            return False
        return not selection.of_link or any(_fits(selection, link) for link in self.links)


def _link(record: Mapping[str, Any]) -> Link:
    # Rust's errors carry the operating system's number only in their text.
    text = str(record.get("message") or "")
    names = frozenset((str(record.get("type")), *record.get("bases", ())))
    return Link(names, record.get("http_status") or _number(HTTP, text), record.get("errno") or _number(ERRNO, text),
                record.get("winerror") or _number(WINERROR, text))


def _fits(selection: Selection, link: Link) -> bool:
    return (
        (not selection.exception or selection.is_type(link.names, link.perhaps))
        and (not selection.http_status or holds(selection.http_status, link.http_status))
        and (not selection.errno or holds(selection.errno, link.errno))
        and (not selection.winerror or holds(selection.winerror, link.winerror))
    )
