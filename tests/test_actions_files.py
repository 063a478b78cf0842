"""Actions on what the machine itself wrote: making room, moving, going back; doing one twice is doing it once."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from acting import arguments, perform
from hypothesis import given, settings
from hypothesis import strategies as st
from stage import QUICK, Stage, files_below, rule, rule_set

from so8t_fsm import actions_files, artifacts, recovery, runs, schema
from so8t_fsm.actions import Intent, Scene
from so8t_fsm.rules.vocabulary import ACTIONS


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "home", rule_set(tmp_path / "rules", rule("any", ["restart_step"]))).build()


# Making room --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub client with finished and unfinished downloads."""
    cache = tmp_path / "hub"
    blobs = cache / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    for name, age in (("done", 9e5), ("old.1234abcd.incomplete", 9e5), ("new.1234abcd.incomplete", 1.0),
                      ("locked.1234abcd.incomplete", 9e5)):
        (blobs / name).write_bytes(b"x" * 10)
        os.utime(blobs / name, (time.time() - age,) * 2)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "blobs").mkdir(parents=True)
    (elsewhere / "blobs" / "mine.incomplete").write_bytes(b"x")
    os.utime(elsewhere / "blobs" / "mine.incomplete", (1, 1))
    (cache / "models--a--link").symlink_to(elsewhere)
    (blobs / "link.incomplete").symlink_to(elsewhere / "blobs" / "mine.incomplete")
    return cache


def test_only_orphans_of_the_hub_client_go(stage: Stage, hub_cache: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    lock = hub_cache / ".locks" / "models--a--b" / "locked.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock), stage.scene() as scene:
        intent = recovery.plan(scene, "cleanup_temp_files", arguments("cleanup_temp_files"))
        assert [Path(path).name for path in intent.data["paths"]] == ["old.1234abcd.incomplete"] and "(10 B)" in intent.words
        outcome = perform(scene, "cleanup_temp_files", intent)
        assert outcome.data["bytes_freed"] == 10
        assert perform(scene, "cleanup_temp_files", intent).data["bytes_freed"] == 10  # the same intent, the same outcome
        again = recovery.plan(scene, "resume_download", arguments("resume_download", discard_partial=True))
        assert [Path(path).name for path in again.data["paths"]] == ["new.1234abcd.incomplete"]
        assert perform(scene, "resume_download", again).data["bytes_freed"] == 10
    left = {path.name for path in (hub_cache / "models--a--b" / "blobs").iterdir()}
    assert left == {"done", "locked.1234abcd.incomplete", "link.incomplete"}
    assert (tmp_path / "elsewhere" / "blobs" / "mine.incomplete").exists()


def test_a_download_that_somebody_took_up_again_stays(stage: Stage, hub_cache: Path) -> None:
    """Between the intent and its doing the runner was dead for a day, and another process began the same file."""
    with stage.scene() as scene:
        intent = recovery.plan(scene, "cleanup_temp_files", arguments("cleanup_temp_files"))
        taken = hub_cache / "models--a--b" / "blobs" / "old.1234abcd.incomplete"
        os.utime(taken)
        perform(scene, "cleanup_temp_files", intent)
    assert taken.exists()


NAMES = st.sampled_from(["staging-1", "staging-9", "scratch-1", "1", "2", "3", "7", "x", "1.damaged-5", "notes.txt", "linked"])
PLACES = st.sampled_from(["training", "collecting", "training/checkpoints"])
KINDS = st.sampled_from(["directory", "file", "link", "full"])


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.tuples(PLACES, NAMES), KINDS, max_size=12),
       st.sets(st.integers(1, 5)), st.integers(1, 4))
