"""Runs: one pass of the pipeline over one configuration.  Which one to go on with, and what a changed file means."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from so8t_fsm import config, registry
from so8t_fsm.commits import Artifact
from so8t_fsm.schema import override, run
from so8t_fsm.store import Run, Store, now


def new_id() -> str:
    """A run's name: its start in UTC and four random letters, so that two hosts never meet."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def create(
    store: Store, snapshot: config.Config, config_path: str | None, *, parent: str | None = None,
    reuse: Mapping[str, Any] | None = None,
) -> Run:
    """Insert a run in ``idle`` with the snapshot of its effective configuration.

    Raises:
        registry.StepUnknown: ``automation.steps`` names a step that is not installed or out of order.
    """
    steps = list(snapshot.values["automation"]["steps"])
    registry.pipeline(steps)
    values = {
        "id": new_id(), "state": "idle", "step": steps[0], "attempt": 0, "rev": 0, "epoch": 0, "steps": steps,
        "config": json.loads(snapshot.to_json()), "config_path": config_path, "parent": parent,
        "reuse": dict(reuse) if reuse else None,
        "created_at": now(),
    }
    with store.write() as connection:
        connection.execute(sa.insert(run).values(**values))
    found = store.run(str(values["id"]))
    assert found is not None
    return found


def overrides(store: Store, run_id: str) -> list[dict[str, Any]]:
    """Settings changed during a run, with who changed them: rows of ``override`` as plain values."""
    with store.read() as connection:
        rows = connection.execute(sa.select(override).where(override.c.run_id == run_id)).mappings().all()
    return [{k: row[k] for k in ("key", "value", "was", "by", "at")} for row in rows]


def effective(store: Store, current: Run) -> dict[str, Any]:
    """The run's configuration: its snapshot under its overrides."""
    return overlaid(current.config["values"], overrides(store, current.id))


def overlaid(values: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``values`` with overrides (``key`` and ``value``) laid over them; ``values`` itself stays as it is."""
    result: dict[str, Any] = dict(values)
    for row in rows:
        target = result
        *path, last = row["key"].split(".")
        for part in path:
            target[part] = dict(target.get(part) or {})
            target = target[part]
        target[last] = row["value"]
    return result


@dataclass(frozen=True)
class Stale:
    """A committed step that would come out differently under a changed configuration, and why."""

    step: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.step}: {', '.join(self.reasons)}"


def stale_steps(current: Run, live: Mapping[str, Artifact], values: Mapping[str, Any]) -> list[Stale]:
    """Committed steps that ``values`` would change, directly or through a step they use."""
    found: dict[str, Stale] = {}
    for step in registry.pipeline(current.steps):
        row = live.get(step.name)
        if row is None:
            continue
        changes = config.diff(row.settings, config.select(values, step.reads), step.reads)
        reasons = tuple(str(change) for change in changes)
        reasons += tuple(f"uses {name}, which changes" for name in step.uses if name in found)
        if reasons:
            found[step.name] = Stale(step.name, reasons)
    return list(found.values())


def before(steps: Sequence[str], name: str) -> list[str]:
    """The steps that come before ``name``."""
    return list(steps[: list(steps).index(name)])
