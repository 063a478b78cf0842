"""Reading a growing log from where it was left: rotation, truncation, half lines, three encodings.

Nothing here remembers: a :class:`Mark` goes in, batches of lines with the next mark come out, and whoever stores the
mark stores in the same transaction what the lines meant.  So no line is lost and none counts twice, whatever dies.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

CHUNK = 1 << 20
LONGEST_LINE = 64 << 10
"""A line longer than this is delivered in pieces, so that a log without line ends can't fill the memory."""
HEAD = 256


@dataclass(frozen=True)
class Mark:
    """How far a file was read.

    Attributes:
        file: device and inode, so that a renamed file is known again.
        head: hash of its first bytes, and how many they were: a file that was emptied and filled anew, or an inode
            that was given to another file, has another head.
        offset: bytes read; always the start of a line.
        line: number of the line at ``offset``, from 1.
        encoding: what its first bytes said.
    """

    file: str
    head: str
    head_bytes: int
    offset: int = 0
    line: int = 1
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Line:
    """One line of a log, without its end."""

    number: int
    text: str


@dataclass(frozen=True)
class Batch:
    """Lines that belong together, and the mark that is true once they have been taken in."""

    path: Path
    lines: tuple[Line, ...]
    mark: Mark


def read(path: Path, mark: Mark | None, *, wanted: Callable[[bytes], bool] | None = None,
         final: bool = False) -> Iterator[Batch]:
    """Everything that was written since ``mark``, in batches of about a mebibyte.

    A file that was rotated away is finished first, from the sibling that has it now.  ``wanted`` may say of a whole
    chunk of bytes that no line in it matters: its lines are then counted, not delivered.  With ``final`` a last line
    without an end is delivered too; else it waits for its rest.

    Raises:
        OSError: the file can't be read (a missing one yields nothing).
    """
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        fresh = _identify(stream.fileno())
        if mark is not None and not _same(stream.fileno(), fresh, mark):
            if fresh.file != mark.file:
                for sibling in _siblings(path, mark):
                    yield from _rest(sibling, mark, path, wanted, True)
            mark = None
        if mark is None or os.fstat(stream.fileno()).st_size < mark.offset:
            mark = fresh
        elif mark.head_bytes < fresh.head_bytes:
            mark = replace(mark, head=fresh.head, head_bytes=fresh.head_bytes)
        stream.seek(mark.offset)
        yield from _lines(stream, mark, path, wanted, final)


def _rest(path: Path, mark: Mark, name: Path, wanted: Callable[[bytes], bool] | None, final: bool) -> Iterator[Batch]:
    with path.open("rb") as stream:
        stream.seek(mark.offset)
        yield from _lines(stream, mark, name, wanted, final)


def _lines(stream: object, mark: Mark, path: Path, wanted: Callable[[bytes], bool] | None,
           final: bool) -> Iterator[Batch]:
    read_bytes: Callable[[int], bytes] = stream.read  # type: ignore[attr-defined]
    end = {"utf-16-le": b"\n\0", "utf-16-be": b"\0\n"}.get(mark.encoding, b"\n")
    kept = b""
    while True:
        block = read_bytes(CHUNK)
        data = kept + block
        cut = _last_end(data, end) if block or not final else len(data)
        if cut == 0 and len(data) > LONGEST_LINE:
            cut = len(data) - len(data) % len(end)
        body, kept = data[:cut], data[cut:]
        if body:
            number = mark.line
            count = body.count(end) if len(end) == 1 else _count_wide(body, end)
            mark = replace(mark, offset=mark.offset + len(body), line=number + count)
            lines: tuple[Line, ...] = ()
            if wanted is None or wanted(body if len(end) == 1 else _decode(body, mark.encoding).encode()):
                lines = tuple(
                    Line(number + i, text.lstrip("\ufeff")) for i, text in enumerate(_texts(body, mark.encoding)))
            yield Batch(path, lines, mark)
        if not block:
            return


def _texts(body: bytes, encoding: str) -> list[str]:
    if encoding.startswith("utf-16"):
        return _decode(body, encoding).splitlines()
    return [_decode(line.rstrip(b"\r"), encoding) for line in body.removesuffix(b"\n").split(b"\n")]


def _decode(line: bytes, encoding: str) -> str:
    """UTF-8 where it is, else the code page of a Japanese Windows console, else with marks for what it can't be."""
    if encoding.startswith("utf-16"):
        return line.decode(encoding, "replace")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        try:
            return line.decode("cp932")
        except UnicodeDecodeError:
            return line.decode("utf-8", "replace")


def _last_end(data: bytes, end: bytes) -> int:
    at = data.rfind(end)
    while len(end) == 2 and at > 0 and at % 2:
        at = data.rfind(end, 0, at + 1)
    return at + len(end) if at >= 0 else 0


def _count_wide(body: bytes, end: bytes) -> int:
    return sum(body[i:i + 2] == end for i in range(0, len(body), 2))


def _identify(descriptor: int) -> Mark:
    status = os.fstat(descriptor)
    head = _head(descriptor, HEAD)
    encoding = "utf-8"
    if head.startswith(codecs.BOM_UTF16_LE):
        encoding = "utf-16-le"
    elif head.startswith(codecs.BOM_UTF16_BE):
        encoding = "utf-16-be"
    return Mark(f"{status.st_dev}:{status.st_ino}", _hash(head), len(head), 0, 1, encoding)


def _head(descriptor: int, size: int) -> bytes:
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, 0, os.SEEK_SET)
    head = os.read(descriptor, size)
    os.lseek(descriptor, position, os.SEEK_SET)
    return head


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _same(descriptor: int, fresh: Mark, mark: Mark) -> bool:
    return fresh.file == mark.file and _hash(_head(descriptor, mark.head_bytes)) == mark.head


def _siblings(path: Path, mark: Mark) -> list[Path]:
    """Where the file that ``mark`` speaks of went: ``name.1``, ``name.2026-11-22``, ``name.gz`` is not read."""
    found = []
    for candidate in path.parent.glob(f"{path.name}.*"):
        try:
            with candidate.open("rb") as stream:
                if _same(stream.fileno(), _identify(stream.fileno()), mark):
                    found.append(candidate)
        except OSError:
            continue
    return found[:1]
