"""Reading growing logs from where they were left: rotation, truncation, half lines, three encodings, a crash.

A file is known by its inode and by what was already read of it, never by its name alone: renaming ``a.log`` to
``a.log.1`` moves nothing and loses nothing, however many rotations lie between two looks.  :class:`Logs` decides
nothing and stores nothing: it hands out a :class:`Batch` of lines, and whoever stores what the lines mean stores
:attr:`Logs.marks` in the same transaction.  So no line is lost and none counts twice, whatever dies.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from so8t_fsm.encodings import decode, guess_encoding, line_end, whole_characters
from so8t_fsm.host_shared import open_shared

CHUNK = 256 << 10
"""Bytes of one batch: what one log may take before the next one has its turn.  Longer than any piece of a line."""
LONGEST_LINE = 64 << 10
"""A longer line is delivered in pieces, so that a log without line ends can't fill the memory."""
EDGE = 256
"""Bytes at both ends of what was read, by which a file is known again."""
HASH = 24
RELISTS = 20
"""Listings of a directory that were overtaken by a rotation before one is taken as it is."""

OWN_LOG = re.compile(r"complete_pipeline_(.+)\.log")
"""The log of a run, which the machine itself writes."""
GENERATION = re.compile(
    r"(?P<log>.+?)"
    r"(?:\.(?P<number>\d{1,4})|[.-](?P<date>\d{4}-?\d\d-?\d\d(?:[T_-]?\d\d[-:]?\d\d(?:[-:]?\d\d)?)?))?", re.S)
LOGURU = re.compile(r"(?P<stem>.+)\.(?P<date>\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d{6})(?P<suffix>\.\w+)", re.S)


@dataclass(frozen=True)
class Mark:
    """How far a file was read.

    Attributes:
        name: what the file was last called.
        file: its inode; a device's number may change with every boot, so it is no part of it.
        edges: hashes of the first and of the last :data:`EDGE` bytes before ``offset``.
        offset: bytes read.
        line: number of the line at ``offset``, from 1.
        at: when; seconds since the epoch.
    """

    name: str
    file: str
    edges: str = ""
    offset: int = 0
    line: int = 1
    encoding: str = "utf-8"
    at: float = 0.0


@dataclass(frozen=True)
class Line:
    """One line of a log, or a piece of a very long one, without its end."""

    number: int
    text: str


@dataclass(frozen=True)
class Batch:
    """What was read of one file.  ``log`` is the name the file had before it was rotated."""

    path: Path
    log: str
    lines: tuple[Line, ...]
    size: int


@dataclass(frozen=True)
class _Found:
    """A file as the directory listed it."""

    path: Path
    file: str
    size: int
    changed: float


def _age(found: _Found) -> tuple[int, str, int]:
    return _generation(found.path.name)[1]


def log_of(name: str, patterns: Sequence[str] = ("*.log",)) -> str | None:
    """The log that a file is a generation of: ``a.log`` for ``a.log.3`` or ``a.log-20261122``; None: no log of ours."""
    log = _generation(name)[0]
    for candidate in (log, name):
        if any(fnmatch.fnmatch(candidate, pattern) for pattern in patterns):
            return candidate
    return None


def _generation(name: str) -> tuple[str, tuple[int, str, int]]:
    """A file's log, and its age: sorted by it, the oldest generation comes first and the present one last."""
    loguru = LOGURU.fullmatch(name)
    if loguru is not None:
        return loguru["stem"] + loguru["suffix"], (0, loguru["date"], 0)
    match = GENERATION.fullmatch(name)
    if match is None or (match["number"] is None and match["date"] is None):
        return name, (2, "", 0)
    return match["log"], (0, match["date"], 0) if match["date"] else (1, "", -int(match["number"]))


