"""Bad input and bad luck: one clear line, the right exit code, and nothing lost."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import CLI, TRAIN, Home, child_environment, fill, wait_for

from so8t_fsm import schema

linux = pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")


def complaint(home: Home, *args: str | Path, expect: int = 2, **env: str) -> str:
    """Run a command that must fail; returns the one line it says."""
    done = home.so8t(*args, expect=expect, **env)
    assert done.stdout == "" and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("so8t: ")
    return line


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    """A small disk of our own, where that is permitted."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "so8t-test", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounting a small disk is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# The configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "said"), [
    ("toy:\n\tseed: 1\n", "configs/toy.yaml:2:1: "),
    ("toy:\n  seed: 1\n  seed: 2\n", "configs/toy.yaml:3:3: the key 'seed' is already set on line 2"),
    ("toy: {items: -4}\n", "configs/toy.yaml:1:14: toy.items"),
    ("toy: {sed: 1}\n", "did you mean 'seed'"),
    ("tyo: {seed: 1}\n", "configs/toy.yaml:1:1: unknown section 'tyo', did you mean 'toy'"),
    ("toy: {items: many}\n", "configs/toy.yaml:1:14: toy.items"),
    ("toy: [1\n", "configs/toy.yaml:"),
    ("automation: {steps: [toy_colect]}\n", "did you mean 'toy_collect'"),
    ("automation: {steps: [toy_train, toy_collect]}\n", "can't come after 'toy_train'"),
    ("automation: {steps: [toy_collect], lease_seconds: 1s}\n", "must be at most half of lease_seconds"),
])
def test_a_mistake_in_the_file(text: str, said: str, home: Home) -> None:
    """Where it is, what it is; and no run begins."""
    if "automation" not in text:
        text += "automation: {steps: [toy_collect]}\n"
    home.config.write_text(text, encoding="utf-8")
    assert said in complaint(home, "resume", "--config", home.config)
    assert home.rows(schema.run) == []


@pytest.mark.parametrize(("arguments", "env", "said"), [
    (["--config", "configs/nothing.yaml"], {}, "no configuration at configs/nothing.yaml"),
    ([], {}, "no configuration at configs/complete_so8t_pipeline.yaml"),
    (["--config", "configs"], {}, "configs"),
    (["--config", "configs/toy.yaml", "--set", "toy.items"], {}, "--set toy.items: no value"),
    (["--config", "configs/toy.yaml", "--set", "toy.itms=3"], {}, "did you mean 'items'"),
    (["--config", "configs/toy.yaml"], {"SO8T__TOY__ITEMS": "-1"}, "environment SO8T__TOY__ITEMS"),
    (["--run", "r9"], {}, "there is no run 'r9'"),
])
def test_a_mistake_on_the_command_line(arguments: list[str], env: dict[str, str], said: str, home: Home) -> None:
    assert said in complaint(home, "resume", *arguments, **env)
    assert home.rows(schema.run) == []


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"toy: \x00\n", "toy: {seed: \u30fc}\n".encode("cp932")])
def test_a_file_that_is_no_text(text: bytes, home: Home) -> None:
    home.config.write_bytes(text)
    assert "configs/toy.yaml" in complaint(home, "resume", "--config", home.config)


def test_a_broken_file_does_not_harm_a_run_that_began(stopped: Home, tmp_path: Path) -> None:
    home = stopped.copy(tmp_path / "copy")
    before = home.rows(schema.history), home.identities()
    good = home.config.read_text()
    home.config.write_text("toy: {items: -4}\nautomation: {steps: [toy_collect]}\n")
    assert "toy.items" in complaint(home, "resume", "--retry")
    assert (home.rows(schema.history), home.identities()) == before
    home.config.write_text(good)
    home.resume("--retry")
    assert home.run().state == "completed"


def test_a_file_that_is_gone_does_not_stop_a_run_that_began(stopped: Home, tmp_path: Path) -> None:
    home = stopped.copy(tmp_path / "copy")
    home.config.unlink()
    home.resume("--retry")
    assert home.run().state == "completed"


# The state directory ------------------------------------------------------------------------------------------------


COMMANDS = [("resume",), ("state", "--json"), ("history",), ("pause",),
            ("force-transition", "training", "--reason", "x", "--yes"), ("rerun", "--from", "toy_train")]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_a_newer_state_is_refused_or_only_looked_at(command: tuple[str, ...], stopped: Home, tmp_path: Path) -> None:
    home = stopped.copy(tmp_path / "copy")
    with home.store() as store, store.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    before = home.database.read_bytes()
    if command[0] in ("state", "history"):
        home.so8t(*command, expect=None)  # looking may work, may refuse, but never changes anything
    else:
        assert "written by a newer so8t (its schema is 9999" in complaint(home, *command)
    assert home.database.read_bytes() == before


def test_a_damaged_database_without_a_backup_is_put_aside(home: Home) -> None:
    """Nothing can be known any more; the bytes are kept, and it can start anew."""
    home.database.parent.mkdir()
    home.database.write_bytes(b"damage" * 5000)
    assert "resume" in complaint(home, "state")
    assert "resume" in complaint(home, "pause")
    said = home.configure(("toy_collect",)).begin()
    assert "has no backup yet" in said and home.run().state == "completed"
    (aside,) = home.database.parent.glob("so8t.db.damaged-*")
    assert aside.read_bytes() == b"damage" * 5000


