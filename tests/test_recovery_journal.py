"""kill -9 at every point of a recovery: whatever was decided is done once, paid for once, and then left."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stage import QUICK, Stage, begin, fail, files_below, rule, rule_set

from so8t_fsm import actions_files, answer, artifacts, recovery, schema
from so8t_fsm.store import Store

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

THEN = [
    {"reduce_batch_size": {"factor": 0.5}}, {"cleanup_temp_files": {"keep_checkpoints": 2}},
    {"move_to_storage": {"what": "all"}}, {"rollback_checkpoint": {"steps": 1}}, {"lower_learning_rate": {"factor": 0.5}},
    "switch_endpoint", "verify_paths", {"retry_with_backoff": {}}, {"restart_step": {"from": "checkpoint"}},
]
"""Every kind of effect: settings, files deleted, files moved, rows changed, directories made."""


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A run whose training has just run out of memory, with checkpoints, leftovers, commits and a second storage."""
    place = Path(tmp_path_factory.mktemp("seed")) / "home"
    rules = rule_set(place.parent / "rules", rule("everything", THEN))
    stage = Stage(place, rules)
    (place / "second").mkdir(parents=True)
    stage.build(training={"batch_size": 8}, resources={
        "second_storage": "second", "hub_endpoints": ["http://one.invalid", "http://two.invalid"]})
    stage.commit("collecting", 1, {"a.bin": b"a" * 1000, "deep/b.bin": b"b" * 10})
    for n in range(1, 5):
        stage.checkpoint(n, {"state.bin": bytes([n]) * 500})
    leftover = place / "state" / "runs" / stage.run().id / "training" / "staging-1"
    leftover.mkdir()
    (leftover / "half").write_bytes(b"x" * 300)
    stage.fail(MemoryError("no room"))
    yield stage


@pytest.fixture
def other_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory called ``second`` counts as another disk."""
    monkeypatch.setattr(actions_files, "_device", lambda path: 2 if path.name == "second" else 1)


def copied(seed: Stage, place: Path) -> Stage:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(seed.home, place, symlinks=True)
    return Stage(place, seed.rules)


class Points:
    """Counts the points at which a process could die, and dies at one of them."""

    def __init__(self, die_at: int = 0) -> None:
        self.die_at, self.names = die_at, list[str]()

    def __call__(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self(f"before {name}")
            result = function(*args, **kwargs)
            self(f"after {name}")
            return result
        return wrapped

    def install(self) -> None:
        """Around every commit, every action and every change of the file system.  Only in a process that may die."""
        fenced, point = Store.fenced, self

        @contextmanager
        def watched(store: Store, *args: Any) -> Iterator[Any]:
            with fenced(store, *args) as tx:
                yield tx
                point("before a commit")
            point("after a commit")

        Store.fenced = watched  # type: ignore[method-assign,assignment]
        recovery._performed = self.around("an action", recovery._performed)
        for name in ("remove_tree", "publish", "fsync_file", "make_durable"):
            setattr(artifacts, name, self.around(name, getattr(artifacts, name)))


def killed_at(stage: Stage, number: int, work: Callable[[Stage], Any]) -> None:
    """Do it in a child that dies at its ``number``-th point."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            Points(number).install()
            work(stage)
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == -signal.SIGKILL, f"point {number}: it was not killed but ended with {status}"


