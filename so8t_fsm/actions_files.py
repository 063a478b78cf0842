"""Actions on what the machine itself wrote: making room, moving, going back."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from so8t_fsm import artifacts
from so8t_fsm.actions import Intent, Outcome, Scene
from so8t_fsm.resources import size
from so8t_fsm.schema import artifact, checkpoint

ORPHAN_AGE = 600.0
"""A download that nothing has written to for so long belongs to nobody: the client writes all the time."""


def _hub_cache() -> Path:
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(base).expanduser() / "hub"


def _orphans(age: float = ORPHAN_AGE) -> Iterator[Path]:
    """Unfinished downloads of the Hub client that a killed process left for ever."""
    cache = _hub_cache()
    for pattern in ("models--*/blobs/*.incomplete", "datasets--*/blobs/*.incomplete"):
        for path in cache.glob(pattern):
            try:
                if path.is_file() and not path.is_symlink() and time.time() - path.stat().st_mtime > age:
                    yield path
            except OSError:
                continue


def _weight(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(p.lstat().st_size for p in path.rglob("*") if p.is_file())
        return path.lstat().st_size
    except OSError:
        return 0


def plan_cleanup(scene: Scene, args: Mapping[str, Any]) -> Intent:
    """Only what is declared disposable: own staging and scratch, pruned checkpoints, the client's orphans."""
    old = scene.commits.checkpoints(scene.run.id, scene.step)[int(args["keep_checkpoints"]):]
    folders = [str(path) for path in scene.commits.disposable(scene.run)]
    orphans = [str(path) for path in _orphans()]
    total = sum(_weight(Path(p)) for p in folders + orphans)
    total += sum(_weight(scene.commits.root / row.path) for row in old)
    return Intent(
        f"delete {len(folders)} disposable directories, {len(old)} old checkpoints and {len(orphans)} unfinished downloads "
        f"({size(total)})",
        data={"paths": folders + orphans, "checkpoints": [row.n for row in old], "free": int(args["free"])},
    )


def cleanup(scene: Scene, intent: Intent) -> Outcome:
    numbers = set(intent.data["checkpoints"])
    rows = [row for row in scene.commits.checkpoints(scene.run.id, scene.step) if row.n in numbers]
    if rows:
        with scene.store.fenced(*scene.lease) as tx:
            for row in rows:
                tx.mark(checkpoint, scene.run.id, scene.step, row.n, status="pruned")
    live = {*scene.commits.disposable(scene.run), *_orphans()}
    freed = 0
    for path in [Path(p) for p in intent.data["paths"]] + [scene.commits.root / row.path for row in rows]:
        if intent.data["free"] and shutil.disk_usage(scene.home).free >= intent.data["free"]:
            break
        # Looked up again: between the intent and now a path may have become somebody's.
        if path in live or path in {scene.commits.root / row.path for row in rows}:
            scene.beat()
            freed += artifacts.remove_tree(path)
    return Outcome("done", f"{size(freed)} freed", {"bytes_freed": freed})


def plan_download(_scene: Scene, args: Mapping[str, Any]) -> Intent:
    if not args["discard_partial"]:
        return Intent("finished files stay; the client asks only for what is missing")
    return Intent("throw the unfinished part away", data={"paths": [str(p) for p in _orphans(0.0)]})


def resume_download(_scene: Scene, intent: Intent) -> Outcome:
    freed = sum(artifacts.remove_tree(Path(p)) for p in intent.data.get("paths", ()))
    return Outcome("done", intent.words, {"bytes_freed": freed})


def plan_move(scene: Scene, args: Mapping[str, Any]) -> Intent:
    """Committed directories that the next attempt does not read go to ``resources.second_storage``."""
    target = scene.setting("resources.second_storage")
    if not target:
        return Intent("resources.second_storage is not set", skip=True)
    what = args["what"]
    moved: list[dict[str, Any]] = []
    if what in ("checkpoints", "all"):
        rows = scene.commits.checkpoints(scene.run.id, scene.step)[1:]
        moved += [{"table": "checkpoint", "step": row.step, "n": row.n, "path": row.path} for row in rows]
    if what in ("artifacts", "all"):
        moved += [{"table": "artifact", "step": row.step, "n": row.n, "path": row.path}
                  for row in scene.commits.live(scene.run.id).values()]
    moved = [entry for entry in moved if not Path(entry["path"]).is_absolute()]
    total = sum(_weight(scene.commits.root / entry["path"]) for entry in moved)
    base = Path(target).expanduser()
    return Intent(f"move {len(moved)} directories ({size(total)}) to {base}", skip=not moved,
                  data={"moved": moved, "target": str(base if base.is_absolute() else scene.home / base)})


def move_to_storage(scene: Scene, intent: Intent) -> Outcome:
    """Copy, verify, flush, then the row, then delete: at every instant one whole copy has the row."""
    target, freed = Path(intent.data["target"]), 0
    try:
        target.mkdir(parents=True, exist_ok=True)
        for entry in intent.data["moved"]:
            source, final = scene.commits.root / entry["path"], target / entry["path"]
            if source.exists() and not final.exists():
                staging = final.with_name(f".{final.name}.moving")
                artifacts.remove_tree(staging)
                staging.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(source, staging)
                artifacts.verify(staging, lambda _read: scene.beat())
                for path in [*artifacts.walk_files(staging), staging / artifacts.MANIFEST]:
                    artifacts.fsync_file(path)
                artifacts.fsync_dir(staging)
                artifacts.publish(staging, final)
            artifacts.verify(final, lambda _read: scene.beat())
            with scene.store.fenced(*scene.lease) as tx:
                table = checkpoint if entry["table"] == "checkpoint" else artifact
                tx.mark(table, scene.run.id, entry["step"], entry["n"], path=str(final))
            freed += artifacts.remove_tree(source)
    except (OSError, artifacts.Damaged) as error:
        return Outcome("failed", f"{target}: {error}", {"bytes_freed": freed})
    return Outcome("done", f"{size(freed)} freed", {"bytes_freed": freed})


def plan_rollback(scene: Scene, args: Mapping[str, Any]) -> Intent:
    rows = scene.commits.checkpoints(scene.run.id, scene.step)
    gone = rows[: int(args["steps"])]
    if not gone:
        return Intent("there is no checkpoint to leave out: the step begins afresh", skip=True)
    left = rows[len(gone):]
    goal = f"to checkpoint {left[0].n} at {left[0].position:g}" if left else "to the beginning of the step"
    return Intent(f"go back {goal}", data={"numbers": [row.n for row in gone]})


def rollback_checkpoint(scene: Scene, intent: Intent) -> Outcome:
    """Leave the newest checkpoints out; their directories are disposable from then on."""
    with scene.store.fenced(*scene.lease) as tx:
        for n in intent.data["numbers"]:
            tx.mark(checkpoint, scene.run.id, scene.step, n, status="pruned")
    return Outcome("done", intent.words)


def plan_restart(scene: Scene, args: Mapping[str, Any]) -> Intent:
    if args.get("from", args.get("from_")) != "beginning":
        return Intent("run the step again from its newest checkpoint")
    numbers = [row.n for row in scene.commits.checkpoints(scene.run.id, scene.step)]
    return Intent("run the step again from its beginning", data={"numbers": numbers})


def restart_step(scene: Scene, intent: Intent) -> Outcome:
    return rollback_checkpoint(scene, intent) if intent.data.get("numbers") else Outcome("done", intent.words)
