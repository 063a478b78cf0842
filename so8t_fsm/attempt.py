"""One attempt of a step: a child process, its records, its words, its end.  Knows nothing of the database."""

from __future__ import annotations

import collections
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from so8t_fsm import events, host
from so8t_fsm.child import EXIT_DONE, EXIT_STOPPED
from so8t_fsm.tokens import conceal_all

ENVIRONMENT = {
    # Nothing leaves the machine on its own account.
    "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "DISABLE_TELEMETRY": "1", "WANDB_MODE": "disabled",
    # The same bytes whenever it runs.
    "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false", "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
REMEMBERED_LINES = 1000
"""How much of a child's output is looked through for the cause when it fails."""
LONGEST_RECORD = 8000
"""Characters of any one text in an exception's record that are kept."""
LINGER = 3.0
"""Seconds to wait for the pipes to close after the child's end: a grandchild may hold them open."""


@dataclass
class Outcome:
    """How an attempt ended: exactly one of sealed, stopped, failure."""

    sealed: str | None = None
    stopped: bool = False
    failure: events.Failure | None = None


@dataclass
class Attempt:
    """A running child.  Iterate :meth:`incoming` in the caller's loop; nothing here blocks for longer than a tick."""

    spec: Mapping[str, Any]
    log: Callable[[str], None]
    progress: dict[str, Any] = field(default_factory=dict)
    last_sign: float = field(default_factory=time.monotonic)
    _queue: queue.Queue[tuple[str, Any]] = field(default_factory=queue.Queue)
    _last: collections.deque[tuple[int, float, str]] = field(
        default_factory=lambda: collections.deque(maxlen=REMEMBERED_LINES))
    _sealed: str | None = None
    _said_stopped: bool = False
    _exception: Mapping[str, Any] | None = None
    _killed_for: events.Failure | None = None
    _open_pipes: int = 2
    stop_reason: str | None = None
    _stop_deadline: float = 0.0
    _ended_at: float | None = None

    def start(self) -> None:
        """Spawn ``python -m so8t_fsm.child`` in a process group of its own and give it its specification."""
        hidden = ("SO8T__NOTIFICATIONS", "SO8T_DATABASE")  # they hold tokens and passwords that no step needs
        environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)} | ENVIRONMENT
        environment["TMPDIR"] = environment["TEMP"] = environment["TMP"] = str(self.spec["scratch"])
        endpoints = self.spec["config"].get("resources", {}).get("hub_endpoints") or ()
        if endpoints:
            environment["HF_ENDPOINT"] = str(endpoints[0])
        self.child = host.spawn(
            [sys.executable, "-m", "so8t_fsm.child"], env=environment, cwd=Path(self.spec["home"]),
        )
        self.child.tell(json.dumps(self.spec, default=str).encode())
        threading.Thread(target=self._read_records, daemon=True, name="records").start()
        threading.Thread(target=self._read_log, daemon=True, name="log").start()

    def _read_records(self) -> None:
        for line in self.child.records:
            try:
                self._queue.put(("record", json.loads(line)))
            except ValueError:
                self._queue.put(("log", f"unreadable record: {line!r}"))
        self._queue.put(("eof", None))

    def _read_log(self) -> None:
        for number, line in enumerate(self.child.log, 1):
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            self.log(text)
            self._last.append((number, time.time(), text))
            self.last_sign = time.monotonic()
        self._queue.put(("eof", None))

    def incoming(self, timeout: float) -> Iterator[dict[str, Any]]:
        """Records that arrived; waits for the first one at most ``timeout`` seconds.  Progress is kept, not yielded."""
        try:
            kind, payload = self._queue.get(timeout=timeout)
        except queue.Empty:
            return
        while True:
            if kind == "eof":
                self._open_pipes -= 1
            elif kind == "log":
                self.log(payload)
            else:
                self.last_sign = time.monotonic()
                self._note(payload)
                yield payload
            try:
                kind, payload = self._queue.get_nowait()
            except queue.Empty:
                return

    def _note(self, record: dict[str, Any]) -> None:
        kind = record.get("type")
        if kind == "progress":
            first = self.progress.get("first", record.get("done"))
            self.progress = {**{k: record.get(k) for k in ("done", "total", "unit", "note")}, "first": first}
        elif kind == "sealed":
            self._sealed = record.get("identity")
        elif kind == "stopped":
            self._said_stopped = True
        elif kind == "exception":
            self._exception = conceal_all(record.get("exception"), LONGEST_RECORD)

    def last_lines(self) -> list[tuple[int, float, str]]:
        """The end of what the child printed: number, time and text of each line."""
        return list(self._last)

    def ask_to_stop(self, reason: str, grace: float) -> None:
        """Ask once; after ``grace`` seconds :meth:`tend` kills the group."""
        if self.stop_reason is None:
            self.stop_reason = reason
            self._stop_deadline = time.monotonic() + grace
            self.child.tell(b"stop")

    def kill(self, failure: events.Failure | None = None) -> None:
        """Kill the whole process group now, because of ``failure`` or because nobody wants to wait."""
        self._killed_for = failure
        if self.stop_reason is None and failure is None:
            self.stop_reason = "killed"
        self.child.kill_group()

    def tend(self) -> None:
        """Enforce the grace time of a stop."""
        if self.stop_reason is not None and time.monotonic() > self._stop_deadline and self.child.poll() is None:
            self.log("no answer within the grace time; killing the process group")
            self.child.kill_group()

    def finished(self) -> bool:
        """The child is gone and all it said has been read."""
        if self.child.poll() is None:
            return False
        if self._open_pipes == 0 and self._queue.empty():
            return True
        self._ended_at = self._ended_at or time.monotonic()
        return time.monotonic() - self._ended_at > LINGER

    def close(self) -> Outcome:
        """Reap the whole group and say how the attempt ended."""
        code = self.child.wait()
        assert code is not None
        self.child.close()
        if code == EXIT_DONE and self._sealed:
            return Outcome(sealed=self._sealed)
        if self._killed_for is not None:
            return Outcome(failure=self._killed_for)
        if self._exception is not None and code != EXIT_STOPPED:
            return Outcome(failure=events.from_exception(self._exception))
        if self.stop_reason is not None or code == EXIT_STOPPED:
            return Outcome(stopped=True)
        return Outcome(failure=events.from_exit(code if code >= 0 else None, -code if code < 0 else None))
