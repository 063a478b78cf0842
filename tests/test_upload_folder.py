"""A folder as the hub: whole or as before, wherever the process ends, and never at the cost of somebody's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from so8t_fsm import artifacts
from so8t_fsm.step import StepFailure
from so8t_ops.hub import folder
from so8t_ops.hub.payload import content_id, measure


def payload(directory: Path, **content: bytes) -> list[Any]:
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (directory / name).write_bytes(data)
    return measure({name: directory / name for name in content})


class Killed(BaseException):
    """Stands for a process that ends between two instructions."""


def test_killed_at_any_block_the_folder_is_whole_or_as_before(tmp_path: Path) -> None:
    old = payload(tmp_path / "v1", a=b"1" * 10, gone=b"2")
    new = payload(tmp_path / "v2", a=b"3" * 10, b=b"4" * (artifacts.CHUNK + 5), c=b"5")
    kills = 0
    for fatal in range(1, 10):
        target = tmp_path / f"hub{fatal}" / "repo"
        folder.deliver(old, target)
        blocks = iter(range(1, 100))

        def tick(_: int, blocks: Iterator[int] = blocks, fatal: int = fatal) -> None:
            if next(blocks) == fatal:
                raise Killed

        try:
            folder.deliver(new, target, tick)
        except Killed:
            kills += 1
            assert folder.holds(target, old)
            copied = 0

            def count(size: int) -> None:
                nonlocal copied
                copied += size

            assert folder.deliver(new, target, count)
            assert copied == sum(e.size for e in new)
        assert folder.holds(target, new)
        assert [p.name for p in target.parent.iterdir()] == ["repo"]
    assert kills == 4


@pytest.mark.parametrize("fatal", range(1, 5))
def test_killed_at_any_rename_the_next_call_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fatal: int,
) -> None:
    old, new = payload(tmp_path / "v1", a=b"1"), payload(tmp_path / "v2", a=b"2", b=b"3")
    target = tmp_path / "hub" / "repo"
    folder.deliver(old, target)
    publish, remove, calls = artifacts.publish, artifacts.remove_tree, [0]

    def dying(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] == fatal:
                raise Killed
            return real(*arguments)
        return call

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(artifacts, "publish", dying(publish))
        patch.setattr(artifacts, "remove_tree", dying(remove))
        folder.deliver(new, target)
    folder.deliver(new, target)
    assert folder.holds(target, new) and [p.name for p in target.parent.iterdir()] == ["repo"]


def test_between_the_renames_the_old_one_comes_back_when_the_new_one_cannot_be_made(tmp_path: Path) -> None:
    old, new = payload(tmp_path / "v1", a=b"1"), payload(tmp_path / "v2", a=b"2")
    target = tmp_path / "hub" / "repo"
    folder.deliver(old, target)
    target.rename(target.with_name(".repo.old"))
    (tmp_path / "v2" / "a").write_bytes(b"changed behind our back")
    with pytest.raises(StepFailure, match="a changed while it was being copied") as failure:
        folder.deliver(new, target)
    assert failure.value.state == "data_invalid" and folder.holds(target, old)


def test_somebody_elses_work_is_kept(tmp_path: Path) -> None:
    old, new = payload(tmp_path / "v1", a=b"1"), payload(tmp_path / "v2", a=b"2")
    target = tmp_path / "hub" / "repo"
    folder.deliver(old, target)
    (target / "notes.txt").write_text("mine")
    folder.deliver(new, target)
    assert folder.holds(target, new)
    assert (target.with_name("repo.kept-1") / "notes.txt").read_text() == "mine"


def test_a_damaged_copy_is_noticed_and_mended(tmp_path: Path) -> None:
    files = payload(tmp_path / "v1", a=b"1" * 100)
    target = tmp_path / "hub" / "repo"
    folder.deliver(files, target)
    (target / "a").write_bytes(b"0" * 100)
    assert not folder.holds(target, files)
    assert folder.deliver(files, target) and folder.holds(target, files)


def test_a_full_disk_is_said_before_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = payload(tmp_path / "v1", a=b"1" * 100)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 99}))
    with pytest.raises(StepFailure, match="100 bytes are needed and 99 are free") as failure:
        folder.deliver(files, tmp_path / "hub" / "repo")
    assert failure.value.state == "disk_full"


def test_content_id_is_about_content_alone(tmp_path: Path) -> None:
    one, two = payload(tmp_path / "x", a=b"1", b=b"2"), payload(tmp_path / "y", b=b"2", a=b"1")
    assert content_id(one) == content_id(two) != content_id(payload(tmp_path / "z", a=b"1", b=b"3"))
