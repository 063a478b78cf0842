"""Each action of the vocabulary: it says truthfully what it would do, does that, and doing it twice is doing it once."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage import QUICK, Stage, files_below, rule, rule_set

from so8t_fsm import actions_files, actions_host, artifacts, recovery, runs, schema
from so8t_fsm.actions import ACCUMULATION, Intent, Interrupted, Outcome, Scene, vocabulary
from so8t_fsm.attempt import Attempt
from so8t_fsm.rules.vocabulary import ACTIONS

SECRET = "hf_" + "AbCdEfGhIjKlMnOpQr"
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def arguments(name: str, **given: Any) -> dict[str, Any]:
    """An action's arguments with their defaults, as a rule hands them over."""
    found: dict[str, Any] = ACTIONS[name].model_validate(given).model_dump()
    return found


def imagined(values: Mapping[str, Any], state: str = "training") -> Scene:
    """A scene of which only the settings are looked at."""
    run = SimpleNamespace(id="r", steps=["training"], attempt=1)
    return Scene(None, Path("home"), run, None, values, state, state, "a test", (1, 1.0))  # type: ignore[arg-type]


def planned(name: str, values: Mapping[str, Any], state: str = "training", **given: Any) -> Intent:
    return recovery.plan(imagined(values, state), name, arguments(name, **given))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "home", rule_set(tmp_path / "rules", rule("any", ["restart_step"]))).build()


def perform(scene: Scene, name: str, intent: Intent) -> Outcome:
    return vocabulary()[name][1](scene, Intent.from_json(json.loads(json.dumps(intent.to_json()))))


def test_every_action_of_the_rules_is_there() -> None:
    assert set(vocabulary()) == set(ACTIONS)


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


# Settings -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4096), st.integers(1, 64), st.floats(0.01, 0.99), st.integers(1, 64))
def test_the_effective_batch_never_changes(size: int, accumulation: int, factor: float, least: int) -> None:
    values = {"training": {"batch_size": size, "gradient_accumulation_steps": accumulation}}
    intent = planned("reduce_batch_size", values, factor=factor, min=least)
    if intent.skip:
        assert not intent.settings
        return
    assert set(intent.settings) == {"training.batch_size", ACCUMULATION["training.batch_size"]}
    (was, now), (was_steps, steps) = intent.settings.values()
    assert (was, was_steps) == (size, accumulation) and now * steps == size * accumulation
    assert least <= now < size and now <= max(least, size * factor)
    assert f"{size} → {now}" in intent.words and f"stays {size * accumulation}" in intent.words


def test_a_batch_is_halved_down_to_one() -> None:
    values: dict[str, Any] = {"training": {"batch_size": 16, "gradient_accumulation_steps": 1}}
    seen = []
    while not (intent := planned("reduce_batch_size", values)).skip:
        values = runs.overlaid(values, [{"key": key, "value": value} for key, (_, value) in intent.settings.items()])
        seen.append((values["training"]["batch_size"], values["training"]["gradient_accumulation_steps"]))
    assert seen == [(8, 2), (4, 4), (2, 8), (1, 16)]


