"""Die, or fail, at every call that touches the home: first count them, then once for each.

SIGKILL arrives as the call is entered, so it did not happen; that it did and then the process died is the next point.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from crash import checker, trace
from crash.server import CALLS, Server, quick_folder

SWEPT = ("write", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "unlinkat", "ftruncate", "mkdir", "rmdir")
"""The calls to die at."""

CONFIG = """\
automation:
  steps: [{steps}]
  backoff: {{initial: 1ms, max: 2ms}}
  keep_checkpoints: 1
  heartbeat_seconds: 1h
  lease_seconds: 3h
resources: {{min_free_disk: 0, min_ram: 0, poll_interval: 10ms}}
toy: {{items: 2, every_checkpoint: true}}
"""
"""One heartbeat a day: the clock must not add a call to some runs and not to others."""


@contextmanager
def homes() -> Iterator[Path]:
    """A folder for the homes of one sweep."""
    folder = Path(tempfile.mkdtemp(prefix="so8t-homes-", dir=quick_folder()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_home(place: Path, steps: Sequence[str]) -> Path:
    """A home with nothing but a configuration."""
    (place / "configs").mkdir(parents=True)
    (place / "configs" / "crash.yaml").write_text(CONFIG.format(steps=", ".join(steps)))
    return place


def seed_before_training(server: Server, place: Path) -> Path:
    """A home whose runner was killed just as it had begun ``toy_train``; two steps are committed."""
    home = new_home(place, ("toy_collect", "toy_preprocess", "toy_train"))
    ended = server.run(home, die_before="toy_train")
    assert ended.code == -9, ended
    return home


@dataclass(frozen=True)
class Point:
    """The ``ordinal``-th call of ``name``; ``path`` is what it touches, relative to the home."""

    name: str
    ordinal: int
    path: str

    def __str__(self) -> str:
        return f"{self.name} {self.ordinal} ({self.path})"


@dataclass
class Report:
    """What a sweep found."""

    points: list[Point] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)
    messages: set[str] = field(default_factory=set)


class Sweep:
    """One seed home, its uninterrupted outcome, and the points at which a run of it can be hit."""

    def __init__(self, server: Server, seed: Path, folder: Path) -> None:
        self.server, self.seed, self.folder = server, seed, folder
        home, record = self._fresh(), folder / "trace"
        ended = server.run(home, strace=[*trace.OPTIONS, "-o", str(record), "-e", f"trace={','.join(CALLS)}"])
        assert ended.code == 0, ended
        assert not checker.violations(home, ended.acked)
        self.expected = checker.outcome(home)
        below = f"{home}/"
        self.points = [
            Point(call.name, call.ordinal, (call.path or call.target).removeprefix(below))
            for call in trace.read(record) if call.name in SWEPT and call.path.startswith(below)
        ]

    def _fresh(self) -> Path:
        home = self.folder / "home"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(self.seed, home)
        return home

    def hit(self, inject: str, points: Sequence[Point]) -> Report:
        """Run once for each point, with ``signal=SIGKILL`` or ``error=…`` injected there; judge; resume; judge again."""
        report = Report(list(points))
        for point in points:
            home = self._fresh()
            ended = self.server.run(home, strace=[
                "-o", "/dev/null", "-e", f"trace={point.name}", "-e", f"inject={point.name}:{inject}:when={point.ordinal}"])
            report.codes[ended.code] = report.codes.get(ended.code, 0) + 1
            found = [*self._manners(inject, ended.code, ended.stderr), *checker.violations(home, ended.acked)]
            report.messages.update(line for line in ended.stderr.splitlines() if not line.startswith((" ", "Traceback")))
            again = self.server.run(home)
            if again.code != 0:
                found.append(f"the next resume ended with {again.code}: {again.stderr.strip() or again.stdout[-300:]}")
            else:
                found += [f"after the next resume: {why}" for why in checker.violations(home, ended.acked + again.acked)]
                if checker.outcome(home) != self.expected:
                    found.append("the next resume made something else than an uninterrupted run does")
            report.violations += [f"{inject} at {point}: {why}" for why in found]
        return report

    def _manners(self, inject: str, code: int, stderr: str) -> list[str]:
        """A killed process says nothing; a failing one ends with a code of its own and in one line."""
        if inject.startswith("signal"):
            return [] if code == -9 else [f"it was not killed but ended with {code}"]
        found = [] if code in (0, 2, 75) else [f"exit code {code}: {stderr.strip()[-300:]}"]
        return found + (["the machine itself shows a traceback"] if "so8t: a fault of so8t" in stderr else [])
