"""``logs/complete_pipeline_<run>.log``: every transition and every line a step printed, without secrets, rotated."""

from __future__ import annotations

import logging
import logging.handlers
import time
from collections.abc import Callable
from pathlib import Path

from so8t_fsm.settings import LoggingSettings
from so8t_fsm.store import StateUnusable
from so8t_fsm.tokens import conceal


def open_log(home: Path, run_id: str, settings: LoggingSettings) -> tuple[Callable[[str], None], Callable[[], None]]:
    """One line in, one time-stamped line (UTC) out.  Returns (write, close).

    Raises:
        StateUnusable: it can't be written.
    """
    path = home / settings.directory / f"complete_pipeline_{run_id}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=settings.max_bytes, backupCount=settings.backups, encoding="utf-8", errors="replace")
    except OSError as error:
        raise StateUnusable(f"{path.parent}: {error.strerror}; set logging.directory to a place you may write") from error
    formatter = logging.Formatter("%(asctime)s %(message)s")
    formatter.converter = time.gmtime
    formatter.default_msec_format = "%s.%03dZ"
    handler.setFormatter(formatter)
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk must not stop the run

    def write(line: str) -> None:
        handler.handle(logging.makeLogRecord({"msg": conceal(line), "levelno": logging.INFO, "levelname": "INFO"}))

    return write, handler.close
