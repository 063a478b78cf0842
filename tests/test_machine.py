"""The machine end to end: real runners, real children, toy steps; whatever happens, the same bytes come out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from conftest import ALL, TRAIN, Home, finish, freeze, wait_for

from so8t_fsm import artifacts, schema
from so8t_fsm.states import WORKING

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
ONE = ("toy_collect",)


def same_as(reference: Home, home: Home) -> None:
    """What the run committed is, byte for byte, what the undisturbed one did."""
    mine, theirs = home.identities(), reference.identities()
    assert mine == {name: theirs[name] for name in home.run().steps}


def train_slowly(home: Home, rounds: int = 3, **automation: Any) -> subprocess.Popen[str]:
    """Start a run and wait until training is some rounds in: a second, of six that it would take."""
    home.configure(TRAIN, toy={"pause": 0.3}, automation={"heartbeat_seconds": 0.1, "lease_seconds": 1.5, **automation})
    runner = home.start("resume", "--config", home.config)
    wait_for(lambda: (progress_of(home) or 0) >= rounds, f"{rounds} rounds of toy_train")
    return runner


def hurry(home: Home) -> None:
    """Let the rest of the training take no time; its outcome does not depend on that."""
    home.override("toy.pause", 0.0)


def progress_of(home: Home) -> float | None:
    if not home.database.exists():
        return None
    found = [row["progress"]["done"] for row in home.rows(schema.attempt, "toy_train") if row["progress"]]
    return max(found, default=None)


# Undisturbed --------------------------------------------------------------------------------------------------------


def test_all_steps_are_committed_in_order(reference: Home) -> None:
    """The happy path, with a third party's step (`toy_extra`) between two of the seven."""
    assert reference.states() == [*WORKING, "completed"]
    assert set(reference.identities()) == set(ALL)
    attempts = sorted(reference.rows(schema.attempt), key=lambda row: row["started_at"])
    assert [(a["step"], a["n"], a["status"]) for a in attempts] == [(name, 1, "committed") for name in ALL]
    assert [row["rev"] for row in reference.history()] == list(range(1, reference.run().rev + 1))
    manifest = artifacts.verify(reference.committed("toy_collect"))
    assert set(manifest.files) == {"out.txt", "deep/more.bin"} and set(manifest.volatile) == {"when.txt"}


def test_nothing_is_left_lying_about(reference: Home) -> None:
    run = reference.path / "state" / "runs" / reference.run().id
    assert sorted(p.name for p in run.iterdir()) == sorted(ALL)
    assert {p.name for step in run.iterdir() for p in step.iterdir()} <= {"1", "checkpoints"}
    assert len(list((reference.path / "state" / "backups").glob("*.db"))) == 3
    (row,) = reference.rows(schema.lease)
    assert row["pid"] is None and row["epoch"] == 1


def test_with_nothing_to_do_it_says_so(reference: Home, tmp_path: Path) -> None:
    home = reference.copy(tmp_path / "copy")
    before = home.rows(schema.history), home.rows(schema.lease)
    assert "completed; nothing to do" in home.resume()
    assert (home.rows(schema.history), home.rows(schema.lease)) == before


def test_states_without_a_step_are_passed_through(home: Home) -> None:
    home.configure(ONE).begin()
    assert home.states() == [*WORKING, "completed"]
    assert "no step of this run works in uploading" in [row["reason"] for row in home.history()]


def test_the_words_of_a_step_are_in_the_log(home: Home) -> None:
    home.configure(ONE, toy={"fault": "noise", "fault_step": "toy_collect"}).begin()
    (log,) = (home.path / "logs").glob("complete_pipeline_*.log")
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line.split("#1] ")[1][:11].split("x")[0].strip() for line in lines if "] line " in line] == [
        f"line {i}" for i in range(2000)]


# Failures -----------------------------------------------------------------------------------------------------------
# With --observe-only the machine answers by itself; how the recovery rules answer is tested in test_recovery*.py.