def points_of(stage: Stage, work: Callable[[Stage], Any]) -> list[str]:
    """Every point of an undisturbed run, which a child makes."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        points = Points()
        try:
            points.install()
            work(stage)
        finally:
            os.write(write, "\n".join(points.names).encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        names = stream.read().splitlines()
    os.waitpid(pid, 0)
    return names


def outcome(stage: Stage) -> dict[str, Any]:
    """What a recovery left, without times, and without the bytes that only its first performer can have counted."""
    run = stage.run()

    def lies(row: dict[str, Any]) -> tuple[str, str]:
        return row["status"], row["path"].replace(str(stage.home), "")

    ledgers = dict((run.ledgers or {})["recovery"])
    return {
        "state": run.state, "waits": run.next_retry_at is not None, "total": ledgers["total"], "recent": len(ledgers["recent"]),
        "rules": {key: entry[0] for key, entry in ledgers["rules"].items()},
        "roots": {key: entry[0] for key, entry in ledgers["roots"].items()},
        "overrides": {row["key"]: (row["was"], row["value"], row["by"]) for row in stage.rows(schema.override)},
        "actions": [(row["incident_id"], row["seq"], row["name"], row["status"]) for row in stage.rows(schema.action)],
        "incidents": [(row["id"], row["rule"], row["status"]) for row in stage.rows(schema.incident)],
        "checkpoints": {row["n"]: lies(row) for row in stage.rows(schema.checkpoint)},
        "artifacts": {row["step"]: lies(row) for row in stage.rows(schema.artifact)},
        "history": [(row["trigger"], row["to_state"]) for row in stage.rows(schema.history)],
        "files": {name: size for name, size in files_below(stage.home).items() if "so8t.db" not in name},
    }


def rows_verify(stage: Stage) -> None:
    """What has a live row verifies, at every instant."""
    for table in (schema.artifact, schema.checkpoint):
        for row in stage.rows(table):
            if row["status"] == "live":
                assert artifacts.verify(stage.home / "state" / row["path"]).identity == row["identity"]


def sweep(seed: Stage, folder: Path, work: Callable[[Stage], Any]) -> None:
    calm = copied(seed, folder / "home")
    names = points_of(calm, work)
    expected = outcome(calm)
    assert expected["total"] == 1 and len(names) > 100
    for number, name in enumerate(names, 1):
        stage = copied(seed, folder / "home")
        killed_at(stage, number, work)
        rows_verify(stage)
        work(stage)
        assert outcome(stage) == expected, f"killed at point {number} of {len(names)}: {name}"
        rows_verify(stage)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    place = (QUICK or tmp_path) / f"so8t-journal-{os.getpid()}"
    yield place
    shutil.rmtree(place, ignore_errors=True)


def give(stage: Stage) -> None:
    """A runner that takes over: it answers if the failure is not left yet."""
    with stage.handle() as handle:
        if handle.run.state == "out_of_memory":
            answer.Answer(handle).give()


def test_the_undisturbed_recovery_does_everything(seed: Stage, folder: Path, other_disk: None) -> None:
    """What the sweep compares with is not empty."""
    stage = copied(seed, folder / "home")
    give(stage)
    left = outcome(stage)
    assert left["state"] == "backing_off" and left["waits"] and left["rules"] == {"everything": 1}
    assert [status for *_, status in left["actions"]] == ["done"] * len(THEN)
    assert {key: value for key, (_, value, _) in left["overrides"].items()} == {
        "training.batch_size": 4, "training.gradient_accumulation_steps": 2, "training.learning_rate": pytest.approx(
            left["overrides"]["training.learning_rate"][0] / 2),
        "resources.hub_endpoints": ["http://two.invalid", "http://one.invalid"]}
    # Of four checkpoints two were old, one was moved away, and the newest was left out.
    run = stage.run().id
    assert left["checkpoints"] == {
        1: ("pruned", f"runs/{run}/training/checkpoints/1"), 2: ("pruned", f"runs/{run}/training/checkpoints/2"),
        3: ("live", f"/second/runs/{run}/training/checkpoints/3"), 4: ("pruned", f"runs/{run}/training/checkpoints/4")}
    assert left["artifacts"] == {"collecting": ("live", f"/second/runs/{run}/collecting/1")}
    assert f"second/runs/{run}/collecting/1/deep/b.bin" in left["files"]
    assert not any("staging-1" in name or "checkpoints/1/" in name for name in left["files"])
    rows_verify(stage)


def test_killed_at_every_point(seed: Stage, folder: Path, other_disk: None) -> None:
    sweep(seed, folder, give)


def test_killed_at_every_point_twice(seed: Stage, folder: Path, other_disk: None) -> None:
    """The recovery of a recovery is one too."""
    calm = copied(seed, folder / "home")
    names = points_of(calm, give)
    expected = outcome(calm)
    for first, second in ((2, 3), (7, 9), (13, 2), (len(names) // 2, 8), (len(names) - 4, 1)):
        stage = copied(seed, folder / "home")
        killed_at(stage, first, give)
        killed_at(stage, second, give)
        give(stage)
        assert outcome(stage) == expected, (names[first - 1], second)


def test_the_instrument_notices(seed: Stage, folder: Path, other_disk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that forgets what it decided pays twice, and the sweep sees it."""
    decision = answer.Answer._decision

    def forgetful(self: answer.Answer, number: int) -> Any:
        with self.handle.store.write() as connection:
            row = schema.incident
            detail = connection.execute(row.select().where(row.c.id == number)).mappings().one()["detail"]
            connection.execute(row.update().where(row.c.id == number).values(
                detail={key: value for key, value in detail.items() if key != "decision"}))
        return decision(self, number)

    monkeypatch.setattr(answer.Answer, "_decision", forgetful)
    with pytest.raises(AssertionError, match="killed at point"):
        sweep(seed, folder, give)


