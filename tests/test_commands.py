"""The commands: what they print, what they refuse, what they leave in the history, and how they exit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa
from conftest import ALL, CLI, ROOT, TRAIN, Home, child_environment, finish, wait_for

from so8t_fsm import __version__, schema
from so8t_fsm.cli import COMMANDS, cli
from so8t_fsm.service import operator
from so8t_fsm.states import STATES, TRIGGERS

STATE = {
    "run", "state", "step", "attempt", "rev", "epoch", "runner_alive", "progress", "checkpoint", "incident",
    "next_retry_at", "overrides", "steps",
}
"""The keys that a program may rely on."""


@pytest.fixture
def waiting(stopped: Home, tmp_path: Path) -> Home:
    """A copy of the home that waits for a person in mid-training."""
    return stopped.copy(tmp_path / "copy")


# Looking ------------------------------------------------------------------------------------------------------------


def test_state_says_the_facts(waiting: Home) -> None:
    waiting.override("toy.items", 20)
    facts = waiting.picture()
    assert facts.keys() >= STATE
    assert (facts["state"], facts["step"], facts["attempt"]) == ("needs_attention", "toy_train", 1)
    assert (facts["rev"], facts["epoch"], facts["runner_alive"]) == (len(waiting.history()), 1, False)
    assert facts["progress"].items() >= {"total": 20, "unit": "rounds", "eta_s": None}.items()
    checkpoint = facts["checkpoint"]
    assert (checkpoint["step"], checkpoint["n"], checkpoint["verified"]) == ("toy_train", 12, True)
    assert datetime.fromisoformat(checkpoint["committed_at"]).utcoffset() is not None
    assert facts["incident"]["state"] == "crashed" and facts["next_retry_at"] is None
    assert facts["overrides"] == [
        {"key": "toy.items", "value": 20, "was": None, "by": "a test", "at": "2025-01-01T09:00:00.000Z"}]
    assert facts["steps"] == [{"name": "toy_collect", "status": "committed"},
                              {"name": "toy_preprocess", "status": "committed"},
                              {"name": "toy_train", "status": "failed"}]


def test_state_of_a_living_run_has_an_eta(home: Home) -> None:
    home.configure(TRAIN, toy={"pause": 0.5}, automation={"heartbeat_seconds": 0.1})
    runner = home.start("resume", "--config", home.config)
    try:
        def facts_with_eta() -> dict[str, Any] | None:
            facts = home.picture()
            return facts if facts["step"] == "toy_train" and (facts["progress"] or {}).get("eta_s") else None

        facts = wait_for(facts_with_eta, "an eta")
        assert facts["runner_alive"] and facts["steps"][2] == {"name": "toy_train", "status": "running"}
        assert 0 < facts["progress"]["done"] < facts["progress"]["total"] == 20
        assert 0 < facts["progress"]["eta_s"] < 60
        assert "already at work" in home.resume()  # a second runner: nothing to do, exit 0
    finally:
        runner.kill()
        runner.communicate()


def test_state_before_any_run(home: Home) -> None:
    facts = json.loads(home.so8t("state", "--json").stdout)
    assert facts.keys() >= STATE and facts["run"] is None and facts["state"] == "idle"
    assert "no run yet" in home.so8t("state").stdout
    assert not home.database.exists()  # looking creates nothing


def test_state_loads_nothing_heavy(waiting: Home) -> None:
    """Nor does it take long: the slowest of its imports is the database's driver."""
    done = subprocess.run([sys.executable, "-X", "importtime", *CLI[1:], "--home", waiting.path, "state", "--json"],
                          env=child_environment(), capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "so8t_fsm" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "datasets", "alembic", "sqlalchemy", "pydantic", "rich"}
    assert not loaded & {"so8t_ops", "so8t_toy"}
    assert not [line for line in done.stderr.splitlines() if "|" not in line]