@pytest.mark.parametrize(("fault", "state", "said"), [
    ("exception", "crashed", "RuntimeError: the toy broke"),
    ("memory", "out_of_memory", "MemoryError: toy memory"),
    ("disk", "disk_full", "No space left on device"),
    ("diverged", "diverged", "loss is nan"),
    ("exit", "crashed", "exit code 3"),
    pytest.param("kill", "out_of_memory", "SIGKILL", marks=posix),
    pytest.param("segv", "crashed", "signal 11", marks=posix),
    ("hang", "stalled", "no sign of life for 3 s"),
])
def test_a_failure_is_named_recorded_and_retried(
    fault: str, state: str, said: str, home: Home, reference: Home
) -> None:
    home.configure(ONE, toy={"fault": fault, "fault_step": "toy_collect"},
                   automation={"stall_timeout": "3s" if fault == "hang" else "60s"})
    home.begin()
    assert home.states()[:4] == ["collecting", state, "backing_off", "collecting"]
    assert home.run().state == "completed"
    failed, done = home.rows(schema.attempt)
    assert (failed["status"], done["status"]) == ("failed", "committed")
    assert failed["failure"]["state"] == state and said in failed["failure"]["message"]
    exception = failed["failure"]["exception"]
    if fault in ("exception", "memory", "disk", "diverged"):
        assert "Traceback" in exception["traceback"] and "so8t_toy.py" in exception["traceback"]
        assert failed["failure"]["hint"] == ("lower the learning rate" if fault == "diverged" else "")
    else:
        assert exception is None
        assert (failed["failure"]["exit_code"], failed["failure"]["signal"]) == {
            "exit": (3, None), "kill": (None, 9), "segv": (None, 11), "hang": (None, None)}[fault]
    assert len(list((home.path / "logs").glob("pipeline_error_*.json"))) == 1
    same_as(reference, home)


def test_three_failures_without_progress_need_a_person(home: Home, reference: Home) -> None:
    home.configure(ONE, toy={"fault": "diverged", "fault_step": "toy_collect", "fault_times": 3})
    home.resume("--observe-only", "--config", home.config, expect=78)
    assert home.states()[-3:] == ["collecting", "diverged", "needs_attention"]
    picture = home.picture()
    assert picture["incident"]["message"] == "StepFailure: loss is nan"
    assert (picture["incident"]["hint"], picture["incident"]["failures"]) == ("lower the learning rate", 3)
    assert picture["steps"] == [{"name": "toy_collect", "status": "failed"}]

    before = home.rows(schema.history)
    assert "loss is nan; put it right and run `so8t resume --retry`" in home.resume(expect=78)
    assert home.rows(schema.history) == before  # it asks for a person as often as it is started

    home.resume("--retry")
    assert "a person says: try again" in [row["reason"] for row in home.history()]
    assert [a["status"] for a in home.rows(schema.attempt)] == ["failed"] * 3 + ["committed"]
    same_as(reference, home)


def test_progress_renews_the_budget(home: Home, reference: Home) -> None:
    """Two tries without progress are allowed; here every attempt fails, but each comes a few rounds further."""
    home.configure(TRAIN, toy={"every_checkpoint": True, "fault": "exception", "fault_after": 6, "fault_times": 9},
                   automation={"max_attempts_without_progress": 2})
    home.resume("--observe-only", "--config", home.config)
    statuses = [a["status"] for a in home.rows(schema.attempt, "toy_train")]
    assert statuses == ["failed"] * 3 + ["committed"]  # 20 rounds: 5, 10 and 15 are kept
    same_as(reference, home)


def test_failing_at_the_same_place_spends_the_budget(home: Home) -> None:
    """Checkpoints alone do not count: a step that repeats the same rounds makes no progress."""
    home.configure(TRAIN, toy={"fault": "exception", "fault_after": 6, "fault_times": 9},
                   automation={"max_attempts_without_progress": 2})
    home.resume("--observe-only", "--config", home.config, expect=78)
    assert [a["status"] for a in home.rows(schema.attempt, "toy_train")] == ["failed"] * 2


# Being stopped ------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_a_checkpoint_first(name: str, home: Home, reference: Home) -> None:
    """No checkpoint is due for three minutes: the one that is there was made because of the signal."""
    runner = train_slowly(home)
    assert home.rows(schema.checkpoint) == []
    runner.send_signal(signal.Signals[name])
    finish(runner, expect=75)
    (saved,) = home.rows(schema.checkpoint)
    assert saved["position"] >= 3
    last = home.history()[-1]
    assert (last["to_state"], last["reason"]) == ("training", f"stopped: {name}")
    (attempt,) = home.rows(schema.attempt, "toy_train")
    assert (attempt["status"], attempt["reason"]) == ("stopped", name)
    assert home.picture()["runner_alive"] is False

    hurry(home)
    assert f"toy_train, attempt 2, from checkpoint {saved['n']}" in home.resume()
    same_as(reference, home)


