"""Reads what ``strace -y -xx`` wrote: one :class:`Call` a line, with real bytes and absolute paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

OPTIONS = ("-y", "-xx", "-s", "4000000")
"""With which strace must be called: descriptors with their paths, all strings in hex and whole."""

_LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+|\?)(?:<([^>]*)>)?(.*)$", re.DOTALL)
_DESCRIPTOR = re.compile(r"(AT_FDCWD|\d+)<([^>]*)>(?:\(deleted\))?$")


@dataclass(frozen=True)
class Call:
    """One system call.

    Attributes:
        name: as the kernel calls it.
        ordinal: the how-manieth of this name, from 1, whatever it did: strace's ``when=``.
        result: what it returned; None when it never did.
        fd: the descriptor it was given, or -1.
        path: the file it speaks of, absolute; for a rename, where from.
        target: for a rename, where to.
        data: the bytes written.
        offset: for ``pwrite64``, where to; for ``ftruncate``, the new size; for ``fallocate``, the size it sees to.
        flags: of ``openat`` and ``unlinkat``.
        pretended: strace made the result up, and the call did not happen.
    """

    name: str
    ordinal: int
    result: int | None
    fd: int = -1
    path: str = ""
    target: str = ""
    data: bytes = b""
    offset: int = 0
    flags: str = ""
    pretended: bool = False

    @property
    def worked(self) -> bool:
        return self.result is not None and self.result >= 0 and not self.pretended


def _plain(text: str) -> bytes:
    """``\\x41\\x42``, with or without quotes, as bytes."""
    return bytes.fromhex(text.strip('"').replace("\\x", ""))


def _descriptor(text: str) -> tuple[int, str]:
    found = _DESCRIPTOR.match(text)
    if found is None:
        return (int(text), "") if text.isdigit() else (-1, "")
    number = -1 if found[1] == "AT_FDCWD" else int(found[1])
    return number, os.fsdecode(_plain(found[2])).removesuffix(" (deleted)")


def _join(directory: str, name: str) -> str:
    return os.path.normpath(os.path.join(_descriptor(directory)[1], os.fsdecode(_plain(name))))


def read(path: Path, cwd: Path = Path("/")) -> list[Call]:
    """Every finished call of a trace, in order.

    Raises:
        ValueError: a string was cut short, or a line is not understood.
    """
    return list(_calls(path.read_text("ascii").splitlines(), str(cwd)))


def _calls(lines: Iterable[str], cwd: str) -> Iterator[Call]:
    counts: dict[str, int] = {}
    for line in lines:
        if line.startswith(("---", "+++", "strace:")) or "resumed>" in line:
            continue
        found = _LINE.match(line)
        if found is None:
            name = line.split("(")[0]
            if not line.endswith("<unfinished ...>") and " = ?" not in line:
                raise ValueError(f"not understood: {line[:200]}")
            counts[name] = counts.get(name, 0) + 1
            continue
        name, inner, result, result_path, rest = found.groups()
        if '"...' in inner:
            raise ValueError(f"cut short: {line[:200]}")
        counts[name] = counts.get(name, 0) + 1
        arguments = inner.split(", ")
        yield _call(name, counts[name], None if result == "?" else int(result), arguments, result_path,
                    "(INJECTED)" in rest, cwd)


def _call(
    name: str, ordinal: int, result: int | None, arguments: list[str], result_path: str | None, pretended: bool,
    cwd: str,
) -> Call:
    def call(**known: object) -> Call:
        return Call(name, ordinal, result, pretended=pretended, **known)  # type: ignore[arg-type]

    def path(text: str) -> str:
        return os.path.normpath(os.path.join(cwd, os.fsdecode(_plain(text))))

    match name:
        case "openat":
            opened = _descriptor(f"{result}<{result_path}>")[1] if result_path else _join(arguments[0], arguments[1])
            return call(fd=result if result is not None else -1, path=opened, flags=arguments[2])
        case "write" | "pwrite64":
            fd, file = _descriptor(arguments[0])
            offset = int(arguments[3]) if name == "pwrite64" else 0
            return call(fd=fd, path=file, data=_plain(arguments[1]), offset=offset)
        case "ftruncate":
            fd, file = _descriptor(arguments[0])
            return call(fd=fd, path=file, offset=int(arguments[1]))
        case "fallocate":
            fd, file = _descriptor(arguments[0])
            if arguments[1] != "0":
                raise ValueError(f"a fallocate that does more than to make a file longer: {arguments}")
            return call(fd=fd, path=file, offset=int(arguments[2]) + int(arguments[3]))
        case "rename":
            return call(path=path(arguments[0]), target=path(arguments[1]))
        case "renameat" | "renameat2":
            return call(path=_join(*arguments[:2]), target=_join(*arguments[2:4]))
        case "unlink" | "rmdir" | "mkdir" | "truncate" | "creat":
            return call(path=path(arguments[0]))
        case "unlinkat" | "mkdirat":
            return call(path=_join(*arguments[:2]), flags=arguments[2])
    fd, file = _descriptor(arguments[0])
    return call(fd=fd, path=file)
