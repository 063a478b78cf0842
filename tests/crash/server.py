"""Starts the program, with or without strace around it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

TESTS = Path(__file__).resolve().parents[1]
CHECKOUT = TESTS.parent
CALLS = ("openat", "creat", "write", "pwrite64", "writev", "pwritev", "fsync", "fdatasync", "rename", "renameat",
         "renameat2", "unlink", "unlinkat", "ftruncate", "truncate", "mkdir", "mkdirat", "rmdir", "link", "linkat",
         "symlink", "symlinkat", "lseek", "sendfile", "copy_file_range", "fallocate", "close")
"""All that may change a file or a directory, and what is needed to know which file a write goes to."""


def environment() -> dict[str, str]:
    """The toys' and the instruments' packages on the path; the same bytes in every run."""
    paths = [str(CHECKOUT), str(TESTS), str(TESTS / "toy"), os.environ.get("PYTHONPATH", "")]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SO8T")}
    return kept | {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "PYTHONHASHSEED": "0",
                   "PYTHONDONTWRITEBYTECODE": "1"}


def quick_folder() -> str | None:
    """Where many small homes are made and dropped: in memory when there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass(frozen=True)
class Ended:
    """How one run of the program ended.  ``acked`` are the transitions it reported as done, in order."""

    code: int
    stdout: str
    stderr: str

    @property
    def acked(self) -> list[dict[str, object]]:
        return acknowledged(self.stdout)

    @property
    def messages(self) -> list[str]:
        """What it told a person on standard output."""
        facts = [json.loads(line) for line in self.stdout.splitlines()]
        return [fact["message"] for fact in facts if fact["event"] == "message"]


def acknowledged(stdout: str) -> list[dict[str, object]]:
    """The ``entered`` lines of ``so8t resume --json``; a torn last line was not said."""
    found = []
    for line in stdout.splitlines(keepends=True):
        if line.endswith("\n") and (fact := json.loads(line))["event"] == "entered":
            found.append(fact)
    return found


class Server:
    """The fork server, and strace where it is asked for."""

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crash.program"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(), cwd=TESTS,
        )
        self._folder = Path(tempfile.mkdtemp(prefix="so8t-crash-", dir=quick_folder()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ask(self, request: dict[str, object]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def run(
        self, home: Path, *, strace: Sequence[str] | None = None, bug: str = "", die_before: str = "",
        arguments: Sequence[str] = ("resume", "--json", "--config", "configs/crash.yaml"),
    ) -> Ended:
        """Run ``so8t`` once on ``home``; with ``strace``, under it with these options."""
        names = {name: self._folder / name for name in ("stdout", "stderr")}
        for path in names.values():
            path.unlink(missing_ok=True)
        pid = self._ask({"fork": {"home": str(home), "arguments": list(arguments), "bug": bug, "die_before": die_before,
                                  **{k: str(v) for k, v in names.items()}}})
        tracer = None if strace is None else _attach(pid, strace)
        code = self._ask({"go": pid})
        if tracer is not None:
            tracer.communicate(timeout=60)
        said = {k: v.read_text("utf-8", "replace") if v.exists() else "" for k, v in names.items()}
        return Ended(code, **said)


def _attach(pid: int, options: Sequence[str]) -> subprocess.Popen[str]:
    tracer = subprocess.Popen(["strace", *options, "-p", str(pid)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True)
    assert tracer.stderr is not None
    first = tracer.stderr.readline()
    if "attached" not in first:
        tracer.kill()
        raise RuntimeError(f"strace: {first.strip()}")
    return tracer


@cache
def untraceable() -> str | None:
    """Why nothing can be traced here, or None when it can."""
    if sys.platform != "linux":
        return "strace is Linux only"
    if shutil.which("strace") is None:
        return "strace is not installed"
    sleeper = subprocess.Popen(["sleep", "30"])
    try:
        _attach(sleeper.pid, ["-o", os.devnull]).terminate()
    except RuntimeError as error:
        return f"tracing is forbidden here ({error})"
    finally:
        sleeper.kill()
        sleeper.wait()
    return None
