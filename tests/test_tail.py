"""Reading logs: every line once and in order, whatever is done to the files and whoever dies."""

from __future__ import annotations

import logging.handlers
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from tailing import rotate, texts

from so8t_fsm import tail
from so8t_fsm.tail import Batch, Line, Logs, log_of


def numbered(logs: Logs, log: str = "a.log") -> list[tuple[int, str]]:
    found: list[Line] = []
    while (batch := logs.take(log)) is not None:
        found += batch.lines
    return [(line.number, line.text) for line in found]


def reopened(logs: Logs) -> Logs:
    """What another process would go on with."""
    return Logs(logs.directory, logs.marks.values())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "a.log"


# Lines --------------------------------------------------------------------------------------------------------------


def test_a_growing_log_is_read_on_from_where_it_was_left(log: Path) -> None:
    logs = Logs(log.parent)
    log.write_bytes(b"one\ntwo\n")
    assert numbered(logs) == [(1, "one"), (2, "two")] and numbered(logs) == []
    with log.open("ab") as out:
        out.write(b"three\n")
    assert numbered(reopened(logs)) == [(3, "three")]


def test_half_a_line_waits_for_its_rest(log: Path) -> None:
    logs = Logs(log.parent)
    log.write_bytes(b"whole\nCUDA out of")
    assert texts(logs) == ["whole"]
    with log.open("ab") as out:
        out.write(b" memory\n")
    assert texts(logs) == ["CUDA out of memory"]


def test_the_last_words_of_a_killed_program_are_not_waited_for_for_ever(log: Path) -> None:
    logs = Logs(log.parent)
    log.write_bytes(b"Killed")
    assert texts(logs, settled=60) == []
    os.utime(log, (time.time() - 61,) * 2)
    assert texts(logs, settled=60) == ["Killed"] and texts(logs, settled=60) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_and_line_ends(log: Path, encoding: str, end: str) -> None:
    said = ["エラー: メモリが不足しています", "表示 ソ 能 ABC", "", "plain 123", "上"]
    log.write_bytes("".join(line + end for line in said).encode(encoding))
    logs = Logs(log.parent)
    assert numbered(logs) == list(enumerate(said, 1))
    with log.open("ab") as out:
        out.write(("続き" + end).encode(encoding.removesuffix("-sig") if encoding != "utf-16" else "utf-16-le"))
    assert numbered(reopened(logs)) == [(6, "続き")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "cp932"])
def test_a_byte_at_a_time(log: Path, encoding: str) -> None:
    said = ["first 1 2 3 4", "ĊĊ ਊ 二番目" if encoding != "cp932" else "二番目", "last"]
    logs, found = Logs(log.parent), []
    with log.open("ab", buffering=0) as out:
        for byte in "".join(line + "\n" for line in said).encode(encoding):
            out.write(bytes([byte]))
            found += texts(logs)
    assert found == said


def test_two_encodings_in_one_file(log: Path) -> None:
    log.write_bytes("UTF-8 の行\n".encode() + "CP932 の行\n".encode("cp932") + b"neither \x81\n")
    assert texts(Logs(log.parent)) == ["UTF-8 の行", "CP932 の行", "neither �"]


def test_zeros_of_a_power_cut_are_left_out(log: Path) -> None:
    log.write_bytes(b"before\n" + b"\0" * 5000 + b"after\n")
    assert texts(Logs(log.parent)) == ["before", "after"]
    log.with_name("b.log").write_bytes(b"\0" * 5000 + b"after\n")
    assert texts(Logs(log.parent), "b.log") == ["after"]


def test_a_line_without_an_end_is_bounded(log: Path) -> None:
    long = "あ" * 2_000_000
    log.write_bytes(f"one\n{long}".encode())
    logs = Logs(log.parent)
    found: list[Line] = []
    while (batch := logs.take("a.log")) is not None:
        assert batch.size <= tail.CHUNK
        found += batch.lines
    assert found[0] == Line(1, "one") and {line.number for line in found[1:]} == {2}
    assert max(len(line.text) for line in found) <= tail.LONGEST_LINE
    with log.open("ab") as out:
        out.write(b" end\nnext\n")
    rest = numbered(logs)
    assert "".join(line.text for line in found[1:]) + "".join(text for n, text in rest if n == 2) == long + " end"
    assert rest[-1] == (3, "next")


# Rotation -----------------------------------------------------------------------------------------------------------


def test_several_rotations_between_two_looks(log: Path) -> None:
    logs = Logs(log.parent)
    log.write_bytes(b"1\n2\n")
    assert texts(logs) == ["1", "2"]
    with log.open("ab") as out:
        out.write(b"3\n")
    for said in (b"4\n", b"5\nhalf", b"6\n"):
        rotate(log)
        log.write_bytes(said)
    assert texts(reopened(logs)) == ["3", "4", "5", "half", "6"]


