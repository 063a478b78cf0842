"""One ``pipeline_error_*.json`` per incident, for a person or a program that looks into ``logs/``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from so8t_fsm import artifacts
from so8t_fsm.store import Run

log = logging.getLogger("so8t.machine")


def write_incident(directory: Path, run: Run, incident: Mapping[str, Any]) -> None:
    """Write the incident of the failure state that the run is in beside the logs, if that was not done yet.

    It is a copy: the database has it already, so a full disk only warns.
    """
    path = directory / f"pipeline_error_{run.id}_{run.rev}.json"
    try:
        if path.exists():
            return
        directory.mkdir(parents=True, exist_ok=True)
        body = {"run": run.id, "rev": run.rev, **incident}
        artifacts.write_durable(path, json.dumps(body, ensure_ascii=False, indent=2, default=str).encode())
    except OSError as error:
        log.warning("%s could not be written: %s", path, error)
