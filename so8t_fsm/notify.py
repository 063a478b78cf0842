"""Tell a person, over whatever service they chose (apprise).  A notification that fails never hurts the run.

Service URLs hold tokens, so none of them reaches a log, a failure text or an exception from here.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Sequence
from typing import Literal

Severity = Literal["info", "warning", "critical"]

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
SECONDS = 20.0
THREAD_NAME = "so8t-notify"

log = logging.getLogger("so8t.notify")


def notify(
    urls: Sequence[str], title: str, body: str, severity: Severity = "info", min_severity: Severity = "info", *,
    seconds: float = SECONDS,
) -> list[str]:
    """Send one message to every service.  Returns one redacted line for each that failed; never raises.

    Args:
        urls: apprise URLs; with none, nothing is sent.
        severity: how bad it is; below ``min_severity`` nothing is sent.
        seconds: how long all of them together may take; the slow ones count as failed and are left behind.
    """
    if not urls or SEVERITIES.index(severity) < SEVERITIES.index(min_severity):
        return []
    answers: dict[int, str | None] = {}

    def send(n: int, url: str) -> None:
        answers[n] = _send(url, title, body, severity)

    threads = [
        threading.Thread(target=send, args=(n, url), name=f"{THREAD_NAME}-{n}", daemon=True)
        for n, url in enumerate(urls)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    failures = []
    for n, (url, thread) in enumerate(zip(urls, threads, strict=True)):
        thread.join(max(0.0, deadline - time.monotonic()))
        why = answers.get(n, f"no answer within {seconds:g} s")
        if why is not None:
            failures.append(f"notification {n + 1} of {len(urls)} ({_service(url)}): {redact(why, url)}")
    for failure in failures:
        log.warning("%s", failure)
    return failures


def desktop_url() -> str:
    """The apprise URL of this computer's own desktop; it fails softly where apprise's extra for it is missing."""
    return {"win32": "windows://", "darwin": "macosx://"}.get(sys.platform, "dbus://")


def redact(text: str, url: str) -> str:
    """``text`` without the parts of ``url`` that could be a secret or an address, as written or percent-decoded."""
    _, _, rest = url.partition("://")
    parts = {part for part in re.split(r"[/?&=@:;,#]+", rest) if len(part) > 2} | {rest, url}
    parts |= {urllib.parse.unquote(part) for part in parts} | {urllib.parse.quote(part) for part in parts}
    for part in sorted(filter(None, parts), key=len, reverse=True):
        text = text.replace(part, "***")
    return text


def _service(url: str) -> str:
    """The scheme, as ``discord`` or ``mailto``; what has none could be a bare token and is not shown."""
    scheme, separator, _ = url.partition("://")
    return scheme if separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]{0,20}", scheme) else "no service URL"


def _send(url: str, title: str, body: str, severity: Severity) -> str | None:
    """None when it was delivered, else why not (not yet redacted)."""
    try:
        _quiet_libraries()
        import apprise

        _complaints.last = ""
        # The service itself, not an ``Apprise`` of one: that may send from a thread of its own, out of our filter.
        service = apprise.Apprise.instantiate(url, asset=apprise.AppriseAsset(app_id="SO8T", async_mode=False))
        if service is None:
            return "apprise cannot use this service URL; see its list of services for the form and what it needs"
        kinds = {"info": apprise.NotifyType.INFO, "warning": apprise.NotifyType.WARNING,
                 "critical": apprise.NotifyType.FAILURE}
        if service.notify(body=body, title=title, notify_type=kinds[severity]):
            return None
    except Exception as error:  # a plugin may raise anything; the run goes on
        return f"{type(error).__name__}: {error}"
    return str(_complaints.last) or "the service refused it"


_complaints = threading.local()
"""apprise's last complaint in this thread: it names the cause, which ``notify()`` itself does not return."""


def _keep_to_ourselves(record: logging.LogRecord) -> bool:
    """A filter: what is logged while we send, with URLs in it, goes no further than the failure's redacted line."""
    if not (record.threadName or "").startswith(THREAD_NAME):
        return True
    if record.name == "apprise" and record.levelno >= logging.WARNING:
        _complaints.last = record.getMessage()
    return False


def _quiet_libraries() -> None:
    """apprise prints a malformed URL whole, and urllib3 every path at DEBUG."""
    for name in ("apprise", "urllib3.connectionpool", "urllib3.util.retry", "requests_oauthlib.oauth1_session"):
        logger = logging.getLogger(name)
        if _keep_to_ourselves not in logger.filters:
            logger.addFilter(_keep_to_ourselves)
