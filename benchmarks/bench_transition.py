"""What a transition costs: one flush of the disk, and how much on top of it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from _common import BareDisk, milliseconds, place, show
from crash.flushes import between_marks, mark
from crash.server import environment, untraceable
from sqlalchemy import insert

from so8t_fsm import lease, schema
from so8t_fsm.statedir import open_state
from so8t_fsm.states import Facts, Plan, plan
from so8t_fsm.store import Run, Store, now

WARM, COUNTED, TIMED = 5, 50, 400
GOAL_MS = 1.0


class Runner:
    """A run at its first working state, and the lease to move it: the writes of ``Supervisor._move``, no more."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lease = lease.acquire(store, 3600)
        with store.write() as connection:
            connection.execute(insert(schema.run).values(
                id="bench", state="collecting", step="collecting", attempt=0, rev=0, epoch=0, steps=["collecting"],
                config={}, created_at=now()))
        found = store.run("bench")
        assert found is not None
        with store.fenced(self.lease.epoch, self.lease.seconds) as tx:
            self.run: Run = tx.adopt(found)

    def move(self) -> float:
        """Seconds for one transition, from planning it to its being durable."""
        began = time.perf_counter()
        planned = plan(self.run.state, "interrupt", Facts())
        assert isinstance(planned, Plan)
        with self.store.fenced(self.lease.epoch, self.lease.seconds) as tx:
            self.run = tx.transition(self.run, planned, who="benchmark", reason="to see what it costs")
        return time.perf_counter() - began


def counted(home: Path) -> None:
    """The program that is traced: warm up, mark, transitions, mark."""
    store = open_state(home)
    runner = Runner(store)
    for _ in range(WARM):
        runner.move()
    mark()
    for _ in range(COUNTED):
        runner.move()
    mark()
    store.close()


def flushes(home: Path) -> list[str]:
    """The files that ``COUNTED`` transitions flush, in order."""
    return between_marks([sys.executable, str(Path(__file__)), "--counted", str(home)], environment())


def timed(home: Path) -> dict[str, dict[str, object]]:
    """Transitions and bare flushes in turns, so that both meet the disk in the same mood."""
    store, disk = open_state(home), BareDisk(home)
    runner = Runner(store)
    for _ in range(WARM):
        runner.move()
        disk.once()
    pairs = [(disk.once(), runner.move()) for _ in range(TIMED)]
    store.close()
    disk.close()
    bare, moved = (milliseconds(column) for column in zip(*pairs, strict=True))
    return {
        "bare fdatasync, 4 KiB": {**bare}, "transition": {**moved},
        "on top of the flush": {key: round(moved[key] - bare[key], 3) for key in ("p50_ms", "p95_ms")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counted", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.counted:
        counted(given.counted)
        return 0
    failed = False
    with place() as folder:
        if why := untraceable():
            print(f"flushes are not counted: {why}")
        else:
            (folder / "counted").mkdir()
            files = [Path(name).name for name in flushes(folder / "counted")]
            others = sorted(set(files) - {"so8t.db-wal"})
            failed = len(files) != COUNTED or bool(others)
            show(f"flushes of {COUNTED} transitions (goal: exactly {COUNTED}, all of the log)", {
                "so8t": {"flushes": len(files), "each": len(files) / COUNTED, "met": "no" if failed else "yes"}})
        (folder / "timed").mkdir()
        rows = timed(folder / "timed")
        top = rows["on top of the flush"]["p50_ms"]
        show(f"one transition, {TIMED} times (goal: p50 at most {GOAL_MS:g} ms on top of a bare flush)", rows)
        print(f"goal {'met' if isinstance(top, float) and top <= GOAL_MS else 'MISSED'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
