"""The same small step, durable, in DBOS and in Prefect: each in a virtual environment of its own, on the same disk.

They are general engines and do more than this project needs; what is compared is only what a durable step costs on one
computer without a server.  Where they can't be installed it says so and goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from _common import ROOT, BareDisk, milliseconds, place, show
from _peers import DBOS, PREFECT, PROGRAMS, Peer, environment, first_that_works, said
from bench_transition import timed
from crash.flushes import between_marks
from crash.server import untraceable

STEPS = 200


def measured(peer: Peer, python: Path, folder: Path) -> dict[str, Any]:
    """One row of the table.

    Raises:
        subprocess.SubprocessError: it does not run.
    """
    env = environment(folder) | {"PYTHONPATH": str(ROOT / "tests")}
    command = [str(python), str(PROGRAMS / f"{peer.name}_steps.py"), str(folder), str(STEPS)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=300, cwd=folder)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    row = {**milliseconds(told["seconds"]), "version": told["version"]}
    if untraceable() is None:
        try:
            row["flushes"] = round(len(between_marks(command, env)) / STEPS, 2)
        except RuntimeError as error:
            row["flushes"] = f"? ({str(error).splitlines()[-1][:40]})"
    return row


def main() -> int:
    with place() as folder:
        (folder / "so8t").mkdir()
        own = timed(folder / "so8t")
        rows: dict[str, dict[str, Any]] = {"so8t transition": {
            **own["transition"], "flush_ms": own["bare fdatasync, 4 KiB"]["p50_ms"], "flushes": 1.0}}
        disk = BareDisk(folder)
        for peer in (DBOS, PREFECT):
            (folder / peer.name).mkdir()
            try:
                # A disk changes its mood within minutes: its bare flush is taken before and after each peer.
                before = [disk.once() for _ in range(50)]
                row = first_that_works(peer, partial(measured, peer, folder=folder / peer.name))
                row["flush_ms"] = milliseconds(before + [disk.once() for _ in range(50)])["p50_ms"]
                rows[f"{peer.name} step"] = row
            except (subprocess.SubprocessError, OSError) as error:
                print(f"{peer.name} is left out: {said(error)}")
        disk.close()
    show("one durable step on one computer (flush_ms: a bare flush at that time; flushes: fsyncs a step)", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
