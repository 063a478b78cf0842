"""How soon something happens after a cold start: the answer to "where is my run?", the first instruction of a step.

Beside an empty Python process, and beside DBOS and Prefect where they can be installed: all in turns, in one run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from _common import milliseconds, place, show
from _peers import DBOS, PREFECT, PROGRAMS, Peer, environment, first_that_works, said, version
from _starts import Starter
from crash import server

TIMES, SLOW_TIMES = 15, 3
SLOW = ("prefect",)
"""Half a minute a turn: these are measured ``SLOW_TIMES`` only, spread over the turns."""
STATE_MS, RESUME_MS = 300, 2000
EMPTY, STATE = "python -c pass", "so8t state --json"
NEW, KILLED = "so8t resume --new, to its step", "so8t resume after SIGKILL, to its step"
CONFIG = """\
automation: {steps: [first_step]}
resources: {min_free_disk: 0, min_ram: 0}
"""
Measures = dict[str, Callable[[], float]]
"""What measures one row's seconds once, by the row's name; what it needs is made ready outside of them."""


def so8t(home: Path) -> Measures:
    """An empty process, and ours."""
    (home / "configs").mkdir()
    (home / "configs" / "one.yaml").write_text(CONFIG)
    env = server.environment()
    env["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).with_name("first_step")), env["PYTHONPATH"]))
    env.pop("PYTHONDONTWRITEBYTECODE")
    start = Starter(home, env)
    cli = (sys.executable, "-c", "from so8t_fsm.cli import main; main()", "--home", str(home))
    new = (*cli, "resume", "--new", "--config", "configs/one.yaml")

    def killed() -> float:
        start.kill_in_step(*new)
        return start.to_step(*cli, "resume")

    return {EMPTY: lambda: start.whole(sys.executable, "-c", "pass"),
            NEW: lambda: start.to_step(*new),
            KILLED: killed,
            STATE: lambda: start.whole(*cli, "state", "--json")}


def dbos(python: Path, folder: Path) -> Measures:
    """DBOS: what ``so8t`` is asked for, in its own words.  Its launch recovers what a killed process left pending."""
    start = Starter(folder, environment(folder))
    names = (f"run-{n}" for n in itertools.count())
    program = (str(python), str(PROGRAMS / "dbos_start.py"), str(folder))

    def killed() -> float:
        name = next(names)
        start.kill_in_step(*program, name, "new")
        return start.to_step(*program, name, "killed")

    last = ("workflow", "list", "--limit", "1", "--sort-desc", "--sys-db-url", f"sqlite:///{folder / 'dbos.sqlite'}")
    called = f"dbos {version(python, 'dbos')}"
    return {f"{called}, new workflow, to its step": lambda: start.to_step(*program, next(names), "new"),
            f"{called}, launch after SIGKILL, to its step": killed,
            f"{called}, workflow list": lambda: start.whole(str(python.with_name("dbos")), *last)}


def prefect(python: Path, folder: Path) -> Measures:
    """Prefect with its ephemeral server.  No row after SIGKILL: it never takes up a flow run that was killed."""
    start = Starter(folder, environment(folder))
    program = (str(python), str(PROGRAMS / "prefect_start.py"), str(folder))
    called = f"prefect {version(python, 'prefect')}"
    last = (str(python.with_name("prefect")), "flow-run", "ls", "--limit", "1")
    return {f"{called}, new flow, to its task (no resume)": lambda: start.to_step(*program),
            f"{called}, flow-run ls": lambda: start.whole(*last)}


def tried(measures: Measures) -> Measures:
    """The same, each called once: warm, and known to work."""
    for measure in measures.values():
        measure()
    return measures


def of_peer(peer: Peer, make: Callable[[Path, Path], Measures], folder: Path) -> Measures:
    """A peer's rows; none where it can't be had."""
    folder.mkdir()
    try:
        return first_that_works(peer, lambda python: tried(make(python, folder)))
    except (subprocess.SubprocessError, OSError) as error:
        print(f"{peer.name} is left out: {said(error)}")
        return {}


def in_turns(measures: Measures, times: int, slow_times: int) -> dict[str, list[float]]:
    """The seconds of each row, taken in turns, so that all of them meet the computer in the same mood."""
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    stride = -(-times // slow_times)
    for turn in range(times):
        for name, measure in measures.items():
            if turn % stride == 0 or not name.startswith(SLOW):
                seconds[name].append(measure())
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=TIMES)
    parser.add_argument("--slow-times", type=int, default=SLOW_TIMES, help="for Prefect, whose start takes long")
    given = parser.parse_args()
    with place() as folder:
        (folder / "so8t").mkdir()
        measures = tried(so8t(folder / "so8t"))
        measures |= of_peer(DBOS, dbos, folder / "dbos")
        measures |= of_peer(PREFECT, prefect, folder / "prefect")
        seconds = in_turns(measures, max(given.times, 2), max(given.slow_times, 2))
    rows = {name: {**milliseconds(values)} for name, values in seconds.items()}
    for row in rows.values():
        row["ratio"] = round(row["p50_ms"] / rows[EMPTY]["p50_ms"], 1)
    show("cold start (ratio: p50, times that of python -c pass)", rows)
    goals = {"state": (STATE, STATE_MS), "a new run to its step": (NEW, RESUME_MS),
             "a killed run to its step": (KILLED, RESUME_MS)}
    print("goals: " + ", ".join(f"{what} below {goal} ms {'met' if rows[name]['p50_ms'] < goal else 'MISSED'}"
                                for what, (name, goal) in goals.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
