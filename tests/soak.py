"""Kill a run again and again, at any instant, until it is through; then compare it with one that nobody touched.

``python tests/soak.py --kills 1000`` soaks the toys, ``--config configs/quickstart.yaml --kills 50 --longest 25`` the
real steps.  What it counts: every kill, every run, and every violation that :mod:`crash.checker` finds after any.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash import checker
from crash.server import CHECKOUT, acknowledged, environment

CLI = (sys.executable, "-c", "from so8t_fsm.cli import main; main()")
TOYS = {
    "automation": {
        "steps": ["toy_collect", "toy_extra", "toy_preprocess", "toy_train", "toy_integrate", "toy_evaluate",
                  "toy_upload", "toy_cleanup"],
        "backoff": {"initial": "50ms", "max": "100ms"},
    },
    "resources": {"min_free_disk": "1MB", "min_ram": "1MB"},
    "toy": {"items": 20, "pause": 0.01, "every_checkpoint": True},
}
PATIENCE = 10
"""After so many kills without a new commit the next may come twice as late, so that a slow computer gets through."""


@dataclass
class Figures:
    """What a soak counted.  ``where`` are the states in which the kills hit."""

    kills: int = 0
    runs: int = 0
    transitions: int = 0
    where: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def table(self) -> str:
        lost = sum("lost" in v for v in self.violations)
        doubled = sum("not 1" in v or "times" in v or "not 0" in v for v in self.violations)
        rows: list[tuple[str, object]] = [
            ("kills (SIGKILL)", self.kills), ("runs completed", self.runs), ("transitions in them", self.transitions),
            ("lost", lost), ("doubled", doubled), ("violations of any kind", len(self.violations)),
            ("seconds", f"{self.seconds:.0f}"), *((f"  killed in {state}", n) for state, n in self.where.most_common()),
        ]
        return "\n".join(f"{name:<32}{value:>8}" for name, value in rows)


class Soak:
    """Runs and kills until there were ``kills`` of them; several homes at a time when asked to."""

    def __init__(self, folder: Path, config: Path | None, kills: int, longest: float, seed: int = 1) -> None:
        self.folder, self.config, self.kills, self.longest = folder, config, kills, longest
        self.figures = Figures()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._homes = 0
        self._expected: dict[str, Any] = {}

    def run(self, workers: int = 1) -> Figures:
        """Soak.  Returns the figures; :class:`RuntimeError` when not even an undisturbed run completes."""
        began = time.monotonic()
        home = self._home()
        code, said = self._finish(self._start(home))
        if code != 0 or checker.violations(home, acknowledged(said)):
            raise RuntimeError(f"an undisturbed run ended with {code}: {said[-2000:]}")
        self._expected = checker.outcome(home)
        threads = [threading.Thread(target=self._work) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.figures.seconds = time.monotonic() - began
        return self.figures

    def _home(self) -> Path:
        with self._lock:
            self._homes += 1
            home = self.folder / f"home-{self._homes}"
        (home / "configs").mkdir(parents=True)
        if self.config is None:
            (home / "configs" / "soak.yaml").write_text(json.dumps(TOYS))
        else:
            shutil.copy(self.config, home / "configs" / "soak.yaml")
        if (CHECKOUT / "recovery_rules").is_dir():
            shutil.copytree(CHECKOUT / "recovery_rules", home / "recovery_rules")
        return home

    def _start(self, home: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*CLI, "--home", str(home), "resume", "--json", "--config", "configs/soak.yaml"], cwd=home, text=True,
            env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _finish(self, process: subprocess.Popen[str], kill_after: float | None = None) -> tuple[int, str]:
        """Wait for the end, or bring it about.  Returns the exit status and what was said."""
        try:
            said, _ = process.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
        return process.returncode, said

    def _work(self) -> None:
        while self.figures.kills < self.kills:
            try:
                self._one(self._home())
            except Exception as error:  # a thread must not end unseen
                self._note([f"the soak itself broke: {type(error).__name__}: {error}"])
                return

    def _one(self, home: Path) -> None:
        """One run from its beginning to its completion, however often it is killed."""
        acked: list[dict[str, object]] = []
        committed = fruitless = 0
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            enough = self.figures.kills >= self.kills
            with self._lock:
                wait = self._random.uniform(0, self.longest * 2 ** (fruitless // PATIENCE))
            code, said = self._finish(self._start(home), None if enough else wait)
            acked += acknowledged("".join(line for line in said.splitlines(keepends=True) if line.startswith("{")))
            self._note(checker.violations(home, acked))
            if code == -signal.SIGKILL:
                with self._lock:
                    self.figures.kills += 1
                    self.figures.where[str(acked[-1]["state"]) if acked else "start-up"] += 1
                before, committed = committed, len(list(home.glob("state/runs/*/*/[0-9]*/manifest.json")))
                fruitless = 0 if committed > before else fruitless + 1
        if code != 0:
            self._note([f"resume ended with {code}: {said[-500:]}"])
            return
        if checker.outcome(home) != self._expected:
            self._note(["the run made something else than an undisturbed one does"])
        with self._lock:
            self.figures.runs += 1
            self.figures.transitions += checker.transitions(home)
        shutil.rmtree(home)

    def _note(self, violations: Sequence[str]) -> None:
        with self._lock:
            self.figures.violations += violations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--config", type=Path, help="What to run. Default: eight toy steps.")
    parser.add_argument("--longest", type=float, default=1.5, help="Seconds from a start to its kill, at most.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="Homes at a time.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="so8t-soak-", ignore_cleanup_errors=True) as folder:
        figures = Soak(Path(folder), given.config, given.kills, given.longest, given.seed).run(given.workers)
    print(figures.table())
    for violation in figures.violations[:50]:
        print(violation)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
