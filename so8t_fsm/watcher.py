"""Eyes on the logs: watchdog where the file system tells, polling where it doesn't, and an honest word when blind."""

from __future__ import annotations

import fnmatch
import queue
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from so8t_fsm import host

POLL_SECONDS = 300.0


class Watcher:
    """Says which log files may have grown.

    Use it as a context manager and iterate :meth:`changed`.  On a network drive, where no notification arrives, and
    as a safety net everywhere, all files are also looked at every ``poll`` seconds.

    Attributes:
        blind: why nothing can be seen at the moment, or None.  A blind watcher is never a healthy one.
    """

    def __init__(self, directory: Path, patterns: Sequence[str] = ("*.log",), poll: float = POLL_SECONDS) -> None:
        self.directory = directory
        self.patterns = tuple(patterns)
        self.poll = poll
        self.blind: str | None = None
        self._names: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._observer: Any = None
        self._polled_at = -1e18

    def __enter__(self) -> Watcher:
        self._observe()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(5)

    def _observe(self) -> None:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer
        from watchdog.observers.polling import PollingObserver

        names = self._names

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                if event.event_type in ("created", "modified", "moved"):
                    for path in (event.src_path, event.dest_path):
                        if path:
                            names.put(str(path))

        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            network = host.is_network_path(self.directory)
            self._observer = PollingObserver(timeout=min(self.poll, 5.0)) if network else Observer()
            self._observer.schedule(Handler(), str(self.directory))
            self._observer.start()
            self.blind = None
        except OSError as error:
            # Out of inotify watches, say: the poll below still sees, only later.
            self._observer = None
            self.blind = f"{self.directory}: {error.strerror or error}; looking every {self.poll:g} s instead"

    def files(self) -> list[Path]:
        """Every log there is now, oldest first."""
        try:
            found = [p for p in self.directory.iterdir() if self._is_log(p.name)]
        except OSError as error:
            self.blind = f"{self.directory}: {error.strerror}"
            return []
        return sorted(found, key=_modified)

    def _is_log(self, name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in self.patterns)

    def changed(self, timeout: float) -> Iterator[Path]:
        """Files that may have grown since they were last named; waits at most ``timeout`` seconds for the first."""
        names: set[str] = set()
        if time.monotonic() - self._polled_at >= self.poll:
            self._polled_at = time.monotonic()
            names.update(str(path) for path in self.files())
        else:
            try:
                names.add(self._names.get(timeout=timeout))
            except queue.Empty:
                return
        names.update(self._waiting())
        yield from self._logs(names)

    def _waiting(self) -> Iterator[str]:
        while True:
            try:
                yield self._names.get_nowait()
            except queue.Empty:
                return

    def _logs(self, names: Iterable[str]) -> list[Path]:
        return sorted((Path(name) for name in names if self._is_log(Path(name).name)), key=_modified)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