class Logs:
    """All logs of one directory, each read on from its mark.

    Attributes:
        marks: how far every file was read, by inode.  Store it with what the lines meant; after a crash, or when
            storing failed, go on with what was stored.
        problems: why a file can't be read now, by name.
    """

    def __init__(
        self, directory: Path, marks: Iterable[Mark] = (), *, patterns: Sequence[str] = ("*.log",),
        wanted: Callable[[bytes], Iterable[tuple[int, int]]] | None = None, booted: float = 0.0, inodes: bool = True,
    ) -> None:
        """
        Args:
            wanted: where in a block of bytes (UTF-8 or cp932) lines begin and end that may matter; the others are only
                counted.  Without it all do.
            booted: when this computer started.  A file that is shorter than it was before that lost its end in the
                power cut; it did not begin anew.
            inodes: whether an inode stays with its file; not so on some network drives, where only the contents tell.
        """
        self.directory = directory
        self.marks = {mark.file: mark for mark in marks}
        self.problems: dict[str, str] = {}
        self.wanted = wanted
        self._patterns = tuple(patterns)
        self._booted = booted
        self._inodes = inodes

    def names(self) -> list[str]:
        """Every log there is now, the one that was written last at the end.

        Raises:
            OSError: the directory can't be read.
        """
        latest: dict[str, float] = {}
        for found in self._list():
            log = log_of(found.path.name, self._patterns)
            if log is not None:
                latest[log] = max(latest.get(log, 0.0), found.changed)
        return sorted(latest, key=lambda log: (latest[log], log))

    def take(self, log: str, settled: float = float("inf")) -> Batch | None:
        """The next lines of a log, from the oldest generation that has unread ones; None when all is read.

        A last line without an end waits for its rest, unless its writer has moved on to a new file or has written
        nothing for ``settled`` seconds.

        Raises:
            OSError: the directory can't be read.
        """
        for left in reversed(range(RELISTS)):
            try:
                listed = self._list(strict=left > 0)
                generations = sorted((found for found in listed if self._log(found.path.name) == log), key=_age)
                for i, found in enumerate(generations):
                    batch = self._attempt(found, log, generations[i + 1:], settled)
                    if batch is not None:
                        return batch
            except _Renamed:
                continue  # the directory changed under our eyes: an older generation may have unread lines now
            if generations and left:  # a listing that was overtaken knows nothing of who is gone
                self._forget(log, {found.file for found in listed})
            return None
        return None

    def _log(self, name: str) -> str | None:
        return log_of(name, self._patterns)

    def _list(self, strict: bool = False) -> list[_Found]:
        """The directory's files.  When ``strict``, a listing during which one was renamed is none."""
        found: dict[str, _Found] = {}
        with os.scandir(self.directory) as entries:
            for entry in entries:
                link = entry.is_symlink()
                try:
                    status = os.stat(entry.path)  # on Windows an entry's own status lacks the inode
                except OSError:
                    if strict and not link:
                        raise _Renamed from None
                    continue
                if strict and not link and entry.inode() != status.st_ino:
                    raise _Renamed
                file = str(status.st_ino)
                if stat.S_ISREG(status.st_mode) and not (link and file in found):
                    found[file] = _Found(Path(entry.path), file, status.st_size, status.st_mtime)
        return list(found.values())

    def _forget(self, log: str, here: set[str]) -> None:
        for file, mark in list(self.marks.items()):
            if file not in here and self._log(mark.name) == log:
                del self.marks[file]

    def _attempt(self, found: _Found, log: str, newer: list[_Found], settled: float) -> Batch | None:
        final = any(each.size for each in newer) or time.time() - found.changed > settled
        try:
            batch = self._read(found, log, newer, final)
        except FileNotFoundError:
            raise _Renamed from None
        except OSError as error:
            self.problems[found.path.name] = error.strerror or type(error).__name__
            return None
        self.problems.pop(found.path.name, None)
        return batch

    def _read(self, found: _Found, log: str, newer: list[_Found], final: bool) -> Batch | None:
        with open_shared(found.path) as stream:
            mark = self._resolve(stream, found, _size(stream, found), log, newer)
            if mark is None:
                return None
            stream.seek(mark.offset)
            data = stream.read(CHUNK)
            end = line_end(mark.encoding)
            body = data[:_cut(data, end, mark.encoding, final and len(data) < CHUNK)]
            offset = mark.offset + len(body)
            if offset or found.file in self.marks:
                self.marks[found.file] = replace(
                    mark, name=found.path.name, edges=_edges(stream, offset), offset=offset,
                    line=mark.line + _count(body, end), at=time.time() if body else mark.at)
            return Batch(found.path, log, self._lines(body, mark), len(body)) if body else None

    def _resolve(self, stream: BinaryIO, found: _Found, size: int, log: str, newer: list[_Found]) -> Mark | None:
        """The mark to read a file on from; None for a copy of what is read elsewhere."""
        own = self.marks.get(found.file)
        if own is not None and own.offset:
            if _fits(stream, size, own):
                return own
            left = min(size, own.offset)
            if own.at < self._booted and left >= EDGE and _edges(stream, left)[:HASH] == own.edges[:HASH]:
                return replace(own, offset=left, edges=_edges(stream, left), line=1 + _lines_before(stream, left, own))
        if size:
            for other in newer:
                # The writer's log is copied and then emptied in place.  Until it is emptied, the copy is not ours to
                # read; from then on it goes on where the original was left.
                mark = self.marks.get(other.file)
                if mark is not None and mark.offset:
                    with open_shared(other.path) as original:
                        length = _size(original, other)
                        if size <= length and _edges(stream, size) == _edges(original, size):
                            return None
                        if not _fits(original, length, mark) and _fits(stream, size, mark):
                            return replace(mark, file=found.file)
        if not self._inodes:
            alike = [m for m in self.marks.values() if m.offset and self._log(m.name) == log and _fits(stream, size, m)]
            if alike:
                return replace(max(alike, key=lambda m: m.offset), file=found.file)
        stream.seek(0)
        return Mark(found.path.name, found.file, _edges(stream, 0), encoding=guess_encoding(stream.read(EDGE)))

    def _lines(self, body: bytes, mark: Mark) -> tuple[Line, ...]:
        encoding = mark.encoding
        if encoding.startswith("utf-16"):
            body, encoding = decode(body, encoding).encode(), "utf-8"
        found = []
        number, counted = mark.line, 0
        for begin, end in (_all_lines if self.wanted is None else self.wanted)(body):
            number += body.count(b"\n", counted, begin)
            counted = begin
            text = decode(body[begin:end], encoding).removeprefix("\ufeff").rstrip("\r")
            found += [Line(number, piece) for piece in _pieces(text)]
        return tuple(found)


