"""The peers that SO8T is measured beside: each in a virtual environment of its own, made when it is first needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

PROGRAMS = Path(__file__).with_name("peers")
T = TypeVar("T")


@dataclass(frozen=True)
class Peer:
    """A program that others wrote, and what it needs."""

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


def said(error: Exception) -> str:
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
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)],
                       check=True, capture_output=True, text=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *peer.requirements, *further],
                       check=True, capture_output=True, text=True, timeout=600)
        (folder / "complete").touch()
    return python


def first_that_works(peer: Peer, use: Callable[[Path], T]) -> T:
    """What ``use`` makes of the peer's interpreter, with the first of its further requirements that goes well.

    Raises:
        subprocess.SubprocessError: it can't be installed, or does not run.
    """
    last: subprocess.SubprocessError | None = None
    for further in peer.tries:
        try:
            return use(installed(peer, further))
        except subprocess.SubprocessError as error:
            last = error
    assert last is not None
    raise last


def version(python: Path, package: str) -> str:
    """Which version of a package an interpreter has."""
    told = subprocess.run([str(python), "-c", f"from importlib.metadata import version; print(version({package!r}))"],
                          check=True, capture_output=True, text=True)
    return told.stdout.strip()


def environment(folder: Path) -> dict[str, str]:
    """What a peer finds around it: a home in ``folder``, nothing of ours, and nobody to tell how it is used."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HOME": str(folder), "PREFECT_HOME": str(folder / "prefect"), "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "ERROR", "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true", "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
