"""Eyes on the logs, and what is said when they see nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_for

from so8t_fsm import host
from so8t_fsm.watcher import Watcher


def seen(watcher: Watcher, name: str, seconds: float = 5.0) -> float:
    """Wait until a log is named; returns how long it took."""
    started = time.perf_counter()
    wait_for(lambda: name in watcher.changed(0.5), f"{name} to be named", seconds)
    return time.perf_counter() - started


def calm(watcher: Watcher) -> None:
    while watcher.changed(0.05):
        pass


def test_it_begins_with_all_there_is_and_goes_on_with_what_changes(tmp_path: Path) -> None:
    for name in ("a.log", "a.log.1", "b.log", "c.txt"):
        (tmp_path / name).write_text("1\n", encoding="utf-8")
    with Watcher(tmp_path) as watcher:
        assert watcher.blind is None and watcher.way.startswith("at once")
        assert watcher.changed(0.0) == {"a.log", "b.log"}
        calm(watcher)
        with (tmp_path / "b.log").open("a", encoding="utf-8") as out:
            out.write("2\n")
            out.flush()
            assert seen(watcher, "b.log") < 2.0
        (tmp_path / "new.log").write_text("3\n", encoding="utf-8")
        assert seen(watcher, "new.log") < 2.0
        (tmp_path / "a.log").rename(tmp_path / "a.log.2")
        assert seen(watcher, "a.log") < 2.0
        calm(watcher)
        (tmp_path / "c.txt").write_text("no log", encoding="utf-8")
        assert watcher.changed(0.3) == set()


def test_reading_a_log_is_no_change(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("1\n", encoding="utf-8")
    with Watcher(tmp_path) as watcher:
        calm(watcher)
        for _ in range(5):
            (tmp_path / "a.log").read_bytes()
        assert watcher.changed(0.3) == set()


def test_without_a_directory_it_is_blind_until_there_is_one(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    with Watcher(logs) as watcher:
        assert watcher.blind is not None and str(logs) in watcher.blind
        assert watcher.changed(0.0) == set()
        logs.mkdir()
        (logs / "a.log").write_text("1\n", encoding="utf-8")
        seen(watcher, "a.log")
        assert watcher.blind is None


def test_a_directory_that_was_replaced_is_watched_anew(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    with Watcher(logs) as watcher:
        calm(watcher)
        logs.rename(tmp_path / "old")
        wait_for(lambda: watcher.changed(0.2) is not None and watcher.blind, "blindness")
        logs.mkdir()
        (logs / "a.log").write_text("1\n", encoding="utf-8")
        seen(watcher, "a.log")
        assert watcher.blind is None
        calm(watcher)
        with (logs / "a.log").open("a", encoding="utf-8") as out:
            out.write("2\n")
        assert seen(watcher, "a.log") < 2.0


def test_a_dead_observer_is_replaced(tmp_path: Path) -> None:
    with Watcher(tmp_path) as watcher:
        calm(watcher)
        watcher._observer.stop()
        watcher._observer.join()
        (tmp_path / "a.log").write_text("1\n", encoding="utf-8")
        seen(watcher, "a.log")


def test_on_a_network_drive_it_polls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "is_network_path", lambda path: "nfs4 at /mnt/nas")
    with Watcher(tmp_path, poll=0.3) as watcher:
        assert watcher.blind is None and "nfs4" in watcher.way and watcher.way.startswith("looking every 0.3 s")
        calm(watcher)
        (tmp_path / "a.log").write_text("1\n", encoding="utf-8")
        seen(watcher, "a.log")


def test_without_notifications_to_be_had_it_polls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observe: Callable[..., None] = Watcher._observe

    def refuse(self: Watcher, every: float | None, why: str = "") -> None:
        if every is None:
            raise OSError(28, "inotify watch limit reached")
        observe(self, every, why)

    monkeypatch.setattr(Watcher, "_observe", refuse)
    with Watcher(tmp_path, poll=0.3) as watcher:
        assert watcher.blind is None and "inotify watch limit reached" in watcher.way
        calm(watcher)
        (tmp_path / "a.log").write_text("1\n", encoding="utf-8")
        seen(watcher, "a.log")


def test_notifications_that_never_come_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in some containers: the system takes the watch and says nothing."""
    log = tmp_path / "a.log"
    log.write_text("1\n", encoding="utf-8")
    wake: Callable[..., None] = Watcher.wake
    monkeypatch.setattr(Watcher, "wake", lambda self, name: wake(self, name) if "without notice" in self.way else None)
    with Watcher(tmp_path, poll=0.3) as watcher:
        assert seen(watcher, "a.log") < 2
        log.write_text("1\n2\n", encoding="utf-8")
        os.utime(log, (time.time() - 60,) * 2)
        wait_for(lambda: watcher.changed(0.1) is not None and "without notice" in watcher.way, "it to notice")
        assert watcher.blind is None
        calm(watcher)
        log.write_text("1\n2\n3\n", encoding="utf-8")
        seen(watcher, "a.log")


def test_a_file_system_that_cannot_be_listed_is_blindness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[Any], Any] = os.scandir

    def broken(path: Any) -> Any:
        if Path(path) == tmp_path:
            raise OSError(5, "Input/output error")
        return real(path)

    with Watcher(tmp_path, poll=0.2) as watcher:
        calm(watcher)
        with monkeypatch.context() as patched:
            patched.setattr(os, "scandir", broken)
            wait_for(lambda: watcher.changed(0.1) is not None and watcher.blind, "blindness")
            assert "Input/output error" in str(watcher.blind)
        wait_for(lambda: watcher.changed(0.1) is not None and watcher.blind is None, "sight")