@posix
@pytest.mark.parametrize(("signals", "grace"), [(2, "60s"), (1, "300ms")])
def test_a_deaf_step_is_killed(signals: int, grace: str, home: Home) -> None:
    """At the second Ctrl+C at once, else when its time of grace is over; neither counts as a failure."""
    home.configure(ONE, toy={"fault": "deaf", "fault_step": "toy_collect"}, automation={"stop_grace": grace})
    runner = home.start("resume", "--config", home.config)
    pid = wait_for(lambda: child_of(home), "the child")
    time.sleep(0.3)  # past its start, into its deafness
    began = time.monotonic()
    for _ in range(signals):
        runner.send_signal(signal.SIGINT)
        time.sleep(0.3)
    finish(runner, expect=75)
    assert time.monotonic() - began < 10
    assert not alive(pid)
    assert [a["status"] for a in home.rows(schema.attempt)] == ["stopped"]
    assert home.rows(schema.ledger) == []


def state_of(home: Home) -> str | None:
    return home.run().state if home.database.exists() and home.rows(schema.run) else None


def child_of(home: Home) -> int | None:
    if not home.database.exists():
        return None
    return next((row["pid"] for row in home.rows(schema.attempt) if row["status"] == "running" and row["pid"]), None)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@posix
def test_a_killed_runner_takes_its_child_along_and_the_next_one_goes_on(home: Home, reference: Home) -> None:
    runner = train_slowly(home, checkpoint_interval="300ms")
    wait_for(lambda: home.rows(schema.checkpoint), "a checkpoint")
    pid = child_of(home)
    assert pid is not None
    runner.kill()
    runner.communicate()
    wait_for(lambda: not alive(pid), "the end of the child", 5)
    hurry(home)
    said = home.resume()  # at once: a dead owner on this machine does not keep the lease
    assert "toy_train, attempt 1, was cut off: its runner was killed" in said and "from checkpoint" in said
    assert [a["status"] for a in home.rows(schema.attempt, "toy_train")] == ["cut_off", "committed"]
    same_as(reference, home)


@posix
def test_a_frozen_runner_that_was_replaced_writes_nothing_more(home: Home, reference: Home) -> None:
    runner = train_slowly(home)
    freeze(runner, home.database)
    hurry(home)
    time.sleep(1.7)  # its lease ends
    home.resume()
    rows = [home.rows(table) for table in schema.metadata.sorted_tables]
    os.kill(runner.pid, signal.SIGCONT)
    assert "another runner took over" in finish(runner, expect=75)
    assert [home.rows(table) for table in schema.metadata.sorted_tables] == rows
    same_as(reference, home)


# Waiting ------------------------------------------------------------------------------------------------------------


def test_a_step_waits_for_room_and_goes_on_when_there_is(home: Home, reference: Home) -> None:
    home.configure(TRAIN, toy={"need_disk": 1 << 60})
    runner = home.start("resume", "--config", home.config)
    wait_for(lambda: state_of(home) == "waiting_for_resources", "waiting_for_resources")
    picture = home.picture()
    assert "free at" in picture["incident"]["message"] and "needed" in picture["incident"]["message"]
    assert picture["steps"][2] == {"name": "toy_train", "status": "pending"}
    assert home.rows(schema.attempt, "toy_train") == []  # nothing was started in vain
    home.override("toy.need_disk", 0)
    finish(runner, expect=0)
    states = home.states()
    assert states[states.index("waiting_for_resources") + 1] == "training"
    same_as(reference, home)


def test_a_clock_that_was_set_back_does_not_prolong_the_wait(home: Home) -> None:
    """The next try lies ten hours ahead, as it does when the clock was set back by ten hours."""
    home.configure(ONE, toy={"fault": "exception", "fault_step": "toy_collect"},
                   automation={"backoff": {"initial": "3s", "max": "6s"}})
    runner = home.start("resume", "--config", home.config)
    wait_for(lambda: state_of(home) == "backing_off", "backing_off")
    if sys.platform == "win32":
        runner.kill()
        runner.communicate()
    else:
        runner.terminate()
        finish(runner, expect=75)
    with home.store() as store, store.write() as connection:
        connection.execute(sa.update(schema.run).values(next_retry_at=time.time() + 36_000))
    began = time.monotonic()
    home.resume()
    assert time.monotonic() - began < 10 and home.run().state == "completed"


# Damage -------------------------------------------------------------------------------------------------------------


