"""Actions on what the machine itself wrote: making room, moving, going back."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from so8t_fsm import artifacts
from so8t_fsm.actions import Intent, Outcome, Scene
from so8t_fsm.commits import Checkpoint
from so8t_fsm.resources import existing_parent, size
from so8t_fsm.schema import artifact, checkpoint

ORPHAN_AGE = 600.0
"""A download that nothing has written to for so many seconds belongs to nobody: the client writes all the time."""

TABLES = {"artifact": artifact, "checkpoint": checkpoint}


# Unfinished downloads -----------------------------------------------------------------------------------------------


def _hub_cache() -> Path:
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    base = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(chosen or os.path.join(base, "hub")).expanduser()


def _orphans(age: float) -> Iterator[Path]:
    """Unfinished downloads of the Hub client that a killed process left for ever: old enough, and locked by nobody."""
    cache = _hub_cache()
    for path in sorted(cache.glob("*--*/blobs/*.incomplete")):
        linked = any(p.is_symlink() for p in (path, path.parent, path.parent.parent))
        try:
            old = path.is_file() and time.time() - path.stat().st_mtime >= age
        except OSError:
            continue
        if old and not linked and not _locked(cache / ".locks" / path.parent.parent.name, path.name.split(".")[0]):
            yield path


def _locked(folder: Path, blob: str) -> bool:
    """Is another process downloading this blob?  The client holds a lock for as long as it does."""
    lock = folder / f"{blob}.lock"
    if not lock.exists():
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def plan_download(_scene: Scene, args: Mapping[str, Any]) -> Intent:
    if not args["discard_partial"]:
        return Intent("finished files stay; the client asks only for what is missing")
    weights = {str(path): artifacts.weigh(path) for path in _orphans(0.0)}
    return Intent(f"throw {len(weights)} unfinished downloads away ({size(sum(weights.values()))})",
                  data={"paths": list(weights), "weights": weights})


def resume_download(scene: Scene, intent: Intent) -> Outcome:
    wanted = set(intent.data.get("paths", ()))
    if not wanted:
        return Outcome("done", intent.words)
    return _delete(scene, [path for path in _orphans(0.0) if str(path) in wanted], intent)


# Making room --------------------------------------------------------------------------------------------------------


def plan_cleanup(scene: Scene, args: Mapping[str, Any]) -> Intent:
    """Only what is declared disposable: own staging and scratch, superseded checkpoints, the client's orphans.

    The newest checkpoints stay; they were verified when they were committed.
    """
    old = scene.commits.checkpoints(scene.run.id, scene.step)[int(args["keep_checkpoints"]):]
    paths = [*scene.commits.disposable(scene.run), *_orphans(ORPHAN_AGE)]
    weights = {str(path): artifacts.weigh(path) for path in [*paths, *(scene.commits.root / row.path for row in old)]}
    total = sum(weights.values())
    words = f"delete {len(paths)} disposable directories and downloads and {len(old)} old checkpoints ({size(total)})"
    if not (paths or old):
        return Intent("there is nothing disposable to delete", skip=True)
    return Intent(words, data={
        "paths": list(map(str, paths)), "free": int(args["free"]), "weights": weights,
        "checkpoints": [[row.n, row.path] for row in reversed(old)]})


def cleanup(scene: Scene, intent: Intent) -> Outcome:
    """Delete one after the other, checkpoints last and the oldest first, until enough is free."""
    # Looked up again: between the intent and now a path may have become somebody's.
    now = {*map(str, scene.commits.disposable(scene.run)), *map(str, _orphans(ORPHAN_AGE))}
    loose = [Path(path) for path in intent.data["paths"] if path in now]
    live = {row.n for row in scene.commits.checkpoints(scene.run.id, scene.step)}

    def gone(n: int) -> None:
        if n in live:
            with scene.store.fenced(*scene.lease) as tx:
                tx.mark(checkpoint, scene.run.id, scene.step, n, status="pruned")

    numbers = {scene.commits.root / path: n for n, path in intent.data["checkpoints"]}
    return _delete(scene, [*loose, *numbers], intent, lambda path: gone(numbers[path]) if path in numbers else None)


def _delete(scene: Scene, paths: Sequence[Path], intent: Intent,
            before: Callable[[Path], None] = lambda path: None) -> Outcome:
    """Delete, telling ``before`` of each, until as much is free as was intended (0: all).  What resists is told, not fatal.

    What was freed is what the intent found less what is left of it: an earlier try may have died after the first file.
    """
    free, stuck = intent.data.get("free", 0), []
    for path in paths:
        if free and shutil.disk_usage(scene.home).free >= free:
            break
        scene.beat()
        before(path)
        try:
            artifacts.remove_tree(path)
        except OSError as error:
            stuck.append(f"{error.filename or path}: {error.strerror or error}")
    freed = sum(weight - artifacts.weigh(Path(path)) for path, weight in intent.data.get("weights", {}).items())
    words = f"{size(freed)} freed" + (f"; {len(stuck)} could not be deleted: {stuck[0]}" if stuck else "")
    return Outcome("done", words, {"bytes_freed": freed, "stuck": stuck})


# Moving -------------------------------------------------------------------------------------------------------------


def _device(path: Path) -> int | None:
    parent = existing_parent(path)
    return parent.stat().st_dev if parent else None


def plan_move(scene: Scene, args: Mapping[str, Any]) -> Intent:
    """Commits go to ``resources.second_storage``, and this step's checkpoints but the newest, which is read next."""
    chosen = str(scene.setting("resources.second_storage") or "")
    if not chosen:
        return Intent("resources.second_storage is not set", skip=True)
    target = scene.home / Path(chosen).expanduser()
    # An empty mount point is on this disk: what is moved there would fill it, and be hidden by the next mount.
    if not target.is_dir():
        return Intent(f"{target} is not there; connect it or change resources.second_storage", skip=True)
    if _device(target) == _device(scene.commits.root):
        return Intent(f"{target} is on the same disk; moving there makes no room", skip=True)
    paths = {"checkpoint": [row.path for row in scene.commits.checkpoints(scene.run.id, scene.step)[1:]],
             "artifact": [row.path for row in scene.commits.live(scene.run.id).values()]}
    tables = {"checkpoints": ["checkpoint"], "artifacts": ["artifact"]}.get(args["what"], list(paths))
    moved = [{"table": table, "path": path} for table in tables for path in paths[table]
             if not Path(path).is_absolute()]
    total = size(sum(artifacts.weigh(scene.commits.root / entry["path"]) for entry in moved))
    return Intent(f"move {len(moved)} directories ({total}) to {target}", skip=not moved,
                  data={"moved": moved, "target": str(target)})


