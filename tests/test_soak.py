"""Killed at random, started twice, frozen and replaced: whatever happens to runners, each step is committed once."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TRAIN, Home, finish, freeze, wait_for
from crash import checker
from crash.server import acknowledged
from soak import Figures, Soak

from so8t_fsm.schema import attempt, checkpoint

posix = pytest.mark.skipif(sys.platform == "win32", reason="process groups and SIGSTOP are POSIX")


def _through(figures: Figures, kills: int) -> None:
    assert not figures.violations, "\n".join(figures.violations[:20])
    assert figures.kills >= kills and figures.runs >= 1


@posix
def test_killed_fifteen_times(tmp_path: Path) -> None:
    _through(Soak(tmp_path, None, kills=15, longest=1.5).run(workers=2), 15)


@posix
@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_killed_a_thousand_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = Soak(tmp_path, None, kills=1000, longest=1.5).run(workers=2)
    with capsys.disabled():
        print(f"\n{figures.table()}")
    _through(figures, 1000)


@posix
@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_the_quickstart_killed_fifty_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = Soak(tmp_path, ROOT / "configs" / "quickstart.yaml", kills=50, longest=25).run()
    with capsys.disabled():
        print(f"\n{figures.table()}")
    _through(figures, 50)


@pytest.fixture
def slow(home: Home) -> Home:
    """A home whose training takes seconds, and whose lease ends after two."""
    return home.configure(TRAIN, toy={"items": 60, "pause": 0.05, "every_checkpoint": True},
                          automation={"lease_seconds": 2, "heartbeat_seconds": 0.5})


def _in_training(home: Home) -> bool:
    """Has the running attempt saved something?"""
    return home.database.exists() and bool(home.rows(checkpoint, "toy_train"))


def test_two_runners_at_once(slow: Home) -> None:
    """The second sees the first and leaves it alone; the first does not notice."""
    first = slow.start("resume", "--json", "--config", slow.config)
    wait_for(lambda: _in_training(slow), "training")
    second = slow.so8t("resume", expect=0)
    assert f"a runner is already at work (process {first.pid}" in second.stdout
    said = finish(first, 0)
    assert not checker.violations(slow.path, acknowledged(said))
    assert checker.outcome(slow.path)["state"] == "completed"
    assert len(slow.rows(attempt)) == len(TRAIN)


@posix
@pytest.mark.parametrize("thaw", ["while the other works", "when the other is through"])
def test_a_frozen_runner_is_replaced_and_can_write_nothing_more(slow: Home, reference: Home, thaw: str) -> None:
    """A suspended computer, a paused virtual machine: the first wakes up believing that it still holds the run."""
    first = slow.start("resume", "--json", "--config", slow.config)
    wait_for(lambda: _in_training(slow), "training")
    freeze(first, slow.database)
    try:
        assert "already at work" in slow.so8t("resume", expect=0).stdout
        time.sleep(2.1)
        second = slow.start("resume", "--json")
        if thaw.startswith("while"):
            wait_for(lambda: len(slow.rows(attempt, "toy_train")) == 2, "the other's attempt")
            os.kill(first.pid, signal.SIGCONT)
        by_second = finish(second, 0)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    by_first = finish(first, 75)
    assert "another runner took over" in by_first
    assert not checker.violations(slow.path, acknowledged(by_first) + acknowledged(by_second))
    assert acknowledged(by_second)[-1]["state"] == "completed"
    assert [row["status"] for row in slow.rows(attempt, "toy_train")] == ["cut_off", "committed"]
    same = {step: files for step, files in checker.outcome(reference.path)["files"].items() if step in TRAIN[:2]}
    assert {step: checker.outcome(slow.path)["files"][step] for step in same} == same
