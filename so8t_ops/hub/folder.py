"""A folder as the hub: a repository is a directory that is there whole, or is there as it was before.

The payload is copied to a hidden directory beside the target, file by file, each hashed as it is written; a copy
that was cut off goes on with the files that are missing.  ``manifest.json`` seals it, and two renames put it in the
old one's place.  A kill between the two leaves the old directory under a hidden name; the next call puts it back.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from so8t_fsm.step import StepFailure, artifacts
from so8t_ops.hub.payload import Entry

log = logging.getLogger("so8t.upload")


def deliver(payload: Sequence[Entry], target: Path, tick: Callable[[int], None] = lambda _: None) -> bool:
    """Make ``target`` hold exactly the payload and its manifest.  False when it did already.

    Args:
        tick: called with the bytes copied since the last call; may raise to stop, the next call goes on from there.

    Raises:
        StepFailure: (disk_full) there is not room enough beside the target; (data_invalid) a source changed since it
            was measured; (network_failed) what is read back is not what was written.
    """
    staging = target.with_name(f".{target.name}.staging")
    old = target.with_name(f".{target.name}.old")
    target.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not target.exists():
        artifacts.publish(old, target)
    if holds(target, payload):
        artifacts.remove_tree(staging)
        artifacts.remove_tree(old)
        return False
    _fill(staging, payload, tick)
    artifacts.seal(staging)
    if not holds(staging, payload):
        artifacts.remove_tree(staging)
        raise StepFailure(f"{target}: what was read back is not what was written", state="network_failed",
                          hint="check the disk or the share, then so8t resume")
    if target.exists():
        _make_way(target, old)
    artifacts.publish(staging, target)
    artifacts.remove_tree(old)
    return True


def holds(directory: Path, payload: Sequence[Entry]) -> bool:
    """Read every file back: does the directory hold the payload, the whole payload and nothing else?"""
    if not directory.is_dir():
        return False
    try:
        manifest = artifacts.verify(directory)
    except artifacts.Damaged:
        return False
    return manifest.files == {e.name: {"sha256": e.sha256, "bytes": e.size} for e in payload}


def _fill(staging: Path, payload: Sequence[Entry], tick: Callable[[int], None]) -> None:
    staging.mkdir(parents=True, exist_ok=True)
    wanted = {entry.name: entry for entry in payload}
    kept = set()
    for path in sorted(p for p in staging.rglob("*") if not p.is_dir() or p.is_symlink()):
        entry = wanted.get(path.relative_to(staging).as_posix())
        if entry and not path.is_symlink() and artifacts.hash_file(path) == (entry.sha256, entry.size):
            kept.add(entry.name)
            tick(entry.size)
        else:
            path.unlink()
    missing = [entry for entry in payload if entry.name not in kept]
    needed, free = sum(entry.size for entry in missing), shutil.disk_usage(staging).free
    if needed > free:
        raise StepFailure(f"{staging.parent}: {needed:,} bytes are needed and {free:,} are free", state="disk_full",
                          hint="make room there, or name another upload.folder")
    for entry in missing:
        _copy(entry, staging / entry.name, tick)


def _copy(entry: Entry, destination: Path, tick: Callable[[int], None]) -> None:
    """Copy through a name that is never taken for the file, so that a half-written one is never counted."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(destination.name + ".part")
    digest = hashlib.sha256()
    with entry.source.open("rb") as reader, part.open("wb") as writer:
        while block := reader.read(artifacts.CHUNK):
            digest.update(block)
            writer.write(block)
            tick(len(block))
    if digest.hexdigest() != entry.sha256:
        part.unlink()
        raise StepFailure(f"{entry.source.name} changed while it was being copied", state="data_invalid",
                          hint="so8t resume verifies the commit it belongs to")
    artifacts.fsync_file(part)
    part.replace(destination)


def _make_way(target: Path, old: Path) -> None:
    """Set the present directory aside.  One that is not as it was delivered holds somebody's work, and is kept."""
    artifacts.remove_tree(old)
    try:
        artifacts.verify(target)
    except artifacts.Damaged as damage:
        number = 1
        while (kept := target.with_name(f"{target.name}.kept-{number}")).exists():
            number += 1
        log.warning("%s was changed by somebody else (%s); kept as %s", target, damage, kept.name)
        artifacts.publish(target, kept)
    else:
        artifacts.publish(target, old)
