"""The judge: is what lies on this disk a state the machine may be in?  Shares no code with the machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

WORKING = ("collecting", "preprocessing", "training", "integrating", "evaluating", "uploading", "cleaning_up")


def violations(home: Path, acked: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """What is wrong with a home after a crash, in words; empty when nothing is.

    ``acked`` are transitions (``run``, ``rev``, ``state``) that were reported as done before the crash.
    """
    path = home / "state" / "so8t.db"
    said = list(acked)
    if not path.exists() or path.stat().st_size == 0:
        return [f"there is no database, but {len(said)} transitions were acknowledged"] if said else []
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.row_factory = sqlite3.Row
            return [*_database(database, said), *_directories(database, home / "state"), *_backups(path.parent)]
    except sqlite3.DatabaseError as error:
        return [f"the database can't be read: {error}"]


def _database(database: sqlite3.Connection, said: list[Mapping[str, Any]]) -> list[str]:
    found = [f"integrity_check: {row[0]}" for row in database.execute("PRAGMA integrity_check") if row[0] != "ok"]
    if found:
        return found
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'run'").fetchone():
        return [f"there are no tables, but {len(said)} transitions were acknowledged"] if said else []
    known = set()
    for run in database.execute("SELECT * FROM run").fetchall():
        rows = database.execute("SELECT * FROM history WHERE run_id = ? ORDER BY rev", (run["id"],)).fetchall()
        known |= {(run["id"], row["rev"], row["to_state"]) for row in rows}
        found += _history(run, rows)
        found += _once(database, run)
    for fact in said:
        if (fact["run"], fact["rev"], fact["state"]) not in known:
            found.append(f"acknowledged but lost: revision {fact['rev']}, {fact['state']}")
    return found


def _history(run: sqlite3.Row, rows: list[sqlite3.Row]) -> list[str]:
    found = []
    if [row["rev"] for row in rows] != list(range(1, run["rev"] + 1)):
        found.append(f"revision {run['rev']}, but the history is {[row['rev'] for row in rows]}")
    state = "idle"
    for row in rows:
        if row["from_state"] != state:
            found.append(f"revision {row['rev']} starts at {row['from_state']}, the one before ended at {state}")
        state = row["to_state"]
    if state != run["state"]:
        found.append(f"the run is {run['state']}, its history ends at {state}")
    # Leaving a state forwards happens once, unless damage sent the run back or a person moved it.
    if not any(row["trigger"] in ("roll_back", "force") for row in rows):
        advances = Counter(row["from_state"] for row in rows if row["trigger"] == "advance")
        found += [f"{state} was left {n} times" for state, n in advances.items() if n > 1]
        if run["state"] == "completed" and set(advances) != set(WORKING):
            found.append(f"completed without leaving {', '.join(sorted(set(WORKING) - set(advances)))}")
    return found


def _once(database: sqlite3.Connection, run: sqlite3.Row) -> list[str]:
    """Each step that the run has passed is committed exactly once; none is committed twice."""
    found = []
    steps = json.loads(run["steps"])
    passed = set(steps[: steps.index(run["step"])] if run["step"] else steps)
    for step in steps:
        where = (run["id"], step)
        live = database.execute(
            "SELECT count(*) FROM artifact WHERE run_id = ? AND step = ? AND status = 'live'", where).fetchone()[0]
        done = database.execute(
            "SELECT count(*) FROM attempt WHERE run_id = ? AND step = ? AND status = 'committed'", where).fetchone()[0]
        expected = 1 if step in passed else 0
        if live != expected:
            found.append(f"{step} has {live} live commits, not {expected}")
        if done != expected:
            found.append(f"{step} has {done} committed attempts, not {expected}")
    return found


def _directories(database: sqlite3.Connection, root: Path) -> list[str]:
    """What has a row verifies, byte by byte."""
    found = []
    for table in ("artifact", "checkpoint"):
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
            for row in database.execute(f"SELECT path, identity FROM {table} WHERE status = 'live'"):
                found += [f"{table} {row['path']}: {why}" for why in _directory(root / row["path"], row["identity"])]
    return found


def _directory(path: Path, identity: str) -> list[str]:
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        return [f"no readable manifest ({type(error).__name__})"]
    names = json.dumps({"files": manifest["files"]}, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    if hashlib.sha256(names.encode()).hexdigest() != identity:
        return ["it is not the directory that was committed"]
    expected = {**manifest["files"], **manifest["volatile"]}
    found = []
    for name, entry in expected.items():
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            found.append(f"{name}: {error.strerror}")
            continue
        if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            found.append(f"{name}: its bytes are not those that were committed")
    there = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    return found + [f"{name}: nobody committed it" for name in there - set(expected) - {"manifest.json"}]


def _backups(folder: Path) -> list[str]:
    found = []
    for path in folder.glob("backups/so8t-*.db"):
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as backup:
                answer = backup.execute("PRAGMA integrity_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            answer = str(error)
        if answer != "ok":
            found.append(f"backup {path.name}: {answer}")
    return found


def outcome(home: Path) -> dict[str, Any]:
    """What the latest run made: its state, and by step the ``files`` of its manifests, which never depend on luck."""
    with contextlib.closing(sqlite3.connect(home / "state" / "so8t.db")) as database:
        run, state = database.execute("SELECT id, state FROM run ORDER BY created_at DESC, id DESC").fetchone()
        live = "SELECT step, path FROM artifact WHERE run_id = ? AND status = 'live'"
        rows = database.execute(live, (run,)).fetchall()
    files = {step: json.loads((home / "state" / path / "manifest.json").read_bytes())["files"] for step, path in rows}
    return {"state": state, "files": files}


def transitions(home: Path) -> int:
    """How many transitions all runs of a home have committed."""
    with contextlib.closing(sqlite3.connect(home / "state" / "so8t.db")) as database:
        return int(database.execute("SELECT count(*) FROM history").fetchone()[0])