def move_to_storage(scene: Scene, intent: Intent) -> Outcome:
    """Copy, verify, flush, then the row, then delete: at every instant one whole copy has the row."""
    target, freed = Path(intent.data["target"]), 0
    try:
        for entry in intent.data["moved"]:
            source, final = scene.commits.root / entry["path"], target / entry["path"]
            if source.exists():
                _copy_whole(scene, source, final, target)
            elif not final.exists():
                continue
            with scene.store.fenced(*scene.lease) as tx:
                # A commit that other runs took over has a row in each of them.
                rows = TABLES[entry["table"]]
                tx.connection.execute(
                    sa.update(rows).where(rows.c.path == entry["path"]).values(path=final.as_posix()))
            freed += artifacts.remove_tree(source)
    except (OSError, artifacts.Damaged) as error:
        return Outcome("failed", f"{target}: {error}", {"bytes_freed": freed})
    return Outcome("done", f"{size(freed)} moved to {target}", {"bytes_freed": freed})


def _copy_whole(scene: Scene, source: Path, final: Path, target: Path) -> None:
    """Leave a verified copy of ``source`` at ``final``, durable, or nothing.

    Raises:
        OSError, Damaged: it could not be copied, or what was read is not what was committed.
    """
    wanted = artifacts.Manifest.load(source)
    if final.exists():
        try:
            if artifacts.verify(final, lambda _read: scene.beat()) == wanted:
                return
        except artifacts.Damaged:
            pass
        artifacts.quarantine(final)
    staging = final.with_name(f".{final.name}.moving")
    artifacts.remove_tree(staging)
    try:
        for path in [*artifacts.walk_files(source), source / artifacts.MANIFEST]:
            copy = staging / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as read, copy.open("wb") as write:
                while block := read.read(artifacts.CHUNK):
                    write.write(block)
                    scene.beat()
            artifacts.fsync_file(copy)
        artifacts.verify(staging, lambda _read: scene.beat())
    except BaseException:
        artifacts.remove_tree(staging)
        raise
    for folder in [*(path for path in sorted(staging.rglob("*")) if path.is_dir()), staging]:
        artifacts.fsync_dir(folder)
    artifacts.publish(staging, final)
    artifacts.make_durable(final, target)


# Going back ---------------------------------------------------------------------------------------------------------


def _without(rows: Sequence[Checkpoint], words: str) -> Intent:
    return Intent(words, data={"numbers": [row.n for row in rows]})


def plan_rollback(scene: Scene, args: Mapping[str, Any]) -> Intent:
    rows, steps = scene.commits.checkpoints(scene.run.id, scene.step), int(args["steps"])
    if not rows:
        return Intent("there is no checkpoint to leave out: the step begins afresh", skip=True)
    left = rows[steps:]
    goal = f"to checkpoint {left[0].n} at {left[0].position:g}" if left else "to the beginning of the step"
    return _without(rows[:steps], f"go back {goal}")


def plan_restart(scene: Scene, args: Mapping[str, Any]) -> Intent:
    if args["from"] != "beginning":
        return Intent("run the step again from its newest checkpoint")
    return _without(scene.commits.checkpoints(scene.run.id, scene.step), "run the step again from its beginning")


def leave_out(scene: Scene, intent: Intent) -> Outcome:
    """Leave the checkpoints out; their directories are disposable from then on."""
    numbers = intent.data.get("numbers", ())
    if numbers:
        with scene.store.fenced(*scene.lease) as tx:
            for n in numbers:
                tx.mark(checkpoint, scene.run.id, scene.step, n, status="pruned")
    return Outcome("done", intent.words)
