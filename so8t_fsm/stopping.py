"""Being asked to stop: signals on POSIX, console events and the end of the session on Windows."""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

if sys.platform == "win32":
    from so8t_fsm import host_windows


class StopSignals:
    """While entered, requests to stop are noted instead of ending the process.

    Attributes:
        requested: why to stop, as ``SIGTERM``, ``CTRL_CLOSE_EVENT`` or ``Windows is shutting down``; None: not asked.
        count: how often it was asked; at the second Ctrl+C a person means *now*.
        saved: the main loop sets it when all is safe.  Windows then lets the process end without waiting longer.

    Enter it in the main thread: elsewhere Python cannot take signals, and only the Windows events are noted.
    """

    def __init__(self, wake: Callable[[], None] | None = None) -> None:
        """``wake`` is called at each request, inside a signal handler: it must be reentrant (``SimpleQueue.put``)."""
        self.requested: str | None = None
        self.count = 0
        self.saved = threading.Event()
        # Not an Event: setting one in a signal handler deadlocks when the main thread is just inside its lock.
        self._requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._wake = wake
        self._previous: dict[signal.Signals, Any] = {}
        self._windows: list[Any] = []

    def request(self, reason: str) -> None:
        """Note one request to stop; also for requests from elsewhere, as a row in the database."""
        self.requested = self.requested or reason
        self.count += 1
        self._requests.put(reason)
        if self._wake is not None:
            self._wake()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until the next request, at most ``timeout`` seconds.  True when there was one since the last call."""
        try:
            self._requests.get(timeout=timeout)
        except queue.Empty:
            return False
        while not self._requests.empty():
            self._requests.get_nowait()
        return True

    def __enter__(self) -> StopSignals:
        if sys.platform == "win32":
            self._windows = [host_windows.ConsoleEvents(self.request, self.saved),
                             host_windows.SessionWindow(self.request, self.saved)]
            for listener in self._windows:
                listener.start()
        elif threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                # Under nohup, or in a script's background, the signal is already ignored and shall remain so.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.saved.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        for listener in self._windows:
            listener.stop()
        self._previous, self._windows = {}, []

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)


@contextlib.contextmanager
def keep_awake() -> Iterator[None]:
    """Keep Windows from going to sleep meanwhile; call it in the thread that lives.  Elsewhere nothing is done."""
    if sys.platform == "win32":
        host_windows.keep_awake(True)
    try:
        yield
    finally:
        if sys.platform == "win32":
            host_windows.keep_awake(False)
