"""Any history of writing, rotating, reading and dying: every complete line comes in once and in order."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tailing import rotate, texts

from so8t_fsm import tail
from so8t_fsm.tail import Logs


class AnyHistory(RuleBasedStateMachine):
    """A writer does what writers do, a reader reads, commits or dies: every complete line comes in once, in order."""

    directory: Path
    keep = 4

    @initialize()
    def begin(self) -> None:
        for old in self.directory.iterdir():
            old.unlink()
        self.log = self.directory / "a.log"
        self.count = 0
        self.half = ""
        self.files: list[list[str]] = [[]]  # complete lines of each generation, oldest first
        self.taken: list[str] = []
        self.committed: list[str] = []
        self.logs = Logs(self.directory)
        self.stored = list(self.logs.marks.values())
        self.lost: set[str] = set()

    def put(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8", newline="") as out:
            out.write(text)

    @rule(n=st.integers(1, 30))
    def append(self, n: int) -> None:
        for _ in range(n):
            self.count += 1
            line = f"{self.half}{self.count}ソ"
            self.put(line[len(self.half):] + "\n")
            self.half = ""
            self.files[-1].append(line)

    @rule()
    def append_half(self) -> None:
        self.count += 1
        self.put(f"{self.count}…")
        self.half += f"{self.count}…"

    @precondition(lambda self: self.log.exists())
    @rule()
    def rotate(self) -> None:
        if self.half:  # nothing comes after it any more: it is a line
            self.files[-1].append(self.half)
            self.half = ""
        rotate(self.log, self.keep)
        self.log.touch()
        self.files.append([])
        if len(self.files) > self.keep + 1:
            self.lost.update(self.files.pop(0))

    @rule()
    def truncate(self) -> None:
        self.lost.update(self.files[-1])
        self.lost.add(self.half)
        self.files[-1], self.half = [], ""
        self.log.write_bytes(b"")

    @rule()
    def copy_and_truncate(self) -> None:
        if not self.log.exists() or self.half:
            return
        data = self.log.read_bytes()
        rotate_copy = self.directory / "a.log.1"
        for n in range(self.keep, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                (self.directory / f"a.log.{n}").rename(self.directory / f"a.log.{n + 1}")
        with contextlib.suppress(FileNotFoundError):
            (self.directory / f"a.log.{self.keep + 1}").unlink()
        rotate_copy.write_bytes(data)
        os.truncate(self.log, 0)
        self.files.append([])
        if len(self.files) > self.keep + 1:
            self.lost.update(self.files.pop(0))

    @rule(batches=st.integers(1, 5))
    def read(self, batches: int) -> None:
        for _ in range(batches):
            batch = self.logs.take("a.log")
            if batch is None:
                return
            self.taken += [line.text for line in batch.lines]

    @rule()
    def commit(self) -> None:
        self.stored = list(self.logs.marks.values())
        self.committed += self.taken
        self.taken = []

    @rule()
    def die(self) -> None:
        self.logs = Logs(self.directory, self.stored)
        self.taken = []

    def teardown(self) -> None:
        if not hasattr(self, "log"):
            return
        self.put("\n")  # the last half line is complete now
        if self.half:
            self.files[-1].append(self.half)
        self.taken += texts(self.logs)
        found = [line for line in self.committed + self.taken if line]
        assert len(found) == len(set(found)), "a line came in twice"
        there = [line for lines in self.files for line in lines]
        assert set(there) <= set(found), "a line that is still there was lost"
        assert set(found) <= set(there) | self.lost, "a line that nobody wrote"
        order = [int(line.split("…")[0].strip("ソ")) for line in found]
        assert order == sorted(order), "lines came in out of order"


@pytest.mark.parametrize("chunk", [256, 1 << 20])
def test_any_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(tail, "CHUNK", chunk)
    monkeypatch.setattr(AnyHistory, "directory", tmp_path, raising=False)
    run_state_machine_as_test(AnyHistory, settings=settings(
        max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)))