@pytest.mark.parametrize(("name", "state", "values", "changed"), [
    ("reduce_batch_size", "evaluating", {"benchmark": {"batch_size": 16}}, {"benchmark.batch_size": (16, 8)}),
    ("reduce_batch_size", "integrating", {"training": {"batch_size": 16}}, {}),
    ("reduce_dataset_size", "collecting", {"data": {"max_samples": 5000}}, {"data.max_samples": (5000, 2500)}),
    ("reduce_dataset_size", "collecting", {"data": {"max_samples": 1000}}, {}),
    ("reduce_dataset_size", "preprocessing", {"data": {"max_samples": 5000}}, {}),
    ("reduce_dataset_size", "training", {"training": {"max_samples": 4000}}, {"training.max_samples": (4000, 2000)}),
    ("reduce_dataset_size", "training", {"training": {"max_samples": 0}, "data": {"max_samples": 6000}},
     {"training.max_samples": (0, 3000)}),
    ("lower_learning_rate", "training", {"training": {"learning_rate": 2e-5}}, {"training.learning_rate": (2e-5, 1e-5)}),
    ("shorten_sequence", "training", {"training": {"max_length": 192}}, {"training.max_length": (192, 128)}),
    ("shorten_sequence", "training", {"training": {"max_length": 128}}, {}),
    ("enable_gradient_checkpointing", "training", {"training": {"gradient_checkpointing": False}},
     {"training.gradient_checkpointing": (False, True)}),
    ("enable_gradient_checkpointing", "training", {"training": {"gradient_checkpointing": True}}, {}),
    ("switch_endpoint", "collecting", {"resources": {"hub_endpoints": ["a", "b", "c"]}},
     {"resources.hub_endpoints": (["a", "b", "c"], ["b", "c", "a"])}),
    ("switch_endpoint", "collecting", {"resources": {"hub_endpoints": ["a"]}}, {}),
])
def test_what_a_setting_becomes(name: str, state: str, values: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    intent = planned(name, values, state)
    assert intent.settings == changed and intent.skip == (not changed)


def test_settings_that_no_step_accepts_are_not_made() -> None:
    """The most that training.gradient_accumulation_steps may be is 4096."""
    values = {"training": {"batch_size": 4, "gradient_accumulation_steps": 4096}}
    intent = planned("reduce_batch_size", values)
    assert intent.skip and not intent.settings and "training.gradient_accumulation_steps: " in intent.words


def test_the_first_value_is_remembered(stage: Stage) -> None:
    with stage.handle() as handle:
        for was, value in ((8, 4), (4, 2)):
            with handle.fenced() as tx:
                recovery.set_override(tx, handle.run.id, "training.batch_size", was, value, f"rule {value}")
        assert handle.values()["training"]["batch_size"] == 2
    (row,) = stage.rows(schema.override)
    assert (row["was"], row["value"], row["by"]) == (8, 2, "rule 2") and row["at"] > 0


def test_the_child_asks_the_mirror_in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def spawn(command: list[str], env: dict[str, str], cwd: Path) -> Any:
        seen.update(env)
        raise OSError("far enough")

    monkeypatch.setattr("so8t_fsm.attempt.host.spawn", spawn)
    monkeypatch.setenv("HF_ENDPOINT", "http://old.invalid")
    intent = planned("switch_endpoint", {"resources": {"hub_endpoints": ["http://a.invalid", "http://b.invalid"]}})
    spec = {"scratch": tmp_path, "home": tmp_path, "config": {
        "resources": {"hub_endpoints": intent.settings["resources.hub_endpoints"][1]}}}
    with pytest.raises(OSError, match="far enough"):
        Attempt(spec, log=lambda line: None).start()
    assert seen["HF_ENDPOINT"] == "http://b.invalid"


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


# The token ----------------------------------------------------------------------------------------------------------


@contextmanager
def hub(status: int, body: Mapping[str, Any] | None = None, delay: float = 0.0) -> Iterator[tuple[str, list[str]]]:
    """A Hub that answers ``whoami`` in one way.  Gives its address and the tokens it was shown."""
    shown: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("authorization", ""))
            time.sleep(delay)
            said = json.dumps(body if body is not None else {"error": f"no, {shown[-1]}"}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", shown
    finally:
        server.shutdown()
        server.server_close()


def me(role: str, orgs: list[dict[str, str]] | None = None, **more: Any) -> dict[str, Any]:
    return {"name": "taro", "orgs": orgs or [], "auth": {"accessToken": {"role": role, **more}}}


def ask(endpoint: str, needs: str = "write", repo: str = "taro/model", beat: Any = lambda: None) -> Outcome:
    values = {"upload": {"target": "hub", "repo_id": repo, "token_env": "HF_TOKEN", "endpoint": ""},
              "resources": {"hub_endpoints": [endpoint]}}
    scene = replace(imagined(values), beat=beat)
    return perform(scene, "verify_hf_token", recovery.plan(scene, "verify_hf_token", arguments("verify_hf_token", needs=needs)))


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return SECRET


def scoped(name: str, *permissions: str) -> dict[str, Any]:
    return {"fineGrained": {"scoped": [{"entity": {"name": name}, "permissions": list(permissions)}]}}


@pytest.mark.parametrize(("answer", "needs", "repo", "status", "person", "says"), [
    (me("write"), "write", "taro/model", "done", False, "taro's and of the kind write"),
    (me("read"), "read", "taro/model", "done", False, "of the kind read"),
    (me("read"), "write", "taro/model", "failed", True, "may only read"),
    (me("write"), "write", "other/model", "failed", True, "may not write to other/model"),
    (me("write", [{"name": "Other", "roleInOrg": "write"}]), "write", "other/model", "done", False, "taro"),
    (me("write", [{"name": "other", "roleInOrg": "read"}]), "write", "other/model", "failed", True, "may not write"),
    (me("fineGrained", **scoped("taro", "repo.write")), "write", "taro/model", "done", False, "fineGrained"),
    (me("fineGrained", **scoped("taro/model", "repo.write")), "write", "taro/model", "done", False, "fineGrained"),
    (me("fineGrained", **scoped("taro/other", "repo.write")), "write", "taro/model", "failed", True, "no repo.write"),
    (me("fineGrained", **scoped("taro", "repo.content.read")), "write", "taro/model", "failed", True, "no repo.write"),
])
def test_whose_token_it_is_and_what_it_may_do(
    token: str, answer: dict[str, Any], needs: str, repo: str, status: str, person: bool, says: str,
) -> None:
    with hub(200, answer) as (endpoint, shown):
        outcome = ask(endpoint, needs, repo)
    assert (outcome.status, outcome.needs_person) == (status, person) and says in outcome.words
    assert shown == [f"Bearer {token}"] and token not in str(outcome)


@pytest.mark.parametrize(("code", "person", "says"), [
    (401, True, "refuses the token (HTTP 401)"), (403, True, "refuses the token (HTTP 403)"),
    (429, False, "could not say (HTTP 429)"), (503, False, "could not say (HTTP 503)"),
])
def test_a_clear_no_is_for_a_person_and_no_answer_is_none(token: str, code: int, person: bool, says: str) -> None:
    with hub(code) as (endpoint, _):
        outcome = ask(endpoint)
    assert (outcome.status, outcome.needs_person) == ("failed", person)
    assert says in outcome.words and token not in str(outcome)


def test_a_hub_that_says_nothing_is_not_waited_for(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions_host, "HUB_SECONDS", 0.3)
    beats: list[int] = []
    with hub(200, me("write"), delay=2.0) as (endpoint, _):
        began = time.monotonic()
        outcome = ask(endpoint, beat=lambda: beats.append(1))
        assert time.monotonic() - began < 1.5 and beats
    assert outcome.status == "failed" and not outcome.needs_person and "did not answer" in outcome.words


def test_nobody_at_the_address(token: str) -> None:
    outcome = ask("http://127.0.0.1:9")
    assert outcome.status == "failed" and not outcome.needs_person and "could not be asked (ConnectError)" in outcome.words


@pytest.mark.parametrize("needs", ["read", "write"])
def test_no_token_at_all(token: str, monkeypatch: pytest.MonkeyPatch, needs: str) -> None:
    monkeypatch.delenv("HF_TOKEN")
    outcome = ask("http://127.0.0.1:9", needs)
    assert outcome.needs_person and "there is no token; set HF_TOKEN" in outcome.words


# Dependencies -------------------------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, version: str) -> None:
    """The smallest wheel that pip installs."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "ANSWER = 42\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The project requires one thing more than is installed; pip knows one folder and installs into another."""
    monkeypatch.setattr(actions_host.metadata, "requires", lambda name: [
        "click>=8", "so8t-made-up>=1,<2", "never-here; sys_platform == 'amiga'", "pytest; extra == 'dev'"])
    for key, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels"), "PIP_NO_CACHE_DIR": "1",
                       "PIP_TARGET": str(tmp_path / "site"), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(key, value)
    return tmp_path


def test_only_our_own_pins_are_installed(pinned: Path) -> None:
    wheel(pinned / "wheels", "so8t_made_up", "1.2")
    wheel(pinned / "wheels", "evil", "6.6")
    intent = planned("install_dependencies", {})
    assert intent.data["packages"] == ["so8t-made-up<2,>=1"]
    for _ in range(2):
        assert perform(imagined({}), "install_dependencies", intent).status == "done"
    assert (pinned / "site" / "so8t_made_up.py").read_text() == "ANSWER = 42\n"
    assert not (pinned / "site" / "evil.py").exists()


def test_pip_that_fails_says_why(pinned: Path) -> None:
    outcome = perform(imagined({}), "install_dependencies", planned("install_dependencies", {}))
    assert outcome.status == "failed" and outcome.words.startswith("pip: ") and "so8t-made-up" in outcome.words


def test_a_name_that_is_not_ours_needs_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was missing, the log is not asked: there is no argument for a name."""
    assert set(ACTIONS["install_dependencies"].model_fields) == {"upgrade"}
    monkeypatch.setattr(actions_host.metadata, "requires", lambda name: ["click>=8"])
    intent = planned("install_dependencies", {})
    assert intent.skip and intent.data["person"] and "not ours to install" in intent.words


def test_an_outdated_package_is_one_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions_host.metadata, "requires", lambda name: ["click>=8"])
    monkeypatch.setattr(actions_host.metadata, "version", lambda name: "7.1")
    assert planned("install_dependencies", {}).data["packages"] == ["click>=8"]


def test_every_pin_of_the_project_is_read() -> None:
    names = {requirement.name for requirement in actions_host._pins()}
    assert {"click", "torch", "sqlalchemy"} <= names and "pytest" not in names
    assert not any(actions_host._unmet(requirement) for requirement in actions_host._pins()
                   if metadata.version("click") and requirement.name in ("click", "sqlalchemy", "pydantic"))


def test_a_stop_kills_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(f"""\
import os, pathlib, time
pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))
time.sleep(60)
""")
    real = actions_host.subprocess.Popen
    monkeypatch.setattr(actions_host.subprocess, "Popen", lambda command, **more: real([sys.executable, str(slow)], **more))

    def beat() -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        perform(replace(imagined({}), beat=beat), "install_dependencies", Intent("", data={"packages": ["x"]}))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# Paths and the GPU --------------------------------------------------------------------------------------------------


def test_our_paths_are_made_and_theirs_must_be_there(tmp_path: Path) -> None:
    values = {"logging": {"directory": "logs"}, "upload": {"target": "folder", "folder": "out/hub"},
              "data": {"sources": [{"kind": "files", "path": "texts"}, {"kind": "generated"}]}}
    scene = replace(imagined(values), home=tmp_path)
    intent = recovery.plan(scene, "verify_paths", arguments("verify_paths"))
    outcome = perform(scene, "verify_paths", intent)
    assert outcome.needs_person and outcome.words == f"not there: {tmp_path / 'texts'}"
    assert (tmp_path / "out" / "hub").is_dir() and not (tmp_path / "texts").exists()
    (tmp_path / "texts").mkdir()
    assert perform(scene, "verify_paths", intent).status == "done"
    only = recovery.plan(scene, "verify_paths", arguments("verify_paths", create=False))
    (tmp_path / "out" / "hub").rmdir()
    assert perform(scene, "verify_paths", only).needs_person and not (tmp_path / "out" / "hub").exists()


class Driver:
    """pynvml, with a process that lets go of its memory after some looks."""

    class NVMLError(Exception): ...

    def __init__(self, looks: int = 0, absent: bool = False, blind: bool = False) -> None:
        self.looks, self.absent, self.blind, self.open = looks, absent, blind, 0

    def nvmlInit(self) -> None:
        if self.absent:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> list[Any]:
        if self.blind:
            raise self.NVMLError("Not Supported")
        self.looks -= 1
        return [SimpleNamespace(pid=4242)] if self.looks >= 0 else []

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Any:
        return SimpleNamespace(free=1000)


@pytest.mark.parametrize(("driver", "status", "says"), [
    (Driver(looks=3), "done", "is free"), (Driver(looks=10**9), "failed", "still counts"),
    (Driver(absent=True), "skipped", "Driver Not Loaded"), (Driver(blind=True), "skipped", "could not be observed"),
])
def test_gpu_memory_is_waited_for(monkeypatch: pytest.MonkeyPatch, driver: Driver, status: str, says: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(actions_host, "TICK", 0.01)
    killed: list[tuple[int, float]] = []
    monkeypatch.setattr(actions_host.host, "kill_orphan", lambda pid, started: killed.append((pid, started)))
    outcome = perform(imagined({}), "clear_gpu_cache", Intent("", data={"pid": 4242, "started": 7.0, "wait": 0.2}))
    assert outcome.status == status and says in outcome.words
    assert killed == [(4242, 7.0)] and driver.open == 0


def test_whose_memory_it_was_is_in_the_row(stage: Stage) -> None:
    with stage.handle() as handle, handle.fenced() as tx:
        tx.update_attempt(handle.run.id, "training", 1, pid=4242, pid_started=7.0)
    with stage.scene() as scene:
        assert recovery.plan(scene, "clear_gpu_cache", arguments("clear_gpu_cache", wait="3s")).data == {
            "pid": 4242, "started": 7.0, "wait": 3.0}
