"""How soon something happens: ``so8t state``, and ``so8t resume`` up to the first instruction of a step."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _common import milliseconds, place, show
from crash.server import environment

TIMES = 15
STATE_MS, RESUME_MS = 300, 2000
CLI = ("-c", "from so8t_fsm.cli import main; main()")
CONFIG = """\
automation: {steps: [first_step]}
resources: {min_free_disk: 0, min_ram: 0}
"""


def _python(*arguments: str, home: Path, env: dict[str, str]) -> float:
    """Seconds that one Python process takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=home, env=env, check=True, capture_output=True)
    return time.perf_counter() - began


def _first_instruction(home: Path, env: dict[str, str]) -> float:
    """Seconds from calling ``so8t resume`` to the first instruction of its first step."""
    began = time.time()
    subprocess.run([sys.executable, *CLI, "--home", str(home), "resume", "--new", "--config", "configs/one.yaml"],
                   cwd=home, env=env, check=True, capture_output=True)
    newest = max(home.glob("state/runs/*/first_step/1/at"), key=lambda path: path.stat().st_mtime_ns)
    return float(newest.read_text()) - began


def main() -> int:
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).with_name("first_step")), env["PYTHONPATH"]))
    env.pop("PYTHONDONTWRITEBYTECODE")
    with place() as home:
        (home / "configs").mkdir()
        (home / "configs" / "one.yaml").write_text(CONFIG)
        measures: dict[str, Callable[[], float]] = {
            "python -c pass": lambda: _python("-c", "pass", home=home, env=env),
            "so8t resume, to the step": lambda: _first_instruction(home, env),
            "so8t state": lambda: _python(*CLI, "--home", str(home), "state", "--json", home=home, env=env),
        }
        for measure in measures.values():
            measure()
        # In turns, so that all of them meet the computer in the same mood.
        seconds = {name: [0.0] * TIMES for name in measures}
        for i in range(TIMES):
            for name, measure in measures.items():
                seconds[name][i] = measure()
    rows: dict[str, dict[str, object]] = {name: {**milliseconds(values)} for name, values in seconds.items()}
    base = milliseconds(seconds["python -c pass"])["p50_ms"]
    for name, values in seconds.items():
        rows[name]["ratio"] = round(milliseconds(values)["p50_ms"] / base, 1)
    show("cold start", rows)
    state = milliseconds(seconds["so8t state"])["p50_ms"]
    resume = milliseconds(seconds["so8t resume, to the step"])["p50_ms"]
    print(f"goals: state below {STATE_MS} ms {'met' if state < STATE_MS else 'MISSED'}, "
          f"resume to the step below {RESUME_MS} ms {'met' if resume < RESUME_MS else 'MISSED'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