def test_only_what_is_disposable_goes(tree: dict[tuple[str, str], str], kept: set[int], keep: int) -> None:
    """Random trees: what has a live row, is nobody's we know, or lies behind a link survives; the bytes are right."""
    place = Path(QUICK or ".") / f"so8t-cleanup-{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    try:
        stage = Stage(place / "home", rule_set(place / "rules", rule("any", ["restart_step"]))).build()
        outside = place / "outside"
        outside.mkdir()
        (outside / "precious").write_bytes(b"p" * 77)
        live = {stage.checkpoint(n, {"state.bin": bytes(n) * 9}): n for n in sorted(kept)}
        live[stage.commit("collecting", 2, {"a": b"abc"})] = 0
        base = place / "home" / "state" / "runs" / stage.run().id
        for (below, name), kind in tree.items():
            path = base / below / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() or path.is_symlink():
                continue
            if kind == "file":
                path.write_bytes(b"f" * 5)
            elif kind == "link":
                path.symlink_to(outside)
            else:
                path.mkdir()
                if kind == "full":
                    (path / "deep").mkdir()
                    (path / "deep" / "data").write_bytes(b"d" * 31)
                    (path / "deep" / "out").symlink_to(outside)
        before = files_below(base)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_HUB_CACHE", str(place / "no-cache"))
            with stage.scene() as scene:
                intent = recovery.plan(scene, "cleanup_temp_files", arguments("cleanup_temp_files", keep_checkpoints=keep))
                freed = 0 if intent.skip else perform(scene, "cleanup_temp_files", intent).data["bytes_freed"]
                if not intent.skip:
                    assert perform(scene, "cleanup_temp_files", intent).data["bytes_freed"] == freed
        after = files_below(base)
        assert freed == sum(before.values()) - sum(after.values())
        assert files_below(outside) == {"precious": 77}
        newest = set(sorted(kept)[-keep:])
        for path, n in live.items():
            assert path.exists() == (n == 0 or n in newest)
        for name in before.keys() - after.keys():
            where = next(path for path in [base / name, *(base / name).parents] if path.parent.parent == base
                         or path.parent.name == "checkpoints")
            assert where.name.startswith(("staging-", "scratch-")) or where.name.isdigit(), name
        for (below, name), kind in tree.items():
            if kind == "file" and not any((base / below) == path for path in live):
                assert (base / below / name).exists() or (base / below / name) in live
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_cleaning_stops_when_enough_is_free(stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    for n in range(1, 6):
        stage.checkpoint(n, {"state.bin": b"x" * 100})
    frees = iter([10, 20, 30, 99, 99, 99])
    monkeypatch.setattr(actions_files.shutil, "disk_usage", lambda path: SimpleNamespace(free=next(frees)))
    with stage.scene() as scene:
        intent = recovery.plan(scene, "cleanup_temp_files", arguments("cleanup_temp_files", keep_checkpoints=1, free=50))
        perform(scene, "cleanup_temp_files", intent)
    assert {row["n"]: row["status"] for row in stage.rows(schema.checkpoint)} == {
        1: "pruned", 2: "pruned", 3: "pruned", 4: "live", 5: "live"}


def test_what_resists_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    base = stage.home / "state" / "runs" / stage.run().id / "training"
    for name in ("staging-7", "staging-8"):
        (base / name).mkdir(parents=True)
        (base / name / "data").write_bytes(b"x" * 5)
    remove = artifacts.remove_tree

    def stubborn(path: Path) -> int:
        if path.name == "staging-7":
            raise PermissionError(13, "Permission denied", str(path))
        return remove(path)

    monkeypatch.setattr(artifacts, "remove_tree", stubborn)
    with stage.scene() as scene:
        intent = recovery.plan(scene, "cleanup_temp_files", arguments("cleanup_temp_files"))
        outcome = perform(scene, "cleanup_temp_files", intent)
    assert outcome.data["bytes_freed"] == 5 and "1 could not be deleted" in outcome.words and "Permission" in outcome.words


# Moving and going back ----------------------------------------------------------------------------------------------


@pytest.fixture
def second(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = stage.home / "second"
    place.mkdir()
    monkeypatch.setattr(actions_files, "_device", lambda path: 2 if path == place else 1)
    return place


def moving(scene: Scene, second: Path, what: str = "all") -> Intent:
    scene = replace(scene, values={**scene.values, "resources": {"second_storage": str(second)}})
    return recovery.plan(scene, "move_to_storage", arguments("move_to_storage", what=what))


def test_a_commit_that_two_runs_share_moves_for_both(stage: Stage, second: Path) -> None:
    """What a rerun took over lies in the first run's directory; both rows must follow it."""
    first = stage.run().id
    place = stage.commit("collecting", 1, {"deep/a.bin": b"a" * 100})
    with stage.handle() as handle:
        other = runs.create(handle.store, handle.config, None, parent=first)
        with handle.fenced() as tx:
            row = handle.commits.live(first)["collecting"]
            tx.add_artifact(other.id, "collecting", 0, row.path, row.identity, {}, {}, first)
    with stage.handle() as handle:
        scene = Scene(handle.store, handle.home, handle.run, handle.commits, handle.values(), "training", "training", "a test",
                      (handle.lease.epoch, 60.0))
        intent = moving(scene, second)
        assert "move 1 directories" in intent.words
        done = perform(scene, "move_to_storage", intent)
        assert done.status == "done" and done.data["bytes_freed"] >= 100 and not place.exists()
        assert perform(scene, "move_to_storage", intent).status == "done"
        assert moving(scene, second).skip
    rows = stage.rows(schema.artifact)
    assert {row["run_id"] for row in rows} == {first, other.id}
    for row in rows:
        assert artifacts.verify(Path(row["path"])).identity == row["identity"]


def test_a_drive_that_is_unplugged_is_no_damage(stage: Stage, second: Path) -> None:
    """Nothing is put aside, and nothing done again, because a drive is not there today."""
    stage.commit("collecting", 1, {"a.bin": b"a" * 100})
    for n in (1, 2):
        stage.checkpoint(n, {"state.bin": bytes([n])})
    with stage.scene() as scene:
        assert perform(scene, "move_to_storage", moving(scene, second)).status == "done"
        paths = [row.path for row in scene.commits.live(scene.run.id).values()]
        assert scene.commits.away(paths) == []
        unplugged = second.rename(second.with_name("unplugged"))
        second.mkdir()  # the mount point stays
        assert scene.commits.away(paths) == [second]
        said: list[str] = []
        shutil.rmtree(scene.commits.root / "runs" / scene.run.id / "training" / "checkpoints" / "2")
        assert scene.commits.newest_verified(scene.lease[0], scene.run.id, "training", said.append) is None
        assert "on a storage that is not there" in said[-1]
    second.rmdir()
    unplugged.rename(second)
    assert {row["n"]: row["status"] for row in stage.rows(schema.checkpoint)} == {1: "live", 2: "damaged"}
    for row in stage.rows(schema.artifact):
        assert artifacts.verify(Path(row["path"]))


def test_a_second_storage_that_is_full_keeps_nothing_of_it(stage: Stage, second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stage.commit("collecting", 1, {"a.bin": b"a" * 100})

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(artifacts, "fsync_file", full)
    with stage.scene() as scene:
        outcome = perform(scene, "move_to_storage", moving(scene, second))
    assert outcome.status == "failed" and "No space left" in outcome.words
    assert files_below(second) == {} and artifacts.verify(place)
    assert not Path(stage.rows(schema.artifact)[0]["path"]).is_absolute()


def test_a_copy_that_rotted_is_made_again(stage: Stage, second: Path) -> None:
    place = stage.commit("collecting", 1, {"a.bin": b"a" * 100})
    final = second / place.relative_to(stage.home / "state")
    shutil.copytree(place, final)
    (final / "a.bin").write_bytes(b"b" * 100)
    with stage.scene() as scene:
        assert perform(scene, "move_to_storage", moving(scene, second)).status == "done"
    assert artifacts.verify(final) and (final / "a.bin").read_bytes() == b"a" * 100


@pytest.mark.parametrize(("gone", "says"), [(True, "is not there"), (False, "is on the same disk")])
def test_where_moving_makes_no_room_nothing_moves(stage: Stage, gone: bool, says: str) -> None:
    """A mount point without its mount is a directory on this disk."""
    target = stage.home / "second"
    if not gone:
        target.mkdir()
    stage.commit("collecting", 1, {"a.bin": b"a"})
    with stage.scene() as scene:
        intent = moving(scene, target)
    assert intent.skip and says in intent.words and target.exists() != gone


def test_going_back(stage: Stage) -> None:
    for n in (1, 2, 3):
        stage.checkpoint(n, {"state.bin": bytes([n])})
    with stage.scene() as scene:
        intent = recovery.plan(scene, "rollback_checkpoint", arguments("rollback_checkpoint", steps=2))
        assert intent.words == "go back to checkpoint 1 at 1"
        for _ in range(2):
            perform(scene, "rollback_checkpoint", intent)
            assert [row.n for row in scene.commits.checkpoints(scene.run.id, "training")] == [1]
        assert recovery.plan(scene, "restart_step", arguments("restart_step")).data == {}
        afresh = recovery.plan(scene, "restart_step", arguments("restart_step", **{"from": "beginning"}))
        assert afresh.words == "run the step again from its beginning"
        perform(scene, "restart_step", afresh)
        assert scene.commits.checkpoints(scene.run.id, "training") == []
        assert recovery.plan(scene, "rollback_checkpoint", arguments("rollback_checkpoint")).skip


def test_planning_writes_nothing(stage: Stage, hub_cache: Path) -> None:
    """A dry run of every action there is, on a home with something in it for each."""
    for n in (1, 2, 3):
        stage.checkpoint(n, {"state.bin": b"x" * 100})

    def everything() -> Any:
        files = {name: size for name, size in files_below(stage.home).items() if "so8t.db" not in name}
        return files, [stage.rows(table) for table in schema.metadata.sorted_tables]

    with stage.scene() as scene:
        before = everything()
        for name in ACTIONS:
            intent = recovery.plan(scene, name, arguments(name))
            assert intent.words and Intent.from_json(json.loads(json.dumps(intent.to_json()))).words == intent.words
        assert everything() == before
