"""What the tests of reading logs share: all that is unread, and a rotation."""

from __future__ import annotations

import contextlib
from pathlib import Path

from so8t_fsm.tail import Logs


def texts(logs: Logs, log: str = "a.log", settled: float = float("inf")) -> list[str]:
    """All that is unread of one log."""
    found = []
    while (batch := logs.take(log, settled)) is not None:
        found += [line.text for line in batch.lines]
    return found


def rotate(log: Path, keep: int = 9) -> None:
    """As RotatingFileHandler does it."""
    with contextlib.suppress(FileNotFoundError):
        log.with_name(f"{log.name}.{keep}").unlink()
    for n in range(keep - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            log.with_name(f"{log.name}.{n}").rename(log.with_name(f"{log.name}.{n + 1}"))
    with contextlib.suppress(FileNotFoundError):
        log.rename(log.with_name(f"{log.name}.1"))
