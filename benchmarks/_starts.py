"""How a start is timed: a whole process, or a process up to the first instruction of its step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HANGS = "FIRST_STEP_HANGS"
"""Where this variable is set, a step stays in its first instruction until it is killed."""
LONGEST = 300.0


@dataclass(frozen=True)
class Starter:
    """Starts commands in ``home``.  The first instruction of their step leaves the time in the file ``at`` there."""

    home: Path
    env: Mapping[str, str]

    def whole(self, *command: str) -> float:
        """Seconds that one process takes."""
        began = time.perf_counter()
        self._run(command)
        return time.perf_counter() - began

    def to_step(self, *command: str) -> float:
        """Seconds from calling a command to the first instruction of its step."""
        at = self.home / "at"
        at.unlink(missing_ok=True)
        began = time.time()
        self._run(command)
        return float(at.read_text()) - began

    def kill_in_step(self, *command: str) -> None:
        """Call a command and kill it (SIGKILL, with what it started) once it is in its step.

        Raises:
            subprocess.SubprocessError: it never came there.
        """
        at = self.home / "at"
        at.unlink(missing_ok=True)
        process = subprocess.Popen(command, cwd=self.home, env={**self.env, HANGS: "1"}, start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + LONGEST
            while not at.exists():
                if process.poll() is not None or time.monotonic() > until:
                    raise subprocess.SubprocessError(f"{command[-1]} did not come to its step")
                time.sleep(0.02)
        finally:
            process.kill() if sys.platform == "win32" else os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _run(self, command: tuple[str, ...]) -> None:
        subprocess.run(command, cwd=self.home, env=self.env, check=True, capture_output=True, text=True,
                       timeout=LONGEST)