def _all_lines(body: bytes) -> Iterator[tuple[int, int]]:
    begin = 0
    while begin < len(body):
        end = body.find(b"\n", begin)
        end = len(body) if end < 0 else end
        yield begin, end
        begin = end + 1


class _Renamed(Exception):
    """Between listing and opening, the name went to another file."""


def _size(stream: BinaryIO, found: _Found) -> int:
    status = os.fstat(stream.fileno())
    if str(status.st_ino) != found.file:
        raise _Renamed
    return status.st_size


def _pieces(text: str) -> list[str]:
    if "\0" in text:  # where a power cut hit, some file systems leave a hole
        text = text.replace("\0", "")
    if len(text) <= LONGEST_LINE:
        return [text]
    return [text[at:at + LONGEST_LINE] for at in range(0, len(text), LONGEST_LINE)]


def _cut(data: bytes, end: bytes, encoding: str, final: bool) -> int:
    """How many bytes of ``data`` can be delivered: up to the last line end, or all where no more is to come."""
    if final:
        return len(data)
    at = data.rfind(end)
    while at % len(end) and at > 0:
        at = data.rfind(end, 0, at + len(end) - 1)
    if at >= 0 and at % len(end) == 0:
        return at + len(end)
    return whole_characters(data, encoding) if len(data) > LONGEST_LINE else 0


def _count(body: bytes, end: bytes) -> int:
    if len(end) == 1:
        return body.count(end)
    return sum(match.start() % 2 == 0 for match in re.finditer(re.escape(end), body))


def _fits(stream: BinaryIO, size: int, mark: Mark) -> bool:
    """Does the file still begin with what was read of it?"""
    return size >= mark.offset and _edges(stream, mark.offset) == mark.edges


def _edges(stream: BinaryIO, offset: int) -> str:
    stream.seek(0)
    head = stream.read(min(EDGE, offset))
    stream.seek(max(0, offset - EDGE))
    tail = stream.read(min(EDGE, offset))
    return "-".join(hashlib.sha256(part).hexdigest()[:HASH] for part in (head, tail))


def _lines_before(stream: BinaryIO, size: int, mark: Mark) -> int:
    stream.seek(0)
    count, left = 0, size
    while left > 0 and (block := stream.read(min(CHUNK, left))):
        count += _count(block, line_end(mark.encoding))
        left -= len(block)
    return count
