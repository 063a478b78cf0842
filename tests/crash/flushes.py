"""Counts what a program flushes to the disk between two marks: ``mark()`` is a call that nobody else makes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

MARK = "/so8t-mark"


def mark() -> None:
    """Leave a mark in the trace: the deletion of a file that was never there."""
    with contextlib.suppress(OSError):
        os.unlink(MARK)


def between_marks(command: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
    """Run a command under strace; return the file of every fsync and fdatasync between its first and last mark.

    Raises:
        RuntimeError: the command failed or left no two marks.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "trace"
        done = subprocess.run(
            ["strace", "-f", "-y", "-o", str(log), "-e", "trace=fsync,fdatasync,unlink", "-e", "signal=none", *command],
            env=env, capture_output=True, text=True,
        )
        lines = log.read_text("utf-8", "replace").splitlines()
    marks = [i for i, line in enumerate(lines) if f'unlink("{MARK}")' in line]
    if done.returncode != 0 or len(marks) < 2:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()[-1000:] or 'no marks'}")
    # A call that another thread interrupts has a second line, "resumed", without the file.
    return [line.partition("<")[2].partition(">")[0] for line in lines[marks[0]:marks[-1]]
            if ("fsync(" in line or "fdatasync(" in line)]
