"""What happened, from every source: an :class:`Event` is what the recovery rules match and the watcher stores.

:class:`Failure` is the answer where no rule is at hand: decided on the exception chain first, then on signal and exit
code; text is looked at last.  Pure, apart from :func:`describe`, which reads a live exception.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from so8t_fsm.states import FAILURES

OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|DefaultCPUAllocator: can't allocate memory|HIP out of memory"
    r"|cudaMalloc failed: out of memory|Cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED"
)
DEVICE = re.compile(
    r"CUDA error: (?!out of memory)|device-side assert|CUDA driver|uncorrectable ECC|NVML|no kernel image")
# torch.save never says ENOSPC: its zip writer only notices that it is not where it should be.
DISK = re.compile(r"No space left on device|os error 28|os error 112|unexpected pos \d+ vs \d+|basic_ios::clear"
                  r"|Disk quota exceeded|database or disk is full")
NETWORK_TYPES = frozenset({
    "ConnectError", "ReadError", "WriteError", "ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout",
    "RemoteProtocolError", "NetworkError", "TimeoutException", "ConnectionError", "ConnectionResetError",
    "ConnectionRefusedError", "ConnectionAbortedError", "BrokenPipeError", "gaierror", "TimeoutError",
    "LocalEntryNotFoundError", "OfflineModeIsEnabled",
})
REFUSED_TYPES = frozenset({
    "GatedRepoError", "RepositoryNotFoundError", "DisabledRepoError", "LocalTokenNotFoundError",
})


Source = Literal["exception", "log", "exit", "silence", "probe", "operator"]
SOURCES: tuple[Source, ...] = ("exception", "log", "exit", "silence", "probe", "operator")


@dataclass(frozen=True)
class Event:
    """One thing that was seen.  What a source does not know stays None.

    Attributes:
        source: who saw it: the child's own last words, a log, the end of the process, its silence, a measurement,
            a person.
        text: the log line, the probe's finding, the person's words; for an exception its chain, one line a link.
        exception: the record made by :func:`describe`.
        exit_code, signal: how the process ended; a signal is a positive number.
        at: seconds since the epoch.
        file, line: where a log line stands; lines count from 1.
        quiet: seconds without a sign of life, for ``silence``.
    """

    source: Source
    step: str | None = None
    attempt: int | None = None
    text: str = ""
    exception: Mapping[str, Any] | None = None
    exit_code: int | None = None
    signal: int | None = None
    at: float | None = None
    file: str | None = None
    line: int | None = None
    quiet: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the empty ones."""
        return {key: value for key, value in asdict(self).items() if value is not None and value != ""}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Event:
        """Read what any version stored: keys of a newer one are left out."""
        return cls(**{key: value for key, value in stored.items() if key in cls.__dataclass_fields__})


def exception_event(record: Mapping[str, Any], step: str | None = None, attempt: int | None = None,
                    at: float | None = None) -> Event:
    """The event of a record made by :func:`describe`."""
    links = record.get("chain") or [record]
    return Event("exception", step, attempt, "\n".join(map(_last_line, links)), record, at=at)


def _last_line(link: Mapping[str, Any]) -> str:
    """As Python prints it below a traceback."""
    module = link.get("module") or "builtins"
    return f"{'' if module == 'builtins' else f'{module}.'}{link.get('type')}: {link.get('message')}"


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended badly; stored as JSON in the attempt and in the run's incident."""

    state: str
    message: str
    exception: Mapping[str, Any] | None = None
    exit_code: int | None = None
    signal: int | None = None
    hint: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state, "message": self.message, "exception": self.exception, "exit_code": self.exit_code,
            "signal": self.signal, "hint": self.hint, **self.extra,
        }


def describe(error: BaseException) -> dict[str, Any]:
    """A JSON record of an exception: its chain of causes, outermost first, and the traceback's text."""
    chain = []
    for link in _chain(error):
        response = getattr(link, "response", None)
        chain.append({
            "type": type(link).__name__, "module": type(link).__module__, "message": str(link)[:4000],
            "bases": [base.__name__ for base in type(link).__mro__],
            "errno": getattr(link, "errno", None) if isinstance(link, OSError) else None,
            "winerror": getattr(link, "winerror", None),
            "http_status": getattr(response, "status_code", None), "retry_after": _retry_after(response),
        })
    return {
        **chain[0], "chain": chain, "state": getattr(error, "state", None), "hint": getattr(error, "hint", ""),
        "traceback": "".join(traceback.format_exception(error))[-8000:],
    }


def _retry_after(response: Any) -> float | None:
    """Seconds the server asks to wait: ``Retry-After`` (a number or a date), or what ``ratelimit`` says."""
    headers = getattr(response, "headers", None) or {}
    said = str(headers.get("retry-after") or headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", said):
        return float(said)
    if said:
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            return None
    window = re.search(r"\bt=(\d{1,9})", str(headers.get("ratelimit") or ""))
    return float(window[1]) + 1 if window and getattr(response, "status_code", None) == 429 else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def from_exception(record: Mapping[str, Any]) -> Failure:
    """Classify a record made by :func:`describe`."""
    chain = list(record.get("chain") or [record])
    said = record.get("state")
    state = said if said in FAILURES else next(
        (found for link in chain if (found := _classify_link(link))), "crashed"
    )
    first = chain[0]
    return Failure(state, f"{first.get('type')}: {first.get('message')}", record, hint=record.get("hint") or "")


def _classify_link(link: Mapping[str, Any]) -> str | None:
    kinds = {str(link.get("type")), *link.get("bases", ())}
    message = str(link.get("message", ""))
    status, errno = link.get("http_status"), link.get("errno")
    if kinds & {"MemoryError", "OutOfMemoryError", "_ArrayMemoryError"} or errno == 12 or OUT_OF_MEMORY.search(message):
        return "out_of_memory"
    if errno in (28, 122) or link.get("winerror") == 112 or DISK.search(message):
        return "disk_full"
    if DEVICE.search(message):
        return "device_failed"
    if status is not None:
        return "network_failed" if status in (408, 429) or status >= 500 else "hub_refused"
    if kinds & REFUSED_TYPES:
        return "hub_refused"
    if kinds & NETWORK_TYPES:
        return "network_failed"
    if kinds & {"ModuleNotFoundError", "ImportError"}:
        return "dependency_missing"
    if "CalledProcessError" in kinds:
        return "subprocess_failed"
    return None


def from_exit(exit_code: int | None, signal: int | None) -> Failure:
    """Classify an end without an exception record: the process was killed or left by itself."""
    if signal == 9 or exit_code == 137:
        killed = "the process was killed (SIGKILL): most often the kernel's out-of-memory killer"
        return Failure("out_of_memory", killed, exit_code=exit_code, signal=signal)
    if signal is not None:
        return Failure("crashed", f"the process died of signal {signal}", exit_code=exit_code, signal=signal)
    return Failure("crashed", f"the process ended with exit code {exit_code} and said nothing", exit_code=exit_code)