def test_a_generation_that_was_deleted_takes_only_its_own_lines_with_it(log: Path) -> None:
    logs = Logs(log.parent)
    for n in range(5):
        log.write_bytes(b"%d\n" % n)
        if n < 2:
            assert texts(logs) == [str(n)]
        rotate(log, keep=2)
    assert texts(reopened(logs)) == ["3", "4"]
    assert texts(reopened(logs)) == ["3", "4"] and texts(logs) == ["3", "4"] and texts(logs) == []
    assert len(logs.marks) == 2, "what is gone is forgotten"


def test_numbers_are_numbers_and_dates_are_dates(log: Path) -> None:
    for name, said in (("a.log.10", b"1\n"), ("a.log.9", b"2\n"), ("a.log.1", b"3\n"), ("a.log", b"4\n"),
                       ("ab.log", b"x\n"), ("a.log.2.gz", b"\x1f\x8b")):
        log.with_name(name).write_bytes(said)
    assert texts(Logs(log.parent)) == ["1", "2", "3", "4"]
    for name, said in (("d.log.2026-11-21", b"1\n"), ("d.log.2026-11-22", b"2\n"), ("d.log", b"3\n")):
        log.with_name(name).write_bytes(said)
    logs = Logs(log.parent)
    assert texts(logs, "d.log") == ["1", "2", "3"]
    assert set(logs.names()) == {"a.log", "ab.log", "d.log"}


@pytest.mark.parametrize(("name", "log"), [
    ("a.log", "a.log"), ("a.log.1", "a.log"), ("a.log.2026-11-22", "a.log"), ("a.log-20261122", "a.log"),
    ("a.log.2026-11-22_10-00-00", "a.log"), ("a.2026-11-22_10-00-00_123456.log", "a.log"), ("a.log.1.gz", None),
    ("complete_pipeline_20261122-101112-ab12.log", "complete_pipeline_20261122-101112-ab12.log"), ("a.log.swp", None),
    ("run.20261122-101112.log", "run.20261122-101112.log"), ("a.txt", None), ("log", None), ("a\nb.log", "a\nb.log"),
])
def test_which_files_belong_to_which_log(name: str, log: str | None) -> None:
    assert log_of(name) == log


