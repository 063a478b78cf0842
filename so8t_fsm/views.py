"""What a run looks like from outside: the facts behind ``so8t state``, ``history``, and a step's record."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from so8t_fsm import host
from so8t_fsm.holder import Holder
from so8t_fsm.reader import Reader, Unreadable
from so8t_fsm.states import FAILURES, PERSON

LIVE = "SELECT * FROM artifact WHERE run_id = ? AND status = 'live'"
OVERRIDES = 'SELECT "key", "value", "was", "by", "at" FROM override WHERE run_id = ? ORDER BY "key"'


def iso(at: float | None) -> str | None:
    """A time as ISO 8601 in UTC."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def history(reader: Reader, run_id: str, last: int | None = None) -> list[dict[str, Any]]:
    """A run's history, oldest first; the ``last`` rows only, if given."""
    limit = f" LIMIT {int(last)}" if last is not None else ""
    rows = reader.rows(f"SELECT * FROM history WHERE run_id = ? ORDER BY rev DESC{limit}", [run_id])
    return [{**{k: v for k, v in row.items() if k != "run_id"}, "at": iso(row["at"])} for row in reversed(rows)]


def picture(reader: Reader, run: dict[str, Any]) -> dict[str, Any]:
    """Everything ``so8t state --json`` prints of a run, given its row."""
    key = [run["id"]]
    held = reader.one("SELECT epoch, host, boot, pid, pid_started, heartbeat_at, expires_at FROM lease")
    alive = held is not None and held["epoch"] == run["epoch"] and Holder(**held).alive(time.time())
    committed = {row["step"] for row in reader.rows(LIVE, key)}
    attempt = reader.one('SELECT * FROM attempt WHERE run_id = ? AND step = ? AND n = ?',
                         [run["id"], run["step"], run["attempt"]]) if run["step"] else None
    checkpoint = reader.one(
        "SELECT * FROM checkpoint WHERE run_id = ? AND status = 'live' ORDER BY committed_at DESC LIMIT 1", key)
    return {
        "run": run["id"], "state": run["state"], "step": run["step"], "attempt": run["attempt"], "rev": run["rev"],
        "epoch": run["epoch"], "runner_alive": alive,
        "progress": _progress(attempt) if attempt and run["step"] not in committed else None,
        "checkpoint": None if checkpoint is None else {
            "step": checkpoint["step"], "n": checkpoint["n"], "committed_at": iso(checkpoint["committed_at"]),
            "verified": checkpoint["verified_at"] is not None, "verified_at": iso(checkpoint["verified_at"]),
            "position": checkpoint["position"],
        },
        "incident": run["incident"],
        "next_retry_at": iso(run["next_retry_at"]),
        "overrides": [{**row, "at": iso(row["at"])} for row in reader.rows(OVERRIDES, key)],
        "steps": [{"name": name, "status": _status(name, run, committed, alive)} for name in run["steps"]],
        "watchers": _watchers(reader, held["host"] if held is not None and alive else None),
        "created_at": iso(run["created_at"]), "finished_at": iso(run["finished_at"]), "parent": run["parent"],
    }


def _watchers(reader: Reader, running_on: str | None) -> list[dict[str, Any]]:
    """Who watches the logs at this moment.  ``blind`` says why one that should see does not."""
    try:
        rows = reader.rows("SELECT * FROM watcher ORDER BY name, host")
    except Unreadable:
        return []  # written by an older version, which did not say

    def there(row: dict[str, Any]) -> bool:
        if row["host"] == host.host_name():
            return host.alive(row["pid"], row["pid_started"])
        return bool(row["name"] == "runner" and row["host"] == running_on)

    return [{"name": row["name"], "way": row["way"], "blind": row["blind"], "since": iso(row["at"]), "host": row["host"]}
            for row in rows if there(row)]


def _status(name: str, run: dict[str, Any], committed: set[str], alive: bool) -> str:
    state = run["state"]
    if name in committed:
        return "committed"
    if state == "completed":
        return "skipped"
    if name != run["step"]:
        return "pending"
    if state in FAILURES or state in PERSON or state == "backing_off":
        return "failed" if run["incident"] else "pending"
    return "running" if alive and state not in ("idle", "waiting_for_resources") else "pending"


def _progress(attempt: dict[str, Any]) -> dict[str, Any] | None:
    kept = attempt["progress"]
    if not kept:
        return None
    done, total = kept.get("done"), kept.get("total")
    eta = None
    if attempt["status"] == "running" and done and total and total > done:
        # An attempt that resumed did not do the first part itself: its own pace counts.
        own = done - (kept.get("first") or 0)
        eta = max(0.0, (time.time() - attempt["started_at"]) * (total - done) / own) if own > 0 else None
    return {"done": done, "total": total, "unit": kept.get("unit"), "note": kept.get("note"),
            "eta_s": None if eta is None else round(eta, 1)}


def record(reader: Reader, home: Path, run_id: str) -> dict[str, Any]:
    """The run so far, as a step gets it for its reports."""
    run = reader.one("SELECT * FROM run WHERE id = ?", [run_id])
    assert run is not None
    attempts = reader.rows("SELECT step, n, status, started_at FROM attempt WHERE run_id = ?", [run_id])
    commits = {row["step"]: row for row in reader.rows(LIVE, [run_id])}
    steps = []
    for name in run["steps"]:
        started = [row["started_at"] for row in attempts if row["step"] == name]
        commit = commits.get(name, {})
        steps.append({
            "name": name, "status": "committed" if commit else "running" if name == run["step"] else "pending",
            "attempts": len(started), "started_at": iso(min(started, default=None)),
            "committed_at": iso(commit.get("committed_at")), "identity": commit.get("identity"),
            "path": str(home / "state" / commit["path"]) if commit else None, "reused_from": commit.get("reused_from"),
        })
    return {
        "run": {"id": run["id"], "created_at": iso(run["created_at"]), "config_path": run["config_path"],
                "parent": run["parent"]},
        "steps": steps, "history": history(reader, run_id),
        "overrides": [{**row, "at": iso(row["at"])} for row in reader.rows(OVERRIDES, [run_id])],
    }