# Leaving it the other ways ------------------------------------------------------------------------------------------


def test_killed_while_asking_a_person(tmp_path: Path, folder: Path) -> None:
    """An action that needs a person: asked once, in the state for it, and the rest is left alone."""
    rules = rule_set(tmp_path / "rules", rule("ask", [{"reduce_batch_size": {}}, {"verify_paths": {}}, "restart_step"]))
    seed = Stage(folder / "seed", rules).build(
        data={"sources": [{"kind": "files", "path": "not/there", "licence": "MIT"}]})
    seed.fail(MemoryError())
    calm = copied(seed, folder / "home")
    names = points_of(calm, give)
    expected = outcome(calm)
    assert expected["state"] == "needs_attention" and expected["incidents"] == [(1, "ask", "escalated")]
    assert [status for *_, status in expected["actions"]] == ["done", "failed"]
    for number in range(1, len(names) + 1):
        stage = copied(seed, folder / "home")
        killed_at(stage, number, give)
        give(stage)
        assert outcome(stage) == expected, names[number - 1]


def test_a_stop_in_the_middle_is_no_failure(seed: Stage, folder: Path, other_disk: None) -> None:
    """A runner that is asked to stop leaves between two actions; the next one goes on there."""
    stage = copied(seed, folder / "home")
    with stage.handle() as handle:
        handle.signals.requested = "SIGTERM"
        answer.Answer(handle).give()
        assert handle.run.state == "out_of_memory"
    assert stage.rows(schema.action) == []
    give(stage)
    calm = copied(seed, folder / "other")
    give(calm)
    assert outcome(stage)["actions"] == outcome(calm)["actions"] and stage.run().state == "backing_off"


def test_what_breaks_is_a_failed_action_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = rule_set(tmp_path / "rules", rule("two", ["restart_step", "reduce_batch_size"]))
    stage = Stage(tmp_path / "home", rules).build(training={"batch_size": 8})
    stage.fail(MemoryError())
    known = recovery.vocabulary()

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a token=hf_abcdefghijklmnop in it")

    monkeypatch.setattr(recovery, "vocabulary", lambda: {**known, "restart_step": (known["restart_step"][0], broken)})
    assert stage.answer() == "backing_off"
    first, second = stage.rows(schema.action)
    assert (first["status"], second["status"]) == ("failed", "done")
    assert first["outcome"]["words"].startswith("ZeroDivisionError: a token=") and "abcdef" not in str(first)
    assert stage.overrides()["training.batch_size"] == 4


# The story of it ----------------------------------------------------------------------------------------------------


def test_the_history_tells_the_recovery(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "home", rule_set(tmp_path / "rules", rule("halve", ["reduce_batch_size"]))).build(
        training={"batch_size": 8})
    stage.fail(MemoryError("no room"))
    stage.answer()
    failed, answered = stage.rows(schema.history)[-2:]
    assert (failed["to_state"], failed["reason"]) == ("out_of_memory", "MemoryError: no room")
    assert answered["reason"] == ("rule halve, 1 of 3: training.batch_size 8 → 4, training.gradient_accumulation_steps 1 → 2: "
                                  "the effective batch stays 8; again in 0 s")
    (error,) = (tmp_path / "home" / "logs").glob("pipeline_error_*.json")
    assert '"rule": "halve"' in error.read_text(encoding="utf-8")


