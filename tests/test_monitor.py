"""The monitor: one incident an attempt, told once, whoever dies; and the journal it writes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from conftest import Home, wait_for
from monitoring import CASCADE, FULL, OOM, RUN, Heard, a_run, look, shipped_rules, tell, write

from so8t_fsm import journal, schema
from so8t_fsm.cli import cli
from so8t_fsm.cli.monitor import facts
from so8t_fsm.events import Event, describe, exception_event
from so8t_fsm.monitor import QUIET, Monitor
from so8t_fsm.rules.prefilter import Prefilter
from so8t_fsm.store import Store
from so8t_fsm.tail import Mark

pytestmark = pytest.mark.usefixtures("rules_read_once")


# Incidents ----------------------------------------------------------------------------------------------------------


def test_many_lines_of_an_attempt_are_one_incident(opened: Store, home: Home) -> None:
    a_run(opened, ("training", 1, "running"), ("training", 2, "running"))
    tell(home, "training", 1, "step 100 loss 0.5", CASCADE, OOM, CASCADE, "Retrying in 1s [Retry 1/5].")
    tell(home, "training", 2, FULL)
    heard = look(opened, home)
    assert heard.short() == [("incident", "out_of_memory", "training", 1), ("incident", "disk_full", "training", 2)]
    kept = heard.incidents[0][1]
    assert (kept.run_id, kept.status) == (RUN, "open")
    assert facts(kept)["line"] == 3 and facts(kept)["file"] == f"logs/complete_pipeline_{RUN}.log"
    assert facts(kept)["text"] == OOM
    with opened.read() as connection:
        told = journal.events_of(connection, RUN, "training", 1)
    assert [event.text for event in told] == [CASCADE, OOM, CASCADE]
    assert {round(event.at or 0) for event in told} == {1795341600}, "the line says when"
    assert [event for event, *_ in look(opened, home).short()] == ["open", "open"], "in another process it is known"


def test_a_root_that_comes_later_takes_over(opened: Store, home: Home) -> None:
    a_run(opened, ("training", 1, "running"))
    tell(home, "training", 1, CASCADE)
    first = look(opened, home)
    tell(home, "training", 1, OOM)
    heard = look(opened, home)
    assert first.short() == [("incident", "subprocess_failed", "training", 1)]
    assert heard.short()[1:] == [("reranked", "out_of_memory", "training", 1)]
    assert heard.incidents[1][1].id == first.incidents[0][1].id
    tell(home, "training", 1, CASCADE)
    assert [event for event, *_ in look(opened, home).short()] == ["open"], "a cascade changes nothing"
    assert len(home.rows(schema.incident)) == 1


def test_an_attempt_that_came_through_had_no_incident(opened: Store, home: Home) -> None:
    a_run(opened, ("training", 1, "running"), ("training", 2, "committed"))
    tell(home, "training", 1, OOM)
    tell(home, "training", 2, OOM)
    assert look(opened, home).short() == [("incident", "out_of_memory", "training", 1)]
    with opened.write() as connection:
        connection.execute(sa.update(schema.attempt).values(status="committed"))
    heard = look(opened, home)
    assert heard.short() == [("open", "out_of_memory", "training", 1), ("withdrawn", "out_of_memory", "training", 1)]
    (row,) = home.rows(schema.incident)
    assert row["status"] == "withdrawn" and row["closed_at"] is not None
    tell(home, "training", 1, OOM)
    assert look(opened, home).short() == []


def test_what_is_tried_again_is_taken_back(opened: Store, home: Home) -> None:
    """A program loses its connection, says that it tries again, and at last that it gives up."""
    lost = "Error while downloading from https://hub/a: peer closed connection"
    write(home, "fetch.log", "begin", lost)
    assert look(opened, home).short() == [("incident", "network_failed", None, None)]
    write(home, "fetch.log", "Trying to resume download...")
    assert look(opened, home).short()[1:] == [("withdrawn", "network_failed", None, None)]
    write(home, "fetch.log", lost, "Trying to resume download...", "Retrying in 2s")
    assert look(opened, home).short() == []
    write(home, "fetch.log", lost, "Max retries exceeded.")
    assert look(opened, home).short() == [("incident", "network_failed", None, None)]
    with opened.read() as connection:
        assert [one.status for one in journal.incidents_of(connection, None, None, None, "fetch.log")] == ["withdrawn", "open"]


@pytest.mark.parametrize("status", ["recovering", "recovered", "escalated", "withdrawn"])
def test_an_incident_in_other_hands_is_left_alone(opened: Store, home: Home, status: str) -> None:
    a_run(opened, ("training", 1, "failed"))
    with opened.write() as connection:
        kept = journal.open_incident(
            connection, RUN, "training", 1, state="stalled", rule="x", severity="info", detail={})
        journal.set_status(connection, kept.id, status)
    tell(home, "training", 1, OOM)
    heard = look(opened, home)
    assert [event for event, *_ in heard.short()] == (["open"] if status == "recovering" else [])
    (row,) = home.rows(schema.incident)
    assert (row["state"], row["status"]) == ("stalled", status)


def test_what_the_machine_says_itself_is_no_news(opened: Store, home: Home) -> None:
    a_run(opened, ("training", 1, "running"))
    write(home, f"complete_pipeline_{RUN}.log", f"2026-11-22 10:00:00.123Z training -> out_of_memory: {OOM}",
          f"2026-11-22 10:00:00.123Z WARNING {FULL}")
    assert look(opened, home).short() == []


def test_a_run_of_another_computer_is_known_by_its_log(opened: Store, home: Home) -> None:
    tell(home, "training", 1, CASCADE, OOM, run="20261122-999999-ffff")
    tell(home, "training", 1, FULL, run="20261122-888888-eeee")
    heard = look(opened, home)
    assert sorted(heard.short()) == [
        ("incident", "disk_full", "training", 1), ("incident", "out_of_memory", "training", 1)]
    assert {kept.run_id for _, kept in heard.incidents} == {None}


def test_a_log_of_no_run_has_one_incident_until_it_is_quiet(opened: Store, home: Home) -> None:
    write(home, "train.log", "epoch 1", OOM, CASCADE)
    write(home, "other.log", FULL)
    heard = look(opened, home)
    assert sorted(heard.short()) == [("incident", "disk_full", None, None), ("incident", "out_of_memory", None, None)]
    write(home, "train.log", FULL)
    assert all(event == "open" for event, *_ in look(opened, home).short())
    with opened.write() as connection:
        for row in journal.live_incidents(connection):
            connection.execute(sa.update(schema.incident).where(schema.incident.c.id == row.id).values(
                opened_at=1.0, detail={**row.detail, "last_at": time.time() - QUIET - 1}))
    assert sorted(event for event, *_ in look(opened, home).short()) == ["observed", "observed", "open", "open"]
    write(home, "train.log", FULL)
    assert look(opened, home).short() == [("incident", "disk_full", None, None)]


def test_what_repeats_for_ever_does_not_fill_the_disk(opened: Store, home: Home) -> None:
    a_run(opened, ("training", 1, "running"))
    for _ in range(3):
        tell(home, "training", 1, *[OOM] * 150)
        look(opened, home)
    assert len(home.rows(schema.event)) == 200
    assert len(home.rows(schema.incident)) == 1


def test_secrets_stay_out_of_the_database(opened: Store, home: Home) -> None:
    secret = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
    a_run(opened, ("uploading", 1, "running"))
    tell(home, "uploading", 1, "huggingface_hub.errors.HfHubHTTPError: 401 Client Error: Unauthorized for url: "
         f"https://user:{secret}@huggingface.co/api (Authorization: Bearer {secret})")
    assert [kept.state for _, kept in look(opened, home).incidents] == ["hub_refused"]
    stored = json.dumps([home.rows(schema.event), home.rows(schema.incident)], default=str)
    assert secret not in stored and "401 Client Error" in stored


# Whoever dies -------------------------------------------------------------------------------------------------------


def lines_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Everything a process prints from now on, as it comes."""
    found: list[dict[str, Any]] = []
    assert process.stdout is not None
    stream = process.stdout
    threading.Thread(target=lambda: found.extend(json.loads(line) for line in stream), daemon=True).start()
    return found


