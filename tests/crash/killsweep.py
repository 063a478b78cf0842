"""Die, or fail, at every call that touches the home: first count them, then once for each.

SIGKILL arrives as the call is entered, so it did not happen; that it did and then the process died is the next point.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from crash import checker, trace
from crash.server import CALLS, Ended, Server, quick_folder

SWEPT = ("write", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "unlinkat", "ftruncate", "fallocate", "mkdir",
         "rmdir")
"""The calls to die at."""

EXIT_USAGE, EXIT_STOPPED = 2, 75

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
"""A heartbeat in an hour: the clock must not add a call to some runs and not to others."""


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


def copy(seed: Path, home: Path) -> Path:
    """``home`` as ``seed`` is, whatever it was before."""
    shutil.rmtree(home, ignore_errors=True)
    return Path(shutil.copytree(seed, home))


def seeds(server: Server, folder: Path) -> dict[str, Path]:
    """Two homes to start from: one with nothing in it yet, one whose runner was killed just as it had begun
    ``toy_train``, when two steps were committed."""
    home = new_home(folder / "home", ("toy_collect", "toy_preprocess", "toy_train"))
    ended = server.run(home, die_before="toy_train")
    assert ended.code == -signal.SIGKILL, ended
    return {"first run": new_home(folder / "empty", ("toy_collect",)), "training": copy(home, folder / "killed")}


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


class Sweep:
    """One seed home, its uninterrupted outcome, and the points at which a run of it can be hit."""

    def __init__(self, server: Server, seed: Path, folder: Path, bug: str = "") -> None:
        self.server, self.seed, self.folder, self.bug = server, seed, folder, bug
        home, record = copy(seed, folder / "home"), folder / "trace"
        ended = server.run(home, bug=bug, strace=[*trace.OPTIONS, "-o", str(record), "-e", f"trace={','.join(CALLS)}"])
        assert ended.code == 0, ended
        assert not checker.violations(home, ended.acked)
        self.expected = checker.outcome(home)
        below = f"{home}/"
        self.points = [
            Point(call.name, call.ordinal, (call.path or call.target).removeprefix(below))
            for call in trace.read(record) if call.name in SWEPT and call.path.startswith(below)
        ]

    def hit(self, inject: str, points: Sequence[Point]) -> Report:
        """Run once for each point, with ``signal=SIGKILL`` or ``error=…`` there; judge; resume; judge again."""
        report = Report(list(points))
        for point in points:
            home = copy(self.seed, self.folder / "home")
            ended = self.server.run(home, bug=self.bug, strace=[
                "-o", "/dev/null", "-e", f"trace={point.name}",
                "-e", f"inject={point.name}:{inject}:when={point.ordinal}"])
            report.codes[ended.code] = report.codes.get(ended.code, 0) + 1
            found = [*_manners(inject, ended), *checker.violations(home, ended.acked)]
            again = self.server.run(home)
            if again.code != 0:
                found.append(f"the next resume ended with {again.code}: {again.stderr.strip() or again.stdout[-300:]}")
            else:
                found += [f"later: {why}" for why in checker.violations(home, ended.acked + again.acked)]
                if checker.outcome(home) != self.expected:
                    found.append("the next resume made something else than an uninterrupted run does")
            report.violations += [f"{inject} at {point}: {why}" for why in found]
        return report



def _manners(inject: str, ended: Ended) -> list[str]:
    """A killed process says nothing; one whose disk fails goes on, or ends with a code of its own and in one line."""
    if inject.startswith("signal"):
        return [] if ended.code == -signal.SIGKILL else [f"it was not killed but ended with {ended.code}"]
    if ended.code == 0:
        return []
    lines = [line for line in ended.stderr.splitlines() if line.startswith("so8t: ")]
    lines += ended.messages[-1:]
    if ended.code not in (EXIT_USAGE, EXIT_STOPPED) or len(lines) != 1:
        return [f"it ended with {ended.code} and {len(lines)} lines: {lines}"]
    return []


def spread(points: Sequence[Point], most: int) -> list[Point]:
    """At most ``most`` of the points, evenly over the run.

    ``-shm`` is left out, for no recovery reads it; of a burst of writes to one file the first stands for the others,
    as SQLite takes a transaction for written only with its last page.
    """
    bursts = {p for before, p in pairwise(points) if p.name == before.name == "pwrite64" and p.path == before.path}
    telling = [p for p in points if p not in bursts and not p.path.endswith("-shm")]
    return [telling[i * len(telling) // most] for i in range(most)] if len(telling) > most else telling
