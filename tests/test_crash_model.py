"""The power-cut model itself, on calls written by hand: it must forget what was not flushed, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from crash.powercut import Disk, Image, Luck
from crash.trace import Call, read


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "seed").mkdir()
    return Disk(Path("/home"), tmp_path / "seed")


def _left(disk: Disk, *, writes: float, names: float) -> Image:
    return disk.image(Luck(writes, names, random.Random(1)))


def _write(disk: Disk, name: str, data: bytes) -> None:
    disk.apply(Call("openat", 1, 3, fd=3, path=f"/home/{name}", flags="O_RDWR|O_CREAT"))
    disk.apply(Call("write", 1, len(data), fd=3, path=f"/home/{name}", data=data))


def _flush_home(disk: Disk) -> None:
    disk.apply(Call("openat", 1, 4, fd=4, path="/home", flags="O_RDONLY|O_DIRECTORY"))
    disk.apply(Call("fsync", 1, 0, fd=4, path="/home"))


def test_nothing_is_kept_that_was_not_flushed(disk: Disk) -> None:
    _write(disk, "a", b"one")
    assert _left(disk, writes=0, names=0) == {}
    assert _left(disk, writes=0, names=1) == {"a": b""}
    assert _left(disk, writes=1, names=1) == {"a": b"one"}


def test_a_flushed_file_may_lose_its_name_and_a_flushed_name_its_file(disk: Disk) -> None:
    _write(disk, "a", b"one")
    disk.apply(Call("fsync", 1, 0, fd=3, path="/home/a"))
    assert _left(disk, writes=0, names=0) == {}
    _flush_home(disk)
    assert _left(disk, writes=0, names=0) == {"a": b"one"}
    disk.apply(Call("pwrite64", 1, 3, fd=3, path="/home/a", data=b"two", offset=0))
    assert _left(disk, writes=0, names=0) == {"a": b"one"}
    assert _left(disk, writes=1, names=0) == {"a": b"two"}


def test_a_rename_is_one_step_and_a_flush_that_strace_made_up_is_none(disk: Disk) -> None:
    _write(disk, "a", b"one")
    disk.apply(Call("fsync", 1, 0, fd=3, path="/home/a", pretended=True))
    assert _left(disk, writes=0, names=1) == {"a": b""}
    disk.apply(Call("fsync", 2, 0, fd=3, path="/home/a"))
    _flush_home(disk)
    disk.apply(Call("rename", 1, 0, path="/home/a", target="/home/b"))
    assert _left(disk, writes=1, names=0) == {"a": b"one"}
    assert _left(disk, writes=1, names=1) == {"b": b"one"}


def test_a_torn_write_ends_at_a_sector(disk: Disk) -> None:
    _write(disk, "a", b"x" * 4096)
    sizes = {len(disk.image(Luck(0.5, 1, random.Random(number)))["a"] or b"") for number in range(200)}
    assert {0, 4096} < sizes and all(size % 512 == 0 for size in sizes)


def test_a_directory_whose_name_was_not_flushed_takes_its_files_along(disk: Disk) -> None:
    disk.apply(Call("mkdir", 1, 0, path="/home/d"))
    _write(disk, "d/a", b"one")
    disk.apply(Call("fsync", 1, 0, fd=3, path="/home/d/a"))
    disk.apply(Call("openat", 1, 5, fd=5, path="/home/d", flags="O_RDONLY|O_DIRECTORY"))
    disk.apply(Call("fsync", 2, 0, fd=5, path="/home/d"))
    assert _left(disk, writes=1, names=0) == {}
    _flush_home(disk)
    assert _left(disk, writes=0, names=0) == {"d": None, "d/a": b"one"}


def test_what_the_model_does_not_know_is_refused(disk: Disk) -> None:
    _write(disk, "a", b"one")
    disk.apply(Call("mkdir", 1, 0, path="/home/d"))
    with pytest.raises(NotImplementedError, match="across directories"):
        disk.apply(Call("rename", 1, 0, path="/home/a", target="/home/d/a"))
    with pytest.raises(NotImplementedError, match="link"):
        disk.apply(Call("link", 1, 0, path="/home/a"))


def test_the_trace_is_read_to_the_byte(tmp_path: Path) -> None:
    def hexed(text: str) -> str:
        return "".join(f"\\x{byte:02x}" for byte in text.encode())

    log = tmp_path / "trace"
    log.write_text("\n".join([
        f'openat(AT_FDCWD<{hexed("/w")}>, "{hexed("sub/ü")}", O_RDWR|O_CREAT, 0644) = 3<{hexed("/w/sub/ü")}>',
        f'pwrite64(3<{hexed("/w/sub/ü")}>, "{hexed("a, b)")}", 5, 40) = 5',
        f'fsync(3<{hexed("/w/sub/ü")}>) = 0 (INJECTED)',
        f'rename("{hexed("x")}", "{hexed("/y")}") = -1 ENOENT (No such file or directory)',
        "+++ killed by SIGKILL +++",
    ]))
    opened, wrote, flushed, renamed = read(log, cwd=Path("/w"))
    assert (opened.fd, opened.path, opened.flags) == (3, "/w/sub/ü", "O_RDWR|O_CREAT")
    assert (wrote.data, wrote.offset, wrote.worked) == (b"a, b)", 40, True)
    assert flushed.pretended and not flushed.worked
    assert (renamed.path, renamed.target, renamed.worked) == ("/w/x", "/y", False)
