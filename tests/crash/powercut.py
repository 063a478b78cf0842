"""Rebuild every kind of disk that a power cut may leave, from what strace saw the program do.

The model is the strictest that POSIX allows: what was written is lost, kept, or torn at a sector, write by write, until
its file was flushed; a name that was made, moved or removed is known only when its own directory was flushed, and
until then the directory is at any point of its past (Pillai et al., "All File Systems Are Not Created Equal", OSDI'14).
Memory-mapped writes are not seen; SQLite maps only its ``-shm`` file, which no recovery reads.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from crash import checker, trace
from crash.killsweep import copy
from crash.server import CALLS, Server, acknowledged

SECTOR = 512
Image = dict[str, bytes | None]
"""Relative path to content; None for a directory."""


@dataclass
class File:
    """``flushed`` survives any power cut; ``pending`` are ``(offset, data)`` writes and ``(size, None)`` cuts."""

    flushed: bytes = b""
    live: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def change(self, at: int, data: bytes | None) -> None:
        self.pending.append((at, data))
        _change(self.live, at, data)

    def flush(self) -> None:
        self.flushed = bytes(self.live)
        self.pending.clear()


def _change(content: bytearray, at: int, data: bytes | None) -> None:
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    if data is None:
        del content[at:]
    else:
        content[at:at + len(data)] = data


@dataclass
class Directory:
    """``pending`` are ``(name, what it names now)`` changes; None removes the name."""

    flushed: dict[str, File | Directory] = field(default_factory=dict)
    live: dict[str, File | Directory] = field(default_factory=dict)
    pending: list[tuple[tuple[str, File | Directory | None], ...]] = field(default_factory=list)

    def change(self, *names: tuple[str, File | Directory | None]) -> None:
        """All of ``names`` at once: a rename is one step."""
        self.pending.append(names)
        _rename(self.live, names)

    def flush(self) -> None:
        self.flushed = dict(self.live)
        self.pending.clear()


def _rename(entries: dict[str, File | Directory], names: Sequence[tuple[str, File | Directory | None]]) -> None:
    for name, node in names:
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


@dataclass(frozen=True)
class Luck:
    """What survives: the share of pending writes and of each directory's pending changes (1 all, 0 none)."""

    writes: float
    names: float
    random: random.Random

    def content(self, file: File) -> bytes:
        content = bytearray(file.flushed)
        for at, data in file.pending:
            if self.random.random() >= self.writes:
                continue
            if data is not None and 0 < self.writes < 1 and self.random.random() < 0.25:
                data = data[:SECTOR * self.random.randint(0, len(data) // SECTOR)]
            _change(content, at, data)
        return bytes(content)

    def entries(self, directory: Directory) -> dict[str, File | Directory]:
        entries = dict(directory.flushed)
        count = len(directory.pending)
        kept = self.random.randint(0, count) if 0 < self.names < 1 else round(self.names * count)
        for names in directory.pending[:kept]:
            _rename(entries, names)
        return entries


class Disk:
    """A home as the program sees it and as the disk has it.

    Raises:
        NotImplementedError: the program did something that the model does not know.
    """

    def __init__(self, home: Path, seed: Path) -> None:
        self.home = str(home)
        self.root = _load(seed)
        self.open: dict[int, tuple[File | Directory, int, bool]] = {}

    def _relative(self, path: str) -> PurePosixPath | None:
        if path != self.home and not path.startswith(self.home + "/"):
            return None
        return PurePosixPath(path[len(self.home) + 1:] or ".")

    def _find(self, path: PurePosixPath) -> File | Directory | None:
        node: File | Directory | None = self.root
        for part in path.parts:
            node = node.live.get(part) if isinstance(node, Directory) else None
        return node

    def _parent(self, path: PurePosixPath) -> Directory:
        parent = self._find(path.parent)
        assert isinstance(parent, Directory), path
        return parent

    def apply(self, call: trace.Call) -> bool:
        """Do what one call did.  Returns whether a cut after it differs from one before."""
        if call.name == "close":
            self.open.pop(call.fd, None)
            return False
        if not call.worked:
            return False
        path = self._relative(call.path)
        if call.name == "openat":
            return self._open(call, path)
        if path is None and call.fd not in self.open:
            return False
        if call.fd >= 0:
            return self._through(call)
        assert path is not None
        return self._by_name(call, path)

    def _open(self, call: trace.Call, path: PurePosixPath | None) -> bool:
        self.open.pop(call.fd, None)
        if path is None:
            return False
        node, changed = self._find(path), False
        if node is None:
            assert "O_CREAT" in call.flags, call
            node = File()
            self._parent(path).change((path.name, node))
            changed = True
        elif "O_TRUNC" in call.flags and isinstance(node, File) and node.live:
            node.change(0, None)
            changed = True
        self.open[call.fd] = (node, 0, "O_APPEND" in call.flags)
        return changed

    def _through(self, call: trace.Call) -> bool:
        if call.fd not in self.open:
            if call.name == "lseek":  # a directory's duplicate descriptor, being listed
                return False
            raise NotImplementedError(f"{call.name} on a descriptor that was not opened by name: {call.path}")
        node, offset, append = self.open[call.fd]
        if call.name in ("fsync", "fdatasync"):
            node.flush()
            return False
        assert isinstance(node, File), call
        data = call.data[:call.result]
        if call.name == "pwrite64":
            node.change(call.offset, data)
        elif call.name == "write":
            at = len(node.live) if append else offset
            node.change(at, data)
            self.open[call.fd] = (node, at + len(data), append)
        elif call.name == "ftruncate":
            node.change(call.offset, None)
        elif call.name == "fallocate":
            node.change(max(call.offset, len(node.live)), b"")
        elif call.name == "lseek":
            self.open[call.fd] = (node, call.result or 0, append)
            return False
        else:
            raise NotImplementedError(f"{call.name} on {call.path}")
        return True

    def _by_name(self, call: trace.Call, path: PurePosixPath) -> bool:
        parent = self._parent(path)
        if call.name in ("mkdir", "mkdirat"):
            parent.change((path.name, Directory()))
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            parent.change((path.name, None))
        elif call.name in ("rename", "renameat", "renameat2"):
            target = self._relative(call.target)
            if target is None or target.parent != path.parent:
                raise NotImplementedError(f"a rename across directories: {call.path} -> {call.target}")
            parent.change((path.name, None), (target.name, parent.live[path.name]))
        else:
            raise NotImplementedError(f"{call.name} on {call.path}")
        return True

    def image(self, luck: Luck) -> Image:
        """One disk that a power cut now could leave."""
        found: Image = {}

        def look(directory: Directory, prefix: str) -> None:
            for name, node in sorted(luck.entries(directory).items()):
                if isinstance(node, Directory):
                    found[prefix + name] = None
                    look(node, f"{prefix}{name}/")
                elif not name.endswith("-shm"):
                    found[prefix + name] = luck.content(node)

        look(self.root, "")
        return found


def _load(path: Path) -> Directory:
    directory = Directory()
    for entry in sorted(path.iterdir()):
        if entry.is_dir():
            directory.live[entry.name] = _load(entry)
        else:
            content = entry.read_bytes()
            directory.live[entry.name] = File(content, bytearray(content))
    directory.flush()
    return directory


@dataclass(frozen=True)
class Cut:
    """A disk after a power cut, and what the program had said by then.  ``after`` names the last call."""

    image: Image
    acked: tuple[dict[str, object], ...]
    after: str

    def write(self, place: Path) -> Path:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name, content in self.image.items():
            if content is None:
                (place / name).mkdir()
            else:
                (place / name).write_bytes(content)
        return place


def record(server: Server, seed: Path, home: Path, *, bug: str = "", lying: bool = False) -> list[trace.Call]:
    """Run the program on a copy of ``seed``; return what it did.  A ``lying`` disk flushes nothing and says it did."""
    copy(seed, home)
    log = home.with_name("trace")
    inject = ["-e", "inject=fsync,fdatasync:retval=0"] if lying else []
    ended = server.run(home, bug=bug, strace=[
        *trace.OPTIONS, "-o", str(log), "-e", f"trace={','.join(CALLS)}", *inject])
    assert ended.code == 0, ended
    return trace.read(log)


def cuts(calls: Sequence[trace.Call], home: Path, seed: Path, rounds: int, number: int = 8) -> Iterator[Cut]:
    """Distinct disks: at every call the four extremes (data and names, each lost or kept) and ``rounds`` at random."""
    disk, said, seen = Disk(home, seed), b"", set()
    chance = random.Random(number)
    lucks = [Luck(w, n, chance) for w in (0, 1) for n in (0, 1)] + [Luck(0.5, 0.5, chance)] * rounds
    for call in calls:
        if call.name == "write" and call.fd == 1 and call.worked:
            said += call.data
        elif not disk.apply(call):
            continue
        acked = tuple(acknowledged(said.decode()))
        for luck in lucks:
            image = disk.image(luck)
            digest = hashlib.blake2b(str(len(acked)).encode())
            for name, content in sorted(image.items()):
                digest.update(f"\0{name}\0{'/' if content is None else len(content)}\0".encode() + (content or b""))
            if digest.digest() not in seen:
                seen.add(digest.digest())
                yield Cut(image, acked, f"{call.name} {call.ordinal} {call.path.removeprefix(str(home))}")


@dataclass
class Report:
    """How many distinct disks were looked at, how many of them resumed, and what was wrong."""

    images: int = 0
    resumed: int = 0
    violations: list[str] = field(default_factory=list)


def judge(
    server: Server, found: Iterable[Cut], place: Path, expected: dict[str, object], resume_every: int = 0,
) -> Report:
    """Check every cut; resume each ``resume_every``-th of them and compare with an uninterrupted run."""
    report = Report()
    for cut in found:
        report.images += 1
        home = cut.write(place)
        wrong = checker.violations(home, cut.acked)
        if not wrong and resume_every and report.images % resume_every == 0:
            report.resumed += 1
            again = server.run(home)
            wrong = [f"the next resume ended with {again.code}: {again.stderr.strip()}"] if again.code else [
                *checker.violations(home, [*cut.acked, *again.acked])]
            if not wrong and checker.outcome(home) != expected:
                wrong = ["the next resume made something else than an uninterrupted run does"]
        report.violations += [f"power cut after {cut.after}: {why}" for why in wrong]
    return report