def test_state_for_a_person(waiting: Home) -> None:
    out = waiting.so8t("state").stdout
    for word in ("✓ toy_collect", "✗ toy_train", "needs_attention", "no runner", "/20 rounds",
                 "toy_train #12 at 12, verified", "crashed: RuntimeError: the toy broke"):
        assert word in out


def test_history_tells_the_story(waiting: Home) -> None:
    lines = waiting.so8t("history").stdout.splitlines()
    assert lines[0] == f"run {waiting.run().id}"
    assert re.fullmatch(r" {3}1  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  idle -> collecting +the run begins", lines[1])
    assert lines[-2].endswith("RuntimeError: the toy broke") and "training -> crashed" in lines[-2]
    assert waiting.so8t("history", "--last", "2").stdout.splitlines()[1:] == lines[-2:]
    rows = json.loads(waiting.so8t("history", "--json").stdout)
    assert [row["rev"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0].keys() >= {
        "rev", "at", "from_state", "to_state", "trigger", "step", "attempt", "who", "reason", "detail"}
    (run,) = json.loads(waiting.so8t("history", "--runs", "--json").stdout)
    assert (run["id"], run["state"]) == (waiting.run().id, "needs_attention")


def test_graph_draws_the_table_and_lights_the_state(waiting: Home, tmp_path: Path) -> None:
    mermaid = waiting.so8t("graph").stdout
    assert "needs_attention" in mermaid and all(state in mermaid for state in STATES)
    facts = json.loads(waiting.so8t("graph", "--json").stdout)
    assert facts["current"] == "needs_attention" and facts["states"] == list(STATES)
    assert {edge["trigger"] for edge in facts["edges"]} == set(TRIGGERS)
    waiting.so8t("graph", "--svg", tmp_path / "machine.svg")
    svg = (tmp_path / "machine.svg").read_text(encoding="utf-8")
    assert svg.lstrip().startswith(("<svg", "<?xml")) and "needs_attention" in svg
    lit = waiting.so8t("graph", SO8T_HOME="").stdout
    with waiting.store() as store, store.write() as connection:
        connection.execute(sa.update(schema.run).values(state="paused"))
    assert waiting.so8t("graph").stdout != lit


def test_config_show_says_where_a_value_comes_from(waiting: Home) -> None:
    command = ("config", "show", "toy", "--config", waiting.config, "--set", "toy.seed=5", "--json")
    shown = json.loads(waiting.so8t(*command, SO8T__TOY__ITEMS="7").stdout)
    assert shown["toy.seed"] == {"value": 5, "from": "--set"}
    assert shown["toy.items"] == {"value": 7, "from": "environment SO8T__TOY__ITEMS"}
    assert shown["toy.fault"]["value"] == "exception"
    assert shown["toy.fault"]["from"].startswith("configs/toy.yaml:")
    assert shown["toy.pause"] == {"value": 0.0, "from": "default"}
    assert not [key for key in shown if not key.startswith("toy.")]
    wrong = waiting.so8t("config", "show", "toy.sed", "--config", waiting.config, expect=2)
    assert "did you mean 'toy.seed'" in wrong.stderr


def test_doctor_names_every_check(waiting: Home) -> None:
    found = json.loads(waiting.so8t("doctor", "--config", waiting.path / "nothing.yaml", "--json", expect=2).stdout)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["configuration"]["status"] == "fail" and "nothing.yaml" in checks["configuration"]["found"]
    assert checks.keys() >= {"python", "home", "disk", "database", "llama.cpp", "autostart", "torch", "vram"}
    assert not found["ok"] and all(check["advice"] for check in checks.values() if check["status"] == "fail")


def test_init_makes_a_home_and_keeps_what_is_there(tmp_path: Path) -> None:
    home = Home(tmp_path / "new home")
    home.path.mkdir()
    (home.path / "configs").mkdir()
    (home.path / "configs" / "quickstart.yaml").write_text("mine: 1\n")
    made = json.loads(home.so8t("init", home.path, "--json").stdout)
    assert (home.path / "configs" / "quickstart.yaml").read_text() == "mine: 1\n"
    assert made["kept"] == [str(home.path / "configs" / "quickstart.yaml")]
    assert {Path(p).name for p in made["made"]} >= {"complete_so8t_pipeline.yaml", "rtx3060.yaml"}
    assert json.loads(home.so8t("state", "--json").stdout)["run"] is None


# Steering -----------------------------------------------------------------------------------------------------------


def test_force_transition_asks_first(waiting: Home) -> None:
    force = ("force-transition", "preprocessing", "--reason", "new data by hand")
    before = waiting.history()
    refused = waiting.so8t(*force, expect=130, text="n\n")
    assert refused.stderr.strip().splitlines()[-1] == "so8t: stopped" and waiting.history() == before
    agreed = waiting.so8t(*force, text="y\n")
    assert "needs_attention -> preprocessing (step toy_preprocess)" in agreed.stdout
    assert agreed.stdout.count("overrides: ") == 1
    row = waiting.history()[-1]
    assert (row["trigger"], row["from_state"], row["to_state"]) == ("force", "needs_attention", "preprocessing")
    assert (row["who"], row["reason"]) == (operator(), "new data by hand")
    assert isinstance(row["detail"]["overridden"], list)


def test_a_forced_move_is_audited_and_done_again(waiting: Home, reference: Home) -> None:
    """From needs_attention straight to completed's neighbour there is no edge: the row says so."""
    said = json.loads(waiting.so8t("force-transition", "collecting", "--reason", "again", "--yes", "--json").stdout)
    assert said["from"] == "needs_attention" and said["step"] == "toy_collect" and said["outcome"].startswith("done")
    assert waiting.history()[-1]["detail"] == {"overridden": said["overridden"]}
    assert waiting.picture()["steps"][0]["status"] == "pending"  # the commit is not taken for current any more
    story = waiting.so8t("history", "--last", "1").stdout
    assert "again" in story and f"({operator()})" in story
    waiting.resume()
    assert [a["status"] for a in waiting.rows(schema.artifact, "toy_collect")] == ["superseded", "live"]
    assert waiting.identities() == {name: reference.identities()[name] for name in TRAIN}


def test_what_was_made_from_other_data_is_forgotten(waiting: Home) -> None:
    """The same data again keeps the checkpoints made from it; other data do not."""
    waiting.override("toy.seed", 2)
    waiting.so8t("force-transition", "preprocessing", "--reason", "other data", "--yes")
    said = waiting.resume()
    assert "toy_train, attempt 2\n" in said and "from checkpoint" not in said


@pytest.mark.parametrize(("arguments", "said"), [
    (["trainning", "--reason", "x", "--yes"], "no state is called 'trainning', did you mean 'training'?"),
    (["training", "--reason", " ", "--yes"], "--reason must say something"),
    (["training", "--yes"], "--reason"),
    (["uploading", "--reason", "x", "--yes"], "no step of this run works in uploading"),
    (["idle", "--reason", "x", "--yes"], "can't be idle again"),
    (["completed", "--reason", "x", "--yes"], "completed needs what toy_train would have committed"),
    (["training", "--step", "toy_trian", "--reason", "x", "--yes"], "did you mean 'toy_train'?"),
    (["training", "--step", "toy_collect", "--reason", "x", "--yes"], "'toy_collect' does not work in training"),
    (["training", "--run", "r9", "--reason", "x", "--yes"], "there is no run 'r9'"),
])
def test_force_transition_refuses(arguments: list[str], said: str, waiting: Home) -> None:
    before = waiting.rows(schema.history)
    done = waiting.so8t("force-transition", *arguments, expect=2)
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert waiting.rows(schema.history) == before


def test_completed_without_its_commits_must_be_wanted_twice(waiting: Home) -> None:
    waiting.so8t("force-transition", "completed", "--reason", "good enough", "--yes", "--force-missing")
    facts = waiting.picture()
    assert facts["state"] == "completed" and facts["steps"][2]["status"] == "skipped"
    assert "without the commit of toy_train" in waiting.history()[-1]["detail"]["overridden"]
    assert facts["finished_at"] is not None
    refused = waiting.so8t("force-transition", "training", "--reason", "no", "--yes", expect=2)
    assert "is completed and stays so" in refused.stderr


def test_a_living_runner_is_steered(home: Home, reference: Home) -> None:
    """It stops its step with a checkpoint, takes the move up, and goes on; then it is paused the same way."""
    home.configure(TRAIN, toy={"pause": 0.5}, automation={"heartbeat_seconds": 0.1})
    runner = home.start("resume", "--config", home.config)

    def rounds() -> float:
        found = [r["progress"]["done"] for r in home.rows(schema.attempt, "toy_train") if r["progress"]]
        return max(found, default=0) if home.run().step == "toy_train" else 0

    wait_for(lambda: home.database.exists() and home.rows(schema.run) and rounds() >= 2, "training")
    said = home.so8t("force-transition", "preprocessing", "--reason", "while it runs", "--yes").stdout
    assert "done: training -> preprocessing" in said
    forced = next(row for row in home.history() if row["trigger"] == "force")
    stopped_for = home.history()[forced["rev"] - 2]["reason"]
    assert stopped_for == f"stopped: force by {operator()}" and forced["who"] == operator()
    wait_for(lambda: len(home.rows(schema.attempt, "toy_train")) == 2, "training again")
    assert "done: paused" in home.so8t("pause", "--reason", "I want to play").stdout
    assert "`so8t resume` goes on" in finish(runner, expect=75)
    assert home.picture()["state"] == "paused" and home.history()[-1]["reason"] == "I want to play"
    assert {r["outcome"] for r in home.rows(schema.command)} == {"done: training -> preprocessing", "done: paused"}

    assert "is paused" in home.resume("--unattended", expect=75)  # autostart leaves a paused run paused
    home.override("toy.pause", 0.0)
    home.resume()
    assert "from checkpoint" in " ".join(row["reason"] for row in home.history())
    assert home.identities() == {name: reference.identities()[name] for name in TRAIN}


def test_a_pause_after_the_last_step_can_be_resumed(reference: Home, tmp_path: Path) -> None:
    """The run was on its way through states in which no step of it works."""
    home = reference.copy(tmp_path / "copy")
    with home.store() as store, store.write() as connection:
        connection.execute(sa.update(schema.run).values(state="paused", finished_at=None))
    home.resume()
    assert home.run().state == "completed"


def test_pause_without_a_runner(waiting: Home, reference: Home, tmp_path: Path) -> None:
    assert "nothing to pause: the run is needs_attention" in waiting.so8t("pause", expect=2).stdout
    done = reference.copy(tmp_path / "done")
    assert "refused" in done.so8t("pause", expect=2).stdout
    empty = Home(tmp_path / "empty").configure()
    assert "there is no run yet" in empty.so8t("pause", expect=2).stderr


def test_rerun_refuses_what_is_not_there(waiting: Home, home: Home) -> None:
    assert "did you mean 'toy_train'" in waiting.so8t("rerun", "--from", "toy_trian", expect=2).stderr
    assert "there is no run 'r9'" in waiting.so8t("rerun", "--from", "toy_train", "--run", "r9", expect=2).stderr
    assert "there is no run yet" in home.so8t("rerun", "--from", "toy_train", expect=2).stderr
    assert len(waiting.rows(schema.run)) == 1


def test_resume_prints_json_lines(home: Home) -> None:
    home.configure(("toy_collect",))
    lines = [json.loads(line) for line in home.resume("--config", home.config, "--json").splitlines()]
    entered = [line for line in lines if line["event"] == "entered"]
    assert [line["rev"] for line in entered] == list(range(1, len(entered) + 1))
    assert entered[-1]["state"] == "completed"
    assert entered[-1].keys() >= {"at", "run", "state", "step", "attempt", "reason"}


def test_new_and_run_choose_the_run(reference: Home, tmp_path: Path) -> None:
    home = reference.copy(tmp_path / "copy").configure(("toy_collect",))
    first = home.run().id
    home.resume("--new", "--config", home.config)
    assert len(home.rows(schema.run)) == 2 and home.run().id != first
    assert f"run {first} is completed" in home.resume("--run", first)
    assert "give only one" in home.so8t("resume", "--new", "--run", first, expect=2).stderr


# Every command ------------------------------------------------------------------------------------------------------


def every_command() -> Iterator[tuple[str, click.Command]]:
    def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for inner in command.list_commands(context):
                found = command.get_command(context, inner)
                assert found is not None
                yield from walk(f"{name} {inner}".strip(), found)

    for name in COMMANDS:
        found = cli.get_command(click.Context(cli), name)
        assert found is not None
        yield from walk(name, found)


@pytest.mark.parametrize("name", [name for name, _ in every_command()])
def test_every_command_has_help_and_an_example(name: str) -> None:
    command = dict(every_command())[name]
    text = command.help or ""
    assert text.splitlines()[0].endswith("."), "the first line is one sentence"
    assert re.search(rf"Example: so8t {re.escape(name)}\b", text), "and an example shows how it is used"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} is not explained"