def test_pythons_own_handler_loses_nothing_while_it_rotates(log: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(log, maxBytes=2000, backupCount=900, encoding="utf-8")
    written = threading.Event()

    def write() -> None:
        for n in range(4000):
            handler.handle(logging.makeLogRecord({"msg": f"line {n}"}))
        written.set()

    threading.Thread(target=write).start()
    logs, found = Logs(log.parent), []
    while not written.is_set():
        found += texts(logs)
        logs = reopened(logs)
    found += texts(logs)
    handler.close()
    assert found == [f"line {n}" for n in range(4000)]


def test_a_file_moved_to_any_other_name_is_known_again(log: Path) -> None:
    logs = Logs(log.parent)
    log.write_bytes(b"1\n")
    assert texts(logs) == ["1"]
    log.rename(log.with_name("kept.log"))
    log.write_bytes(b"2\n")
    logs = reopened(logs)
    assert texts(logs) == ["2"] and texts(logs, "kept.log") == []


def test_what_is_written_after_the_rename_is_read_too(log: Path) -> None:
    logs = Logs(log.parent)
    with log.open("ab", buffering=0) as out:
        out.write(b"1\n")
        assert texts(logs) == ["1"]
        rotate(log)
        log.write_bytes(b"2\n")
        assert texts(logs) == ["2"]
        out.write(b"late\n")  # logrotate: the old file is written until the program is told
    assert texts(logs) == ["late"]


# Truncation ---------------------------------------------------------------------------------------------------------


def test_an_emptied_log_begins_anew(log: Path) -> None:
    logs = Logs(log.parent)
    log.write_bytes(b"1\n2\n")
    assert texts(logs) == ["1", "2"]
    log.write_bytes(b"3\n")
    assert numbered(reopened(logs)) == [(1, "3")]
    log.write_bytes(b"4\nlonger than before\n")
    assert numbered(reopened(logs)) == numbered(logs) == [(1, "4"), (2, "longer than before")]


def test_copied_and_emptied(log: Path) -> None:
    logs = Logs(log.parent)
    log.write_bytes(b"1\n2\n")
    assert texts(logs) == ["1", "2"]
    with log.open("ab") as out:
        out.write(b"3\n")
    copy = log.with_name("a.log.1")
    copy.write_bytes(log.read_bytes()[:3])
    assert texts(logs) == ["3"], "a copy in the making is not read"
    with log.open("ab") as out:
        out.write(b"4\n")
    copy.write_bytes(log.read_bytes())
    assert texts(reopened(logs)) == ["4"] and texts(logs) == ["4"]
    with log.open("ab") as out:
        out.write(b"5\n")
    copy.write_bytes(log.read_bytes())
    os.truncate(log, 0)
    logs = reopened(logs)
    assert texts(logs) == ["5"], "the rest is in the copy only"
    log.write_bytes(b"6\n")
    assert texts(reopened(logs)) == ["6"]


def test_the_end_that_a_power_cut_took_was_read_already(log: Path) -> None:
    lines = [f"line {n}" for n in range(100)]
    log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    logs = Logs(log.parent)
    assert texts(logs) == lines
    os.truncate(log, len("".join(f"{line}\n" for line in lines[:60])))
    after = Logs(log.parent, logs.marks.values(), booted=time.time() + 1)
    assert texts(after) == []
    with log.open("ab") as out:
        out.write(b"new\n")
    assert numbered(after) == [(61, "new")]
    # Without a reboot in between, the file was written anew.
    os.truncate(log, len("".join(f"{line}\n" for line in lines[:60])))
    assert texts(logs)[:2] == lines[:2]


def test_an_inode_given_to_another_file_is_another_file(log: Path) -> None:
    logs = Logs(log.parent)
    log.write_bytes(b"old 1\nold 2\n")
    assert len(texts(logs)) == 2
    (mark,) = logs.marks.values()
    other = log.with_name("b.log")
    other.write_bytes(b"new 1\nnew 2\nnew 3\n")
    log.unlink()
    stolen = Logs(log.parent, [replace(mark, file=str(other.stat().st_ino))])
    assert numbered(stolen, "b.log") == [(1, "new 1"), (2, "new 2"), (3, "new 3")]


def test_on_a_drive_without_inodes_the_contents_tell(log: Path) -> None:
    logs = Logs(log.parent, inodes=False)
    log.with_name("a.log.1").write_bytes(b"1\n")
    log.write_bytes(b"2\n")
    assert texts(logs) == ["1", "2"]
    with log.open("ab") as out:
        out.write(b"3\n")
    remounted = Logs(log.parent, [replace(mark, file=f"x{mark.file}") for mark in logs.marks.values()], inodes=False)
    assert texts(remounted) == ["3"] and texts(remounted) == []
    assert len(remounted.marks) == 2


# What can't be read -------------------------------------------------------------------------------------------------


def test_a_forbidden_file_stops_no_other(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write_bytes(b"1\n")
    log.with_name("a.log.1").write_bytes(b"0\n")
    real: Callable[[Path], BinaryIO] = tail.open_shared

    def forbid(path: Path) -> BinaryIO:
        if path.name == "a.log.1":
            raise PermissionError(13, "Permission denied")
        return real(path)

    logs = Logs(log.parent)
    with monkeypatch.context() as patched:
        patched.setattr(tail, "open_shared", forbid)
        assert texts(logs) == ["1"] and logs.problems == {"a.log.1": "Permission denied"}
    assert texts(logs) == ["0"] and logs.problems == {}


def test_no_file_and_no_directory(tmp_path: Path) -> None:
    assert Logs(tmp_path).take("a.log") is None and Logs(tmp_path).names() == []
    with pytest.raises(FileNotFoundError):
        Logs(tmp_path / "gone").take("a.log")


@pytest.mark.skipif(os.name == "nt", reason="no pipes in directories there")
def test_pipes_and_directories_are_no_logs_and_links_are_read_once(log: Path) -> None:
    log.write_bytes(b"1\n")
    os.mkfifo(log.with_name("pipe.log"))
    log.with_name("dir.log").mkdir()
    log.with_name("latest.log").symlink_to(log)
    logs = Logs(log.parent)
    assert sum((texts(logs, name) for name in logs.names()), []) == ["1"]


def with_memory(body: bytes) -> list[tuple[int, int]]:
    """Where the lines with the word in them begin and end."""
    return [(body.rfind(b"\n", 0, match.start()) + 1, body.index(b"\n", match.start()))
            for match in re.finditer(b"memory", body)]


def test_the_filter_saves_the_rest_and_counts_its_lines(log: Path) -> None:
    line = "2026-11-22 10:00:00 step 12345 loss 0.12345 lr 1e-5 日本語 4321\n".encode()
    count = (8 << 20) // len(line)
    log.write_bytes(line * count + b"CUDA out of memory\n" + line * count + b"out of memory again\n")
    logs = Logs(log.parent, wanted=with_memory)
    batches: list[Batch] = []
    started = time.perf_counter()
    while (batch := logs.take("a.log")) is not None:
        batches.append(batch)
    seconds = time.perf_counter() - started
    assert max(batch.size for batch in batches) <= tail.CHUNK and len(batches) >= 16, "others have their turn"
    assert [each for batch in batches for each in batch.lines] == [
        Line(count + 1, "CUDA out of memory"), Line(2 * count + 2, "out of memory again")]
    assert 16 / seconds > 20, f"{16 / seconds:.0f} MiB/s"


def test_the_filter_sees_wide_text_as_utf_8(log: Path) -> None:
    log.write_bytes("一\n二 out of memory\n三\n".encode("utf-16"))
    logs = Logs(log.parent, wanted=with_memory)
    assert numbered(logs) == [(2, "二 out of memory")]