def test_a_second_resume_keeps_away(home: Home) -> None:
    home.configure(("toy_collect",), toy={"fault": "deaf", "fault_step": "toy_collect"})
    runner = home.start("resume", "--config", home.config)
    try:
        wait_for(lambda: home.database.exists() and home.rows(schema.attempt), "an attempt")
        before = home.rows(schema.history), home.rows(schema.run)
        said = home.resume("--config", home.config)
        assert f"a runner is already at work (process {runner.pid} on " in said and said.count("\n") == 1
        assert (home.rows(schema.history), home.rows(schema.run)) == before
    finally:
        runner.kill()
        runner.communicate()


@linux
def test_a_state_that_cannot_be_written(stopped: Home, tmp_path: Path) -> None:
    home = stopped.copy(tmp_path / "copy")
    with read_only(home.path / "state"):
        for command in (("resume", "--retry"), ("pause",)):
            line = complaint(home, *command)
            assert "so8t.db can't be written" in line and "permissions" in line
        assert home.picture()["state"] == "needs_attention"  # looking needs no writing
    home.resume("--retry")
    assert home.run().state == "completed"


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Forbid writing, also to root: a read-only view of the folder mounted over itself, else its permissions."""
    if os.geteuid() != 0:
        paths = [folder, *(p for p in folder.rglob("*"))]
        modes = [(p, p.stat().st_mode) for p in paths]
        for path, mode in modes:
            path.chmod(mode & ~0o222)
        try:
            yield
        finally:
            for path, mode in modes:
                path.chmod(mode)
        return
    for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,bind,ro", folder]):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"a read-only mount is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# A full disk --------------------------------------------------------------------------------------------------------


def state_of(home: Home) -> str:
    """The run's state, read without writing anything, a shared-memory file included."""
    connection = sqlite3.connect(f"{home.database.as_uri()}?mode=ro", uri=True)
    try:
        return str(connection.execute("SELECT state FROM run").fetchone()[0])
    finally:
        connection.close()


@linux
@pytest.mark.parametrize("leave", [0, 60_000])
def test_a_full_disk_stops_the_run_and_loses_nothing(leave: int, home: Home, reference: Home) -> None:
    """The disk fills up in mid-run: the run stops or waits, in words; with room again it goes on to the same end."""
    state = home.path / "state"
    with mounted(state, "size=72m"):  # a step that says nothing else asks for 64 MiB
        home.configure(TRAIN, toy={"every_checkpoint": True, "pause": 0.3}, resources={"min_free_disk": 0})
        runner = home.start("resume", "--config", home.config)
        wait_for(lambda: home.database.exists() and len(home.rows(schema.checkpoint)) >= 3, "three checkpoints")
        home.override("toy.pause", 0.0)
        ballast = fill(state / "ballast", leave)
        wait_for(lambda: runner.poll() is not None or state_of(home) == "waiting_for_resources", "an end or a pause")
        if runner.poll() is None:
            ballast.unlink()
        else:
            again = home.so8t("resume", expect=None)  # it is still full
            assert again.returncode in (2, 75) and "full" in again.stdout + again.stderr
            assert "Traceback" not in again.stdout + again.stderr
            ballast.unlink()
        out, err = runner.communicate(timeout=60)
        assert runner.returncode in (0, 75) and err in ("", "the lease could not be given back; it ends by itself\n")
        assert "full" in out or "No space left" in out
        home.resume()
        assert home.run().state == "completed"
        assert home.identities() == {name: reference.identities()[name] for name in TRAIN}
        assert [row["rev"] for row in home.history()] == list(range(1, home.run().rev + 1))


@linux
def test_too_little_room_is_waited_for(home: Home) -> None:
    with mounted(home.path / "state", "size=2m"):
        home.configure(("toy_collect",), resources={"min_free_disk": "1GB"})
        runner = home.start("resume", "--config", home.config)
        try:
            wait_for(lambda: home.database.exists() and home.rows(schema.run)
                     and home.run().state == "waiting_for_resources", "waiting_for_resources")
            incident = home.picture()["incident"]
            assert str(home.path / "state") in incident["message"] and "needed" in incident["message"]
        finally:
            runner.terminate()
            assert runner.wait(20) == 75
            runner.communicate()


# Names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["深層学習 の 実験 (新)\u3000ﾊﾝｶｸ", "100% of #1 & 'quotes' %41"])
def test_a_home_with_any_name(name: str, tmp_path: Path, reference: Home) -> None:
    home = Home(tmp_path / name).configure(toy={"fault": "exception", "fault_step": "toy_train", "fault_after": 3})
    home.begin()
    assert home.picture()["state"] == "completed"
    assert home.identities() == {step: reference.identities()[step] for step in TRAIN}
    assert "completed" in home.so8t("history").stdout
    assert home.database.exists() and len(list(home.path.glob("state/backups/*.db"))) == 3


@pytest.mark.parametrize("encoding", ["cp932", "ascii"])
def test_a_console_that_cannot_show_a_letter(encoding: str, stopped: Home, tmp_path: Path) -> None:
    """Old Japanese Windows consoles speak cp932: what they can't show becomes a question mark, not an end."""
    home = stopped.copy(tmp_path / "copy")
    done = subprocess.run(
        [*CLI, "--home", str(home.path), "state"], capture_output=True,
        env={**child_environment(), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert done.returncode == 0 and done.stderr == b"" and b"toy_train" in done.stdout
