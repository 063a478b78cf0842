"""Directories that are either wholly there or not there: stage, hash, fsync, rename, verify.

The order is the contract (docs/ARCHITECTURE.md, "Commit"): every file is hashed and flushed, ``manifest.json`` is
written last, directories are flushed, one rename makes the directory visible under its final name, and only then may
a database row speak of it.  A directory without a row does not exist; a directory with a row always verifies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

MANIFEST = "manifest.json"
FORMAT = 1
CHUNK = 1 << 20

Tick = Callable[[int], None]
"""Called with the number of bytes read since the last call, so that the caller can beat a heart."""


class Damaged(Exception):
    """A directory does not match its manifest."""


@dataclass(frozen=True)
class Manifest:
    """What a directory holds.

    ``files`` depend on configuration, data and seed alone and are byte-identical however often a run was interrupted;
    ``volatile`` files carry times or host facts: they are verified too, but never compared between runs.
    Both map a relative POSIX path to ``{"sha256": hex, "bytes": int}``.
    """

    files: Mapping[str, Mapping[str, Any]]
    volatile: Mapping[str, Mapping[str, Any]]

    @property
    def identity(self) -> str:
        """sha256 over the reproducible part: the name under which later steps record this directory as an input."""
        return hashlib.sha256(_canonical({"files": self.files})).hexdigest()

    def to_bytes(self) -> bytes:
        return _canonical({"format": FORMAT, "files": self.files, "volatile": self.volatile})

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read ``manifest.json``; keys that a newer version added are ignored.

        Raises:
            Damaged: it is missing or is not a manifest.
        """
        try:
            raw = json.loads((directory / MANIFEST).read_bytes())
            return cls(files=dict(raw["files"]), volatile=dict(raw.get("volatile", {})))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{directory}: no readable {MANIFEST} ({error})") from error


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def canonical_hash(value: Any) -> str:
    """sha256 of a JSON value, independent of key order."""
    return hashlib.sha256(_canonical(value)).hexdigest()


def hash_file(path: Path, tick: Tick | None = None) -> tuple[str, int]:
    """sha256 (hex) and size in bytes of a file, read in chunks of 1 MiB."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
            size += len(block)
            if tick:
                tick(len(block))
    return digest.hexdigest(), size


def fsync_file(path: Path) -> None:
    # Windows refuses to flush a handle opened for reading only.
    fd = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_dir(path: Path) -> None:
    """Flush a directory's entries.  Windows has no such call; NTFS journals the rename itself."""
    if sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_durable(directory: Path, root: Path) -> None:
    """Make a directory and those above it, and flush the names of all of them that are below ``root``.

    A flushed file is gone after a power cut when the name of a directory above it was not flushed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    while directory != root and directory != directory.parent:
        directory = directory.parent
        fsync_dir(directory)


def walk_files(directory: Path) -> Iterator[Path]:
    """Every regular file below, in a fixed order, the manifest excluded.  Links and devices are refused."""
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise Damaged(f"{path}: only plain files can be committed")
        if path.relative_to(directory).as_posix() != MANIFEST:
            yield path


def seal(directory: Path, volatile: Collection[str] = (), tick: Tick | None = None) -> Manifest:
    """Hash and flush every file, write the manifest last, flush every directory.  Returns the manifest."""
    files: dict[str, dict[str, Any]] = {}
    loose: dict[str, dict[str, Any]] = {}
    for path in walk_files(directory):
        name = path.relative_to(directory).as_posix()
        digest, size = hash_file(path, tick)
        fsync_file(path)
        (loose if name in volatile else files)[name] = {"sha256": digest, "bytes": size}
    manifest = Manifest(files, loose)
    write_durable(directory / MANIFEST, manifest.to_bytes())
    for sub in sorted(p for p in directory.rglob("*") if p.is_dir()):
        fsync_dir(sub)
    fsync_dir(directory)
    return manifest


def verify(directory: Path, tick: Tick | None = None) -> Manifest:
    """Check that a directory holds exactly what its manifest says.

    Raises:
        Damaged: a file is missing, changed, or was added.
    """
    manifest = Manifest.load(directory)
    expected = {**manifest.files, **manifest.volatile}
    for name, entry in expected.items():
        path = directory / name
        try:
            digest, size = hash_file(path, tick)
        except OSError as error:
            raise Damaged(f"{path}: {error.strerror or error}") from error
        if size != entry["bytes"] or digest != entry["sha256"]:
            raise Damaged(f"{path}: its sha256 is not the one in {MANIFEST}")
    extra = {p.relative_to(directory).as_posix() for p in walk_files(directory)} - set(expected)
    if extra:
        raise Damaged(f"{directory / min(extra)}: not listed in {MANIFEST}")
    return manifest


def publish(staging: Path, final: Path) -> None:
    """Give a sealed directory its final name and make the rename durable.

    Raises:
        FileExistsError: the name is taken by something with files in it.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        raise FileExistsError(f"{final} is already there")
    _retry_sharing(lambda: os.rename(staging, final))
    fsync_dir(final.parent)
    if staging.parent != final.parent:
        fsync_dir(staging.parent)


def write_durable(path: Path, data: bytes) -> None:
    """Replace one file so that after a power cut it holds the old bytes or the new, never a mixture."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    _retry_sharing(lambda: os.replace(temporary, path))
    fsync_dir(path.parent)


def quarantine(directory: Path) -> Path:
    """Move a damaged directory aside, keeping it for inspection.  Returns its new name."""
    target = directory.with_name(f"{directory.name}.damaged-{int(time.time())}")
    counter = 0
    while target.exists():
        counter += 1
        target = directory.with_name(f"{directory.name}.damaged-{int(time.time())}-{counter}")
    _retry_sharing(lambda: os.rename(directory, target))
    fsync_dir(directory.parent)
    return target


def remove_tree(path: Path) -> int:
    """Delete a directory or file.  Returns the bytes freed; what is already gone frees 0.

    A link is deleted, never what it points to.
    """
    freed = weigh(path)
    if path.is_dir() and not path.is_symlink():
        _retry_sharing(lambda: shutil.rmtree(path, ignore_errors=False))
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    return freed


def weigh(path: Path) -> int:
    """Bytes in a file, or in the files below a directory.  Links, and what is not there, weigh nothing."""
    total = 0
    for found in (path, *(path.rglob("*") if not path.is_symlink() else ())):
        with contextlib.suppress(OSError):
            status = found.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _retry_sharing(operation: Callable[[], None]) -> None:
    """On Windows a virus scanner may hold a fresh file for a moment; elsewhere an error is final at once."""
    if sys.platform != "win32":
        operation()
        return
    for attempt in Retrying(
        retry=retry_if_exception_type(PermissionError), stop=stop_after_delay(10),
        wait=wait_random_exponential(multiplier=0.05, max=1), reraise=True,
    ):
        with attempt:
            operation()
