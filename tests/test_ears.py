"""The logs of other programs: what stands in them while an attempt runs is heard, and who cannot hear says so."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from conftest import Home, finish, wait_for
from faults import FaultyHome

from so8t_fsm import schema


def test_a_line_in_another_programs_log_explains_an_end_without_a_word(tmp_path: Path) -> None:
    """What was written before the attempt is no evidence; rotation loses nothing; a last line needs no end."""
    home = FaultyHome(tmp_path / "home").faults("faulty_gate")
    log = home.path / "logs" / "converter.log"
    log.parent.mkdir()
    log.write_text("Segmentation fault (core dumped)\n", encoding="utf-8")
    runner = home.start("resume", "--config", home.config)

    def gate(attempt: int) -> Path:
        found = home.path / f"gate-{attempt}"
        wait_for(found.exists, f"attempt {attempt}")
        return found

    gate(1).unlink()
    second = gate(2)
    with log.open("a", encoding="utf-8") as out:
        out.write("converting block 17 of 32\nOSError: [Errno 28] No space left on device\n")
    log.rename(log.with_name("converter.log.1"))
    log.write_text("giving up", encoding="utf-8")
    wait_for(lambda: [row for row in home.rows(schema.event) if row["text"].startswith("OSError")], "it to be heard")
    second.unlink()
    third = gate(3)
    log.write_text("NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus", encoding="utf-8")
    third.unlink()
    finish(runner, expect=75, seconds=60)

    assert home.told() == [("faulty_gate", "crashed", "unknown"), ("faulty_gate", "disk_full", "disk-full"),
                           ("faulty_gate", "device_failed", "gpu-hardware")]
    event = home.incidents()[1]["detail"]["incident"]["event"]
    assert (event["file"], event["line"], event["attempt"]) == ("logs/converter.log.1", 3, 2)
    # Each was stored once, with the attempt that it belongs to.
    stored = [(row["attempt"], row["text"][:7]) for row in home.rows(schema.event) if (row["data"] or {}).get("file")]
    assert stored == [(2, "OSError"), (3, "NVRM: X")]


def test_what_another_program_cries_about_is_no_failure_of_a_step_that_succeeds(home: Home) -> None:
    home.configure(toy={"every_checkpoint": True, "pause": 0.05})
    runner = home.start("resume", "--config", home.config)
    log = home.path / "logs" / "other.log"
    wait_for(lambda: log.parent.exists() and home.database.exists() and home.rows(schema.checkpoint), "a checkpoint")
    log.write_text("RuntimeError: CUDA out of memory\n", encoding="utf-8")
    finish(runner, expect=0)
    assert home.rows(schema.incident) == [] and home.run().state == "completed"


@pytest.mark.skipif(sys.platform == "win32", reason="a directory with an open log can't be renamed there")
def test_state_says_who_is_blind(home: Home) -> None:
    home.configure(toy={"every_checkpoint": True, "pause": 0.3})
    runner = home.start("resume", "--config", home.config)
    logs, away = home.path / "logs", home.path / "away"
    wait_for(lambda: home.database.exists() and home.rows(schema.checkpoint), "a checkpoint")
    (sees,) = home.picture()["watchers"]
    assert (sees["name"], sees["blind"]) == ("runner", None) and sees["way"]
    assert "does not see" not in home.so8t("state").stdout
    logs.rename(away)
    blind = wait_for(lambda: [one for one in home.picture()["watchers"] if one["blind"]], "it to be blind")
    assert "logs: No such file or directory" in blind[0]["blind"]
    assert "the runner does not see the logs" in " ".join(home.so8t("state", COLUMNS="200").stdout.split())
    away.rename(logs)
    wait_for(lambda: [one for one in home.picture()["watchers"] if one["blind"] is None], "it to see again")
    runner.kill()
    runner.communicate()
    assert home.picture()["watchers"] == []  # nobody watches, and nobody says so
    assert os.path.exists(logs)


def test_the_monitor_says_it_too(home: Home) -> None:
    home.begin()
    assert home.picture()["watchers"] == []
    watching = home.start("monitor", "--json")
    try:
        found = wait_for(lambda: home.picture()["watchers"], "the monitor to watch")
        assert [(one["name"], one["blind"]) for one in found] == [("monitor", None)]
    finally:
        watching.terminate()
        watching.communicate()


def test_a_state_of_an_older_version_is_shown(home: Home) -> None:
    """``so8t state`` migrates nothing."""
    home.begin()
    with home.store() as store, store.write() as connection:
        schema.watcher.drop(connection)
    assert home.picture()["watchers"] == []