def test_budgets_end_with_a_person(tmp_path: Path) -> None:
    """Three attempts of a rule, then needs_attention and one notification; progress would have renewed them."""
    stage = Stage(tmp_path / "home", rule_set(tmp_path / "rules", rule("again", ["restart_step"]))).build()
    for _ in range(3):
        stage.fail(MemoryError())
        assert stage.answer() == "backing_off"
        with stage.handle() as handle:
            handle.move("retry", "due", known={"retry_due": True}, next_retry_at=None)
            begin(handle)
    stage.fail(MemoryError())
    assert stage.answer() == "needs_attention"
    assert [row["status"] for row in stage.rows(schema.incident)] == ["escalated"] * 4
    assert [severity for severity, *_ in stage.told] == ["critical"]
    assert "was tried 3 times" in stage.run().incident["escalated"]  # type: ignore[index]


def test_observing_only_answers_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "home", rule_set(tmp_path / "rules", rule("halve", ["reduce_batch_size"]))).build(
        training={"batch_size": 8})
    stage.fail(MemoryError())
    assert stage.answer(observe_only=True) == "backing_off"
    assert stage.overrides() == {} and stage.rows(schema.action) == []
    (row,) = stage.rows(schema.incident)
    assert row["status"] == "observed" and row["detail"]["decision"]["rule"] == "halve"
    assert any("would have done: reduce_batch_size" in line for line in stage.reporter.said)
    assert (stage.run().ledgers or {})["recovery"]["total"] == 0


def test_without_a_rule_the_last_try_closes_the_incident(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "home", rule_set(tmp_path / "rules", rule("other", ["restart_step"], "KeyError"))).build(
        automation={"max_attempts_without_progress": 1})
    stage.fail(MemoryError())
    assert stage.answer() == "needs_attention"
    assert [row["status"] for row in stage.rows(schema.incident)] == ["escalated"]


# Waiting ------------------------------------------------------------------------------------------------------------


class Throttled(OSError):
    """What the hub client raises at HTTP 429."""

    def __init__(self, seconds: int) -> None:
        super().__init__("429 Client Error: Too Many Requests")
        self.response = type("Response", (), {"status_code": 429, "headers": {"retry-after": str(seconds)}})()


def test_a_server_is_waited_for_longer_than_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry-After stands above automation.backoff.max; a rule's own wait does not; both are in the row."""
    rules = rule_set(tmp_path / "rules", rule("limit", ["retry_with_backoff"], "Throttled", "network_failed",
                                              backoff={"initial": 500, "max": 900}))
    stage = Stage(tmp_path / "home", rules).build()
    stage.fail(Throttled(120))
    monkeypatch.setattr("so8t_fsm.answer.time.time", lambda: 5_000_000_000.0)
    assert stage.answer() == "backing_off"
    assert stage.run().next_retry_at == 5_000_000_120.0 and "again in 120 s" in stage.rows(schema.history)[-1]["reason"]
    with stage.handle() as handle:
        handle.move("retry", "due", known={"retry_due": True}, next_retry_at=None)
        begin(handle)
        fail(handle, Throttled(0))
    stage.answer()
    assert stage.run().next_retry_at == pytest.approx(5_000_000_000.05, abs=0.01)


@pytest.mark.parametrize(("set_to", "waits"), [(100.0, True), (121.0, False), (-100_000.0, False)])
def test_the_wait_survives_a_reboot_and_a_wrong_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_to: float, waits: bool,
) -> None:
    """The time is in the row: another runner waits for the rest; one whose clock was set back does not wait for ever."""
    from so8t_fsm.supervisor import Supervisor

    rules = rule_set(tmp_path / "rules", rule("limit", ["retry_with_backoff"], "Throttled", "network_failed"))
    stage = Stage(tmp_path / "home", rules).build()
    stage.fail(Throttled(120))
    begun = 5_000_000_000.0
    monkeypatch.setattr("so8t_fsm.answer.time.time", lambda: begun)
    stage.answer()
    monkeypatch.setattr("so8t_fsm.supervisor.time.time", lambda: begun + set_to)
    slept: list[float] = []
    monkeypatch.setattr(Supervisor, "_sleep", lambda self, seconds: slept.append(seconds))
    with stage.handle() as handle:
        Supervisor(handle)._wait_for_retry()
        assert handle.run.state == ("backing_off" if waits else "training") and bool(slept) == waits
