"""Eyes on the logs: watchdog where the file system tells, polling where it doesn't, and an honest word when blind."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from so8t_fsm import host
from so8t_fsm.tail import log_of

POLL_SECONDS = 300.0
NETWORK_POLL_SECONDS = 5.0
RETRY_SECONDS = 1.0
LATE_SECONDS = 2.0
"""A change older than this that nothing told of was missed."""


class Watcher:
    """Says which logs of a directory may have grown.

    Use it as a context manager and call :meth:`changed` again and again.  Where no notification arrives (network
    drives, some containers), and as a safety net everywhere, all files are also looked at every ``poll`` seconds.

    Attributes:
        blind: why changes go unseen at the moment, or None.  A blind watcher is never a healthy one, though what it
            missed is read as soon as it sees again: the marks of the logs say from where.
        way: how it sees, for a person.
    """

    def __init__(self, directory: Path, patterns: Sequence[str] = ("*.log",), poll: float = POLL_SECONDS) -> None:
        self.directory = directory
        self.patterns = tuple(patterns)
        self.poll = poll
        self.blind: str | None = "not looking yet"
        self.way = ""
        self._observer: Any = None
        self._watched: int | None = None
        self._retry_at = 0.0
        self._poll_at = 0.0
        self._deaf = ""
        self._known: dict[str, int] = {}
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._told = threading.Event()

    def __enter__(self) -> Watcher:
        self._look_after()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def changed(self, timeout: float) -> set[str]:
        """Logs that may have grown since they were last named; waits at most ``timeout`` seconds for the first.

        When blind it waits in vain, for a second at most: call it again.
        """
        self._look_after()
        now = time.monotonic()
        if self.blind is None and now >= self._poll_at:
            self._poll_at = now + self.poll
            return self._take() | self._all()
        latest = self._poll_at if self.blind is None else self._retry_at
        self._told.wait(max(0.0, min(timeout, latest - now, RETRY_SECONDS)))
        return self._take()

    def wake(self, name: str) -> None:
        """Someone says that a file has changed; called from the observer's thread."""
        with self._lock:
            self._names.add(name)
        self._told.set()

    def _take(self) -> set[str]:
        self._told.clear()
        with self._lock:
            names, self._names = self._names, set()
        for name in names:
            self._known.pop(name, None)
        return {log for name in names if (log := log_of(name, self.patterns)) is not None}

    def _all(self) -> set[str]:
        """Every log there is; on the way, look whether the notifications still tell of changes."""
        known: dict[str, int] = {}
        missed = False
        try:
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    if log_of(entry.name, self.patterns) is not None:
                        status = entry.stat()
                        known[entry.name] = status.st_size
                        grown = self._known.get(entry.name, status.st_size) != status.st_size
                        missed = missed or (grown and time.time() - status.st_mtime > LATE_SECONDS)
        except OSError as error:
            self._lose(f"{self.directory}: {error.strerror or error}")
        self._known = known
        if missed and not self._deaf:
            self._deaf = "changes come without notice here"
            self._stop()
            self._retry_at = 0.0
            self._look_after()
        return {log for name in known if (log := log_of(name, self.patterns)) is not None}

    # -- the observer -----------------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        """See to it that somebody observes the directory that is there now."""
        now = time.monotonic()
        if now < self._retry_at:
            return
        self._retry_at = now + RETRY_SECONDS
        try:
            there = os.stat(self.directory).st_ino
        except OSError as error:
            self._lose(f"{self.directory}: {error.strerror or error}")
            return
        parts = (self._observer, *self._observer.emitters) if self._observer is not None else ()
        if parts and all(part.is_alive() for part in parts) and there == self._watched:
            return
        self._stop()
        network = host.is_network_path(self.directory)
        if network is None and not self._deaf:
            try:
                self._observe(None)
            except OSError as error:  # out of inotify watches, say
                self._deaf = error.strerror or str(error)
        if self._observer is None:
            try:
                self._observe(min(self.poll, NETWORK_POLL_SECONDS), network or self._deaf)
            except OSError as error:
                self._lose(f"{self.directory}: {error.strerror or error}")
                return
        self._watched, self.blind, self._poll_at, self._known = there, None, 0.0, {}

    def _observe(self, every: float | None, why: str = "") -> None:
        """Start watchdog's observer: the system's own, or one that looks ``every`` so many seconds."""
        from watchdog.events import (
            FileCreatedEvent,
            FileModifiedEvent,
            FileMovedEvent,
            FileSystemEvent,
            FileSystemEventHandler,
        )
        from watchdog.observers import Observer
        from watchdog.observers.polling import PollingObserver

        wake = self.wake

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                for path in (event.src_path, event.dest_path):
                    if path:
                        wake(os.path.basename(os.fsdecode(path)))

        # It complains on stderr of what comes in while it is being stopped.
        logging.getLogger("watchdog").setLevel(logging.CRITICAL)
        observer: Any = Observer() if every is None else PollingObserver(timeout=every)
        observer.schedule(
            Handler(), str(self.directory), event_filter=[FileCreatedEvent, FileModifiedEvent, FileMovedEvent])
        observer.start()
        self._observer = observer
        self.way = (f"at once, and looking every {self.poll:g} s" if every is None
                    else f"looking every {every:g} s ({why})")

    def _lose(self, why: str) -> None:
        self.blind = why
        self._stop()

    def _stop(self) -> None:
        observer, self._observer, self._watched = self._observer, None, None
        if observer is not None and observer.is_alive():
            observer.stop()
            observer.join(5)
