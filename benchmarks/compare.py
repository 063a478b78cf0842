"""The same small step, durable, in DBOS and in Prefect: each in a virtual environment of its own, on the same disk.

They are general engines and do more than this project needs; what is compared is only what a durable step costs on one
computer without a server.  Where they can't be installed it says so and goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import ROOT, BareDisk, milliseconds, place, show
from bench_transition import timed
from crash.flushes import between_marks
from crash.server import untraceable

STEPS = 200
PEERS = Path(__file__).with_name("peers")


@dataclass(frozen=True)
class Peer:
    """A program in ``peers/`` and what it needs."""

    name: str
    requirements: tuple[str, ...]
    tries: tuple[tuple[str, ...], ...] = ((),)
    """Further requirements to try in turn, where the newest of everything does not go together."""


DBOS = Peer("dbos", ("dbos>=3,<4",))
PREFECT = Peer("prefect", ("prefect>=3,<4",), ((), ("fastapi<0.117",)))


def cache() -> Path:
    """Where the virtual environments are kept between calls."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "so8t-benchmarks"


def _said(error: Exception) -> str:
    """The last line of what a program that failed had to say."""
    text = str(getattr(error, "stderr", None) or error)
    return (text.strip().splitlines() or [type(error).__name__])[-1]


def installed(peer: Peer, further: Sequence[str]) -> Path:
    """The interpreter of a virtual environment that has the peer; made when it is not there.

    Raises:
        subprocess.SubprocessError: it can't be installed.
    """
    folder = cache() / "-".join([peer.name, *(word.translate(str.maketrans("<>=,", "____")) for word in further)])
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *peer.requirements, *further],
                       check=True, capture_output=True, text=True, timeout=600)
        (folder / "complete").touch()
    return python


def measured(peer: Peer, folder: Path) -> dict[str, Any]:
    """One row of the table.

    Raises:
        subprocess.SubprocessError: it can't be installed, or does not run.
    """
    last: subprocess.SubprocessError | None = None
    for further in peer.tries:
        try:
            return _measured(peer, installed(peer, further), folder)
        except subprocess.SubprocessError as error:
            last = error
    assert last is not None
    raise last


def _measured(peer: Peer, python: Path, folder: Path) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HOME": str(folder), "PREFECT_HOME": str(folder / "prefect"), "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "ERROR", "PYTHONPATH": str(ROOT / "tests"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    }
    command = [str(python), str(PEERS / f"{peer.name}_steps.py"), str(folder), str(STEPS)]
    began = time.time()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300, cwd=folder)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    row = {**milliseconds(told["seconds"]), "start_s": round(told["first"] - began, 2), "version": told["version"]}
    if untraceable() is None:
        try:
            row["flushes"] = round(len(between_marks(command, environment)) / STEPS, 2)
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
                row = measured(peer, folder / peer.name)
                row["flush_ms"] = milliseconds(before + [disk.once() for _ in range(50)])["p50_ms"]
                rows[f"{peer.name} step"] = row
            except (subprocess.SubprocessError, OSError) as error:
                print(f"{peer.name} is left out: {_said(error)}")
        disk.close()
    show("one durable step on one computer "
         "(flush_ms: a bare flush at that time; flushes: fsyncs a step; start_s: from the call to the first step)", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