def watch_for_ever(home: Home, ready: Any) -> None:
    with home.store() as store:
        Monitor(store, home.path, Heard()).watch(lambda: bool(ready.set()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a quick start")
def test_killed_again_and_again_it_loses_and_doubles_nothing(home: Home) -> None:
    attempts = 60
    Prefilter(shipped_rules()).wanted(b"loads numpy, which every child would have to")
    (home.path / "logs").mkdir()
    with home.store() as store:
        a_run(store, *[("training", n, "running") for n in range(1, attempts + 1)])
    dice = random.Random(7)
    written = threading.Event()

    def work() -> None:
        for n in range(1, attempts + 1):
            tell(home, "training", n, "step 1", CASCADE, OOM, "step 2")
            time.sleep(0.1)
        written.set()

    writer = threading.Thread(target=work, daemon=True)
    writer.start()
    fork, kills = multiprocessing.get_context("fork"), 0
    while not written.is_set() or kills < 10:
        ready = fork.Event()
        process = fork.Process(target=watch_for_ever, args=(home, ready))
        process.start()
        assert ready.wait(30)
        time.sleep(dice.uniform(0.0, 0.8))
        process.kill()
        process.join()
        kills += 1
    assert home.rows(schema.event), "not all was left to the last one"
    with home.store() as store:
        look(store, home)
    rows = home.rows(schema.incident)
    assert [(row["attempt"], row["state"]) for row in sorted(rows, key=lambda row: row["attempt"])] == [
        (n, "out_of_memory") for n in range(1, attempts + 1)]
    events = sorted((row["attempt"], row["data"]["line"]) for row in home.rows(schema.event))
    assert events == [(n, 4 * n - k) for n in range(1, attempts + 1) for k in (2, 1)]


def test_two_monitors_share_the_lines(home: Home) -> None:
    (home.path / "logs").mkdir()
    with home.store() as store:
        a_run(store, *[("training", n, "running") for n in range(1, 21)])
    both = [home.start("monitor", "--json") for _ in range(2)]
    try:
        heard = [lines_of(process) for process in both]
        wait_for(lambda: all(any(fact["event"] == "watching" for fact in one) for one in heard), "both to watch")
        for n in range(1, 21):
            tell(home, "training", n, CASCADE, OOM)
            time.sleep(0.02)
        wait_for(lambda: len([fact for one in heard for fact in one if fact["event"] == "incident"]) >= 20, "all")
    finally:
        for process in both:
            process.terminate()
    assert [process.wait(10) for process in both] == [0, 0]
    assert len(home.rows(schema.event)) == 40
    assert {row["attempt"]: row["state"] for row in home.rows(schema.incident)} == dict.fromkeys(
        range(1, 21), "out_of_memory")
    assert len(home.rows(schema.incident)) == 20


def test_marks_are_not_moved_by_two(opened: Store) -> None:
    one = Mark("a.log", "1", "x-y", 10, 2, "utf-8", 1.0)
    further = Mark("a.log.1", "1", "x-z", 20, 3, "utf-8", 2.0)
    with opened.write() as connection:
        journal.save_marks(connection, "logs", {}, {"1": one})
    with opened.write() as connection:
        journal.save_marks(connection, "logs", {"1": one}, {"1": further})
    for stale in ({}, {"1": one}):
        with pytest.raises(journal.Overtaken), opened.write() as connection:
            journal.take_in(connection, "logs", stale, {"1": further}, [(None, Event("log", text="x"))])
    with opened.read() as connection:
        assert journal.load_marks(connection, "logs") == [further]
        assert journal.events_of(connection, None, None, None) == []


def test_it_watches_beside_a_runner(home: Home) -> None:
    """Neither keeps the other from writing, and the runner's incident of the attempt is the monitor's."""
    home.configure(("toy_collect", "toy_preprocess", "toy_train"), toy={"pause": 0.1})
    monitor = home.start("monitor", "--json")
    heard = lines_of(monitor)
    try:
        wait_for(lambda: any(fact["event"] in ("watching", "blind") for fact in heard), "it to look")
        home.begin()
        assert home.run().state == "completed"
    finally:
        monitor.terminate()
    assert monitor.wait(10) == 0
    assert not [fact for fact in heard if fact["event"] == "incident"], "nothing went wrong"
    assert home.rows(schema.log_mark), "and it read"


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_name_that_is_no_text(opened: Store, home: Home) -> None:
    with open(os.fsencode(home.path / "logs") + b"/\xff\xfe.log", "w", encoding="utf-8") as out:
        out.write(f"{OOM}\n")
    assert look(opened, home).short() == [("incident", "out_of_memory", None, None)]
    assert look(opened, home).short() == [("open", "out_of_memory", None, None)]
    assert len(home.rows(schema.event)) == 1


# The command --------------------------------------------------------------------------------------------------------


def test_the_command_once(home: Home) -> None:
    (home.path / "logs").mkdir()
    assert "no incident is open" in home.so8t("monitor", "--once").stdout
    write(home, "train.log", OOM)
    done = home.so8t("monitor", "--once", expect=1)
    assert "out_of_memory" in done.stdout and "logs/train.log:1" in done.stdout
    told = json.loads(home.so8t("monitor", "--once", "--json", expect=1).stdout)
    (one,) = told["incidents"]
    assert (one["state"], one["status"], one["line"], told["blind"]) == ("out_of_memory", "open", 1, None)


def test_blindness_is_never_health(home: Home) -> None:
    done = home.so8t("monitor", "--once", expect=1)
    assert "blind" in done.stdout and "no incident" not in done.stdout
    assert json.loads(home.so8t("monitor", "--once", "--json", expect=1).stdout)["blind"]
    process = home.start("monitor", "--interval", "1s", "--json")
    heard = lines_of(process)
    try:
        wait_for(lambda: heard, "it to speak")
        (home.path / "logs").mkdir()
        write(home, "train.log", OOM)
        wait_for(lambda: heard[-1]["event"] == "incident", "the incident")
    finally:
        process.terminate()
    assert process.wait(10) == 0
    assert [fact["event"] for fact in heard] == ["blind", "watching", "incident"]


@pytest.mark.parametrize(("interval", "seconds"), [("5", 5.0), ("300ms", 0.3), ("1h30m", 5400.0)])
def test_intervals(home: Home, interval: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(Monitor, "once", lambda self: given.append(self.interval) or [])
    done = CliRunner().invoke(
        cli, ["--home", str(home.path), "monitor", "--once", "--interval", interval], catch_exceptions=False)
    assert given == [seconds] and done.exit_code == 0


@pytest.mark.parametrize("interval", ["soon", "0s", "-5m", "2d"])
def test_intervals_that_are_none(home: Home, interval: str) -> None:
    done = CliRunner().invoke(cli, ["--home", str(home.path), "monitor", "--once", "--interval", interval])
    assert done.exit_code == 2 and "--interval" in done.stderr
    assert not home.database.exists()


def test_a_database_that_is_busy_is_waited_for(opened: Store, home: Home) -> None:
    """What can't be stored is said, and stored later; nothing is lost."""
    heard = Heard()
    monitor = Monitor(opened, home.path, heard)
    opened.engine.dispose()
    sa.event.listen(opened.engine, "connect", lambda dbapi, _: dbapi.execute("PRAGMA busy_timeout=50"))
    write(home, "train.log", OOM)
    with contextlib.closing(sqlite3.connect(home.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monitor.once()
        assert monitor.blind is not None and "locked" in monitor.blind and heard.incidents == []
    monitor.once()
    assert monitor.blind is None and [kept.state for _, kept in heard.incidents] == ["out_of_memory"]


# Secrets ------------------------------------------------------------------------------------------------------------


def test_an_exception_is_kept_without_secrets_and_within_bounds(opened: Store) -> None:
    try:
        raise ValueError("Bearer abcdefghijkl " + "x" * 100_000 + "\0\ud800")
    except ValueError as error:
        record = describe(error)
    with opened.write() as connection:
        journal.add_event(connection, None, exception_event(record, "training", 1, 5.0))
    with opened.read() as connection:
        (kept,) = journal.events_of(connection, None, "training", 1)
    assert kept.exception is not None and kept.exception["type"] == "ValueError" and kept.at == 5.0
    assert "abcdefghijkl" not in json.dumps(kept.to_json()) and len(kept.text) <= 4000
    assert len(json.dumps(kept.to_json())) < 40_000


def test_showing_goes_through_the_bare_reader(opened: Store, home: Home) -> None:
    a_run(opened, ("training", 1, "running"))
    tell(home, "training", 1, CASCADE, OOM)
    look(opened, home)
    with opened.reader() as reader:
        (shown,) = journal.show_incidents(reader, RUN, statuses=journal.LIVE)
        assert (shown["state"], shown["detail"]["count"]) == ("out_of_memory", 2)
        assert journal.show_incidents(reader, "other") == journal.show_incidents(reader, statuses=["recovered"]) == []
        assert [row["text"] for row in journal.show_events(reader, RUN, "training", 1)] == [CASCADE, OOM]


def test_the_same_on_every_database(store: Store, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    a_run(store, ("training", 1, "running"))
    place = Home(tmp_path)
    tell(place, "training", 1, CASCADE, OOM)
    assert look(store, place).short() == [("incident", "out_of_memory", "training", 1)]
    tell(place, "training", 1, "\0 half", OOM)
    assert look(store, place).short() == [("open", "out_of_memory", "training", 1)]
    with store.reader() as reader:
        assert journal.show_incidents(reader)[0]["detail"]["count"] == 3
