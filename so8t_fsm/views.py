"""What a run looks like from outside: the facts behind ``so8t state``, ``history``, and a step's record."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from so8t_fsm import lease
from so8t_fsm.schema import artifact, attempt, checkpoint, history as history_table, override
from so8t_fsm.states import FAILURES, PERSON
from so8t_fsm.store import Run, Store, now


def iso(at: float | None) -> str | None:
    """A time as ISO 8601 in UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def history(store: Store, run_id: str, last: int | None = None) -> list[dict[str, Any]]:
    """A run's history, oldest first; the ``last`` rows only, if given."""
    query = sa.select(history_table).where(history_table.c.run_id == run_id).order_by(history_table.c.rev.desc())
    if last is not None:
        query = query.limit(last)
    with store.read() as connection:
        rows = connection.execute(query).mappings().all()
    return [{**{k: v for k, v in row.items() if k != "run_id"}, "at": iso(row["at"])} for row in reversed(rows)]


def picture(store: Store, run: Run) -> dict[str, Any]:
    """Everything ``so8t state --json`` prints of a run."""
    with store.read() as connection:
        held = lease.holder(connection)
        attempts = connection.execute(
            sa.select(attempt).where(attempt.c.run_id == run.id).order_by(attempt.c.started_at)).mappings().all()
        commits = connection.execute(
            sa.select(artifact).where(artifact.c.run_id == run.id, artifact.c.status == "live")).mappings().all()
        newest = connection.execute(
            sa.select(checkpoint).where(checkpoint.c.run_id == run.id, checkpoint.c.status == "live")
            .order_by(checkpoint.c.committed_at.desc()).limit(1)).mappings().first()
        overrides = connection.execute(
            sa.select(override).where(override.c.run_id == run.id)).mappings().all()
    alive = held is not None and held.epoch == run.epoch and held.alive(now())
    committed = {row["step"]: row for row in commits}
    current = next((a for a in reversed(attempts) if a["step"] == run.step and a["n"] == run.attempt), None)
    return {
        "run": run.id, "state": run.state, "step": run.step, "attempt": run.attempt, "rev": run.rev, "epoch": run.epoch,
        "runner_alive": alive,
        "progress": _progress(current) if current is not None and run.step not in committed else None,
        "checkpoint": None if newest is None else {
            "step": newest["step"], "n": newest["n"], "position": newest["position"],
            "committed_at": iso(newest["committed_at"]), "verified": newest["verified_at"] is not None,
            "verified_at": iso(newest["verified_at"]),
        },
        "incident": run.incident,
        "next_retry_at": iso(run.next_retry_at),
        "overrides": [{k: (iso(row["at"]) if k == "at" else row[k]) for k in ("key", "value", "was", "by", "at")}
                      for row in overrides],
        "steps": [{"name": name, "status": _status(name, run, committed, alive)} for name in run.steps],
        "created_at": iso(run.created_at), "finished_at": iso(run.finished_at), "parent": run.parent,
    }


def _status(name: str, run: Run, committed: dict[str, Any], alive: bool) -> str:
    if name in committed:
        return "committed"
    if run.state == "completed":
        return "skipped"
    if name != run.step:
        return "pending"
    if run.state in FAILURES or run.state in PERSON or run.state == "backing_off":
        return "failed" if run.incident else "pending"
    return "running" if alive and run.state not in ("idle", "waiting_for_resources") else "pending"


def _progress(row: Any) -> dict[str, Any] | None:
    kept = row["progress"]
    if not kept:
        return None
    done, total = kept.get("done"), kept.get("total")
    eta = None
    if row["status"] == "running" and done and total and total > done:
        eta = max(0.0, (time.time() - row["started_at"]) * (total - done) / done)
    return {"done": done, "total": total, "unit": kept.get("unit"), "note": kept.get("note"),
            "eta_s": None if eta is None else round(eta, 1)}


def record(store: Store, home: Path, run: Run) -> dict[str, Any]:
    """The run so far, as a step gets it for its reports."""
    with store.read() as connection:
        attempts = connection.execute(sa.select(attempt).where(attempt.c.run_id == run.id)).mappings().all()
        commits = {row["step"]: row for row in connection.execute(
            sa.select(artifact).where(artifact.c.run_id == run.id, artifact.c.status == "live")).mappings()}
        overrides = connection.execute(sa.select(override).where(override.c.run_id == run.id)).mappings().all()
    steps = []
    for name in run.steps:
        mine = [a for a in attempts if a["step"] == name]
        commit = commits.get(name)
        steps.append({
            "name": name, "state": run.state if name == run.step else None,
            "status": "committed" if commit else "running" if name == run.step else "pending",
            "attempts": len(mine), "started_at": iso(min((a["started_at"] for a in mine), default=None)),
            "committed_at": iso(commit["committed_at"]) if commit else None,
            "identity": commit["identity"] if commit else None,
            "path": str(home / "state" / commit["path"]) if commit else None,
            "reused_from": commit["reused_from"] if commit else None,
        })
    return {
        "run": {"id": run.id, "created_at": iso(run.created_at), "config_path": run.config_path, "parent": run.parent},
        "steps": steps, "history": history(store, run.id),
        "overrides": [{**{k: row[k] for k in ("key", "value", "was", "by")}, "at": iso(row["at"])} for row in overrides],
    }
