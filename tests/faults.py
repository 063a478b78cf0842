"""Homes whose steps have real faults, and a runner that is killed in the middle of every recovery."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import ROOT, Home

from so8t_fsm import schema
from so8t_fsm.states import FAILURES

FAULTY = ROOT / "tests" / "faulty"
SECONDS = 180.0
"""How long a pipeline that is killed in every recovery may take."""


@dataclass
class FaultyHome(Home):
    """A home of the faulty package; ``environment`` is what every command in it runs with."""

    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *args: str | Path, **env: str) -> subprocess.Popen[str]:
        search = [str(ROOT), str(FAULTY), *filter(None, [self.environment.get("PYTHONPATH")])]
        calm = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"}
        return super().start(*args, **{**calm, **self.environment, "PYTHONPATH": os.pathsep.join(search), **env})

    def faults(self, *steps: str, automation: Mapping[str, Any] | None = None, **sections: Mapping[str, Any]) -> FaultyHome:
        """Configure a pipeline of steps; rules wait for a fifth of a second at most."""
        quick = {"backoff": {"initial": "10ms", "max": "200ms"}, "heartbeat_seconds": 0.5, "lease_seconds": 5,
                 **(automation or {})}
        self.configure(tuple(steps), automation=quick, **sections)
        return self

    def incidents(self) -> list[dict[str, Any]]:
        """The incidents of the last run, oldest first."""
        run = self.run().id
        return sorted((row for row in self.rows(schema.incident) if row["run_id"] == run), key=lambda row: row["id"])

    def noticed(self) -> bool:
        """Is there an incident yet?"""
        return self.database.exists() and bool(self.rows(schema.run)) and bool(self.incidents())

    def told(self) -> list[tuple[str, str, str | None]]:
        """Step, state and rule of each incident."""
        return [(row["step"], row["state"], row["rule"]) for row in self.incidents()]

    def actions(self, incident: int) -> list[dict[str, Any]]:
        """The journal of one incident, in order."""
        return sorted((row for row in self.rows(schema.action) if row["incident_id"] == incident), key=lambda row: row["seq"])

    def overrides(self) -> dict[str, tuple[Any, Any, str]]:
        """Settings that recovery changed: before, after, and by whom."""
        return {row["key"]: (row["was"], row["value"], row["by"]) for row in self.rows(schema.override)}

    def failed(self, step: str) -> list[dict[str, Any]]:
        """What was recorded of the failed attempts of a step."""
        return [row["failure"] for row in self.rows(schema.attempt, step) if row["status"] == "failed"]

    def recoveries(self) -> int:
        """How many recoveries both ledgers were charged with."""
        return int((self.run().ledgers or {}).get("recovery", {}).get("total", 0))

    def check_recovered(self, expected: list[tuple[str, str, str | None]]) -> None:
        """The run is completed; every failure was one incident, answered by its rule with each action done once, and
        left again by way of the wait into the step's working state."""
        assert self.told() == expected, self.told()
        assert self.run().state == "completed", self.states()
        assert self.recoveries() == len(expected), self.run().ledgers
        for row in self.incidents():
            assert row["status"] == "recovered", row
            decision, journal = row["detail"]["decision"], self.actions(row["id"])
            assert [entry["name"] for entry in decision["actions"]] == [entry["name"] for entry in journal]
            assert [entry["seq"] for entry in journal] == list(range(len(journal)))
            assert {entry["status"] for entry in journal} <= {"done", "skipped"}
        passed = [(row["from_state"], row["to_state"]) for row in self.history()]
        for _, state, _ in expected:
            assert passed.count((state, "backing_off")) == sum(other == state for _, other, _ in expected), (state, passed)
        # Each failure was recorded as well as told: a file an incident.
        assert len(list((self.path / "logs").glob("pipeline_error_*.json"))) == len(expected)


def killed_in_every_recovery(home: FaultyHome, seed: int) -> list[str]:
    """``so8t resume`` until it ends, killed once at a random instant of each recovery.

    Returns:
        The state that the run was in at each kill.
    """
    chance = random.Random(seed)
    until = time.monotonic() + SECONDS
    hit: set[int] = set()
    found: list[str] = []
    while True:
        runner = home.start("resume", "--config", home.config)
        try:
            while runner.poll() is None:
                number = _recovering(home)
                if number is not None and number not in hit:
                    hit.add(number)
                    # The decision and its actions take some hundredths of a second, the wait up to a fifth.
                    time.sleep(chance.choice((0.0, 0.01, 0.03, 0.1)) * chance.random())
                    runner.kill()
                    break
                assert time.monotonic() < until, f"still {home.run().state} after {SECONDS:g} s"
                time.sleep(0.002)
        except BaseException:
            runner.kill()
            raise
        out, err = runner.communicate(timeout=60)
        if runner.returncode == -9:
            found.append(home.run().state)
            continue
        assert runner.returncode == 0, f"exit {runner.returncode}\n{out}\n{err}"
        return found


def _recovering(home: FaultyHome) -> int | None:
    """The number of the incident that is being recovered from at this instant."""
    with contextlib.suppress(sqlite3.Error), \
            contextlib.closing(sqlite3.connect(f"file:{home.database}?mode=ro", uri=True)) as connection:
        row = connection.execute("SELECT state, incident FROM run").fetchone()
        if row and row[0] in (*FAILURES, "backing_off") and row[1]:
            number = json.loads(row[1]).get("id")
            return None if number is None else int(number)
    return None