def break_file(path: Path) -> None:
    """One flipped bit, as a dying disk makes it."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove_file(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [break_file, remove_file])
def test_a_damaged_commit_is_put_aside_and_made_again(
    harm: Callable[[Path], None], stopped: Home, reference: Home, tmp_path: Path
) -> None:
    home = stopped.copy(tmp_path / "copy")
    broken = home.committed("toy_preprocess")
    harm(broken / "deep" / "more.bin")
    said = home.resume("--retry")
    assert "the commit of toy_preprocess is damaged and put aside" in said
    assert len(list(broken.parent.glob("1.damaged-*"))) == 1
    assert [a["status"] for a in home.rows(schema.artifact, "toy_preprocess")] == ["damaged", "live"]
    assert "roll_back" in [row["trigger"] for row in home.history()]
    # What was made from it is still right, for the same bytes came out: training goes on from its checkpoint.
    assert "toy_train, attempt 2, from checkpoint 12" in said
    same_as(reference, home)


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(
    stopped: Home, reference: Home, tmp_path: Path
) -> None:
    home = stopped.copy(tmp_path / "copy")
    folder = home.path / "state" / "runs" / home.run().id / "toy_train" / "checkpoints"
    assert sorted(int(p.name) for p in folder.iterdir()) == [8, 9, 10, 11, 12]  # the newest five
    break_file(folder / "12" / "state.txt")
    (folder / "11" / "manifest.json").unlink()
    said = home.resume("--retry")
    assert "checkpoint 12 of toy_train is damaged" in said and "from checkpoint 10" in said
    assert {c["n"] for c in home.rows(schema.checkpoint) if c["status"] == "damaged"} == {11, 12}
    same_as(reference, home)


def test_a_damaged_database_is_restored_from_its_backup(stopped: Home, reference: Home, tmp_path: Path) -> None:
    """The backup knows the commits, not the checkpoints since: training is done again, and comes out the same."""
    home = stopped.copy(tmp_path / "copy")
    home.database.write_bytes(b"not a database at all" * 1000)
    for suffix in ("-wal", "-shm"):
        Path(f"{home.database}{suffix}").unlink(missing_ok=True)
    # The backup does not know that the first attempt was made: it fails once more.
    said = home.resume("--observe-only", expect=78)
    assert "the database was damaged: kept as so8t.db.damaged-" in said and "restored from backups/" in said
    assert [a["n"] for a in home.rows(schema.artifact, "toy_collect")] == [1]  # not done again
    (row,) = home.rows(schema.lease)
    assert row["epoch"] > 1000  # whoever still ran on the damaged one can never write to this one
    home.resume("--retry")
    same_as(reference, home)


# Other settings, other runs -----------------------------------------------------------------------------------------


def test_rerun_takes_over_what_comes_before(reference: Home, tmp_path: Path) -> None:
    home = reference.copy(tmp_path / "copy")
    first = home.run().id
    said = home.so8t("rerun", "--from", "toy_evaluate", "--set", "toy.seed=2").stdout
    second = home.run()
    assert second.parent == first and second.state == "completed"
    assert "taken over although it would come out differently: toy_train: toy.seed 1 → 2" in said
    mine, theirs = home.identities(), reference.identities()
    assert [name for name in ALL if mine[name] == theirs[name]] == list(ALL[: ALL.index("toy_evaluate")])
    assert {a["step"] for a in home.rows(schema.attempt) if a["run_id"] == second.id} == set(ALL[-3:])
    assert {row.reused_from for name, row in home.live().items() if name in ALL[:5]} == {first}


def test_a_changed_setting_is_told_and_kept_out(stopped: Home, reference: Home, tmp_path: Path) -> None:
    """The run goes on with what it started with, and says what would be different."""
    home = stopped.copy(tmp_path / "copy")
    said = home.configure(toy={"seed": 2}, automation={"keep_checkpoints": 7}).resume("--retry")
    assert "toy_collect: toy.seed 1 → 2" in said
    assert "toy_preprocess: toy.seed 1 → 2, uses toy_collect, which changes" in said
    assert "so8t rerun --from toy_collect" in said
    same_as(reference, home)


def test_a_changed_setting_starts_a_run_if_asked_to(home: Home) -> None:
    """`on_config_change: rerun`: only what the change makes stale is done again, once."""
    home.configure(TRAIN, toy={"fault": "exception", "fault_step": "toy_train", "fault_times": 9},
                   automation={"max_attempts_without_progress": 1})
    home.resume("--observe-only", "--config", home.config, expect=78)
    first = home.run()
    home.configure((*TRAIN, "toy_integrate"), toy={"items": 5, "seed": 2}, automation={"on_config_change": "rerun"})
    said = home.resume("--config", home.config)
    assert "toy_collect: toy.seed 1 → 2" in said
    second = home.run()
    assert (second.parent, second.state) == (first.id, "completed")
    assert second.config["values"]["toy"]["seed"] == 2
    assert "nothing to do" in home.resume()  # the superseded run does not come back to life
    assert home.run().id == second.id