def test_commands_that_print_facts_print_json() -> None:
    """`--json` wherever facts are printed: everywhere but in groups."""
    for name, command in every_command():
        if not isinstance(command, click.Group):
            assert "as_json" in {parameter.name for parameter in command.params}, name


def test_help_version_and_typing_errors(home: Home) -> None:
    assert home.so8t("--version").stdout.strip() == f"so8t, version {__version__}"
    text = home.so8t("--help").stdout
    assert all(name in text for name in COMMANDS) and "Exit codes" in text
    wrong = home.so8t("resum", expect=2).stderr
    assert "did you mean 'resume'?" in wrong and len(wrong.splitlines()) == 1
    assert len(home.so8t("state", "--jsno", expect=2).stderr.splitlines()) == 1


def test_the_home_is_found(tmp_path: Path, stopped: Home) -> None:
    """`--home`, else SO8T_HOME, else the working directory if it holds configs/, else the checkout."""
    def run(cwd: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*CLI, *args, "state", "--json"], cwd=cwd, env=child_environment(**env), text=True,
                              capture_output=True)

    mine = json.loads(run(stopped.path).stdout)["run"]
    assert mine == stopped.run().id
    assert json.loads(run(tmp_path, SO8T_HOME=str(stopped.path)).stdout)["run"] == mine
    (tmp_path / "configs").mkdir()
    assert json.loads(run(tmp_path).stdout)["run"] is None
    assert json.loads(run(tmp_path, "--home", str(stopped.path), SO8T_HOME=str(ROOT)).stdout)["run"] == mine
    gone = run(tmp_path, "--home", str(tmp_path / "gone"))
    assert gone.returncode == 2 and "is not a directory" in gone.stderr and len(gone.stderr.splitlines()) == 1


def test_a_pipe_that_closes_does_not_end_the_run(home: Home) -> None:
    """`so8t resume | head -1`: the reader leaves, the run goes on."""
    home.configure(("toy_collect", "toy_preprocess"))
    runner = home.start("resume", "--config", home.config)
    assert runner.stdout is not None and runner.stderr is not None
    runner.stdout.readline()
    runner.stdout.close()
    assert runner.wait(30) == 0
    assert runner.stderr.read() == "" and home.run().state == "completed"


def test_all_is_the_order_of_the_states() -> None:
    """The toys' order, on which the tests here lean, is the machine's."""
    assert len(set(ALL)) == len(ALL) == 8
