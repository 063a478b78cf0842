"""``so8t recover``: shown, asked, done, once; and what it changed can be traced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from conftest import Home
from stage import QUICK, Stage, begin, files_below, rule, rule_set
from test_recovery_journal import copied, killed_at, outcome, points_of

from so8t_fsm import lease, runs, schema, service
from so8t_fsm.cli import cli
from so8t_fsm.cli.common import guarded
from so8t_fsm.cli.recover import recover as command
from so8t_fsm.commands import CommandRefused

SPENT = rule("halve", ["reduce_batch_size", "restart_step"], max_attempts=1)
SHIPPED = {"id": "main-memory", "title": "halve", "state": "out_of_memory", "then": ["reduce_batch_size", "restart_step"],
           "match": {"it": {"exception": "MemoryError"}, "condition": "it"}, "max_attempts": 1, "backoff": {"initial": 0.01}}
"""The same rule as the command line reads it: it replaces a shipped one."""


def so8t(stage: Stage, *args: str, text: str = "", expect: int | None = 0) -> Result:
    """The command line in this process."""
    found = CliRunner().invoke(cli, ["--home", str(stage.home), *args], input=text, standalone_mode=False)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert expect is None or found.return_value == expect, found.output
    return found


@pytest.fixture
def stuck(tmp_path: Path) -> Stage:
    """A run whose budget for this failure is spent: it needs a person."""
    (tmp_path / "home" / "recovery_rules").mkdir(parents=True)
    (tmp_path / "home" / "recovery_rules" / "mine.yaml").write_text(json.dumps({"version": 1, "rules": [SHIPPED]}))
    stage = Stage(tmp_path / "home", rule_set(tmp_path / "rules", {**SHIPPED})).build(training={"batch_size": 16})
    stage.fail(MemoryError("no room"))
    assert stage.answer() == "backing_off"
    with stage.handle() as handle:
        handle.move("retry", "due", known={"retry_due": True}, next_retry_at=None)
        begin(handle)
    stage.fail(MemoryError("no room"))
    assert stage.answer() == "needs_attention" and stage.overrides()["training.batch_size"] == 8
    return stage


def everything(stage: Stage) -> Any:
    # That rule files lint is noted by whoever reads them first.
    files = {name: size for name, size in files_below(stage.home).items()
             if "so8t.db" not in name and name != "state/rules-checked"}
    return files, [stage.rows(table) for table in schema.metadata.sorted_tables]


def test_a_dry_run_shows_the_plan_and_writes_nothing(stuck: Stage) -> None:
    before = everything(stuck)
    shown = so8t(stuck, "recover", "--dry-run").output
    assert "out_of_memory: MemoryError: no room" in shown and "rule main-memory" in shown
    assert "  reduce_batch_size: training.batch_size 8 → 4, training.gradient_accumulation_steps 2 → 4" in shown
    told = json.loads(so8t(stuck, "recover", "--dry-run", "--json").output)
    assert told["done"] is None and [entry["action"] for entry in told["plan"]] == ["reduce_batch_size", "restart_step"]
    assert everything(stuck) == before


def test_it_asks_first(stuck: Stage) -> None:
    with pytest.raises(click.Abort):
        so8t(stuck, "recover", text="n\n")
    assert stuck.run().state == "needs_attention" and stuck.overrides()["training.batch_size"] == 8


def test_it_does_what_it_showed_and_the_run_goes_on(stuck: Stage) -> None:
    said = so8t(stuck, "recover", text="y\n").output
    assert "Do it?" in said and said.rstrip().endswith("`so8t resume` goes on")
    assert stuck.run().state == "training" and stuck.overrides() == {
        "training.batch_size": 4, "training.gradient_accumulation_steps": 4}
    last = stuck.rows(schema.history)[-1]
    assert (last["from_state"], last["reason"], last["who"]) == (
        "needs_attention", "so8t recover, rule main-memory", service.operator())
    assert [row["status"] for row in stuck.rows(schema.incident)][-2:] == ["escalated", "recovering"]
    with pytest.raises(CommandRefused, match="nothing to recover from"):
        so8t(stuck, "recover", "--yes")
    # The budgets began anew, and this was the first of them: the next failure asks a person again.
    with stuck.handle() as handle:
        begin(handle)
    stuck.fail(MemoryError())
    assert stuck.answer() == "needs_attention" and (stuck.run().ledgers or {})["recovery"]["total"] == 2


def test_json_is_one_document(stuck: Stage) -> None:
    told = json.loads(so8t(stuck, "recover", "--yes", "--json").output)
    assert told["escalate"] is None and [entry["status"] for entry in told["done"]] == ["done", "done"]
    assert told["run"] == stuck.run().id and told["rule"] == "main-memory"


def test_what_was_changed_can_be_traced(stuck: Stage) -> None:
    so8t(stuck, "recover", "--yes")
    state = json.loads(so8t(stuck, "state", "--json").output)
    (found,) = [row for row in state["overrides"] if row["key"] == "training.batch_size"]
    assert (found["value"], found["was"], found["by"]) == (4, 16, "so8t recover, rule main-memory")
    assert found["at"].endswith("Z")
    config = so8t(stuck, "config", "show", "training.batch_size", "--run", stuck.run().id).output
    assert "4" in config and "so8t recover, rule main-memory, was 16" in config


def test_a_recovered_step_is_not_stale(stuck: Stage) -> None:
    """What recovery changed is no change of the file, so nothing is done again because of it."""
    with stuck.handle() as handle:
        step = next(step for step in handle.steps if step.name == "training")
        with handle.fenced() as tx:
            read = handle.commits.settings_of(step, handle.values())
            tx.add_artifact(handle.run.id, "training", 9, "runs/x", "f" * 64, {}, read)
        live = handle.commits.live(handle.run.id)
        file, own = handle.config.values, runs.overrides(handle.store, handle.run.id)
        assert [str(stale) for stale in runs.stale_steps(handle.run, live, file)] != []
        assert runs.stale_steps(handle.run, live, runs.overlaid(file, own)) == []


# Refusals -----------------------------------------------------------------------------------------------------------


def test_not_beside_a_living_runner(stuck: Stage) -> None:
    with stuck.handle() as handle:
        held = handle.lease
        for args in (("--yes",), ("--dry-run",)):
            with pytest.raises(CommandRefused, match="recovers by itself"):
                so8t(stuck, "recover", *args)
        with handle.store.read() as connection:
            holder = lease.holder(connection)
        assert holder is not None and holder.epoch == held.epoch  # it was not even disturbed


def test_nothing_is_made_in_an_empty_home(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    with pytest.raises(CommandRefused, match="there is no run yet"):
        so8t(Stage(tmp_path, rule_set(tmp_path / "rules", SPENT)), "recover")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("args", "says"), [(("--run", "nope"), "no run 'nope'"), ((), "training: there is nothing")])
def test_only_a_failure_can_be_recovered_from(tmp_path: Path, args: tuple[str, ...], says: str) -> None:
    stage = Stage(tmp_path / "home", rule_set(tmp_path / "rules", SPENT)).build()
    with pytest.raises(CommandRefused, match=says):
        so8t(stage, "recover", *args)


def test_a_refusal_is_one_line_and_exit_2(home: Home) -> None:
    done = home.so8t("recover", expect=2)
    assert done.stderr == "so8t: there is no run yet; `so8t resume` starts one\n" and done.stdout == ""
    assert guarded and command.name == "recover"


def test_a_failure_that_no_rule_knew_until_a_person_wrote_one(tmp_path: Path) -> None:
    """The rules of now are asked, about what was kept of the attempt."""
    stage = Stage(tmp_path / "home", rule_set(tmp_path / "rules", rule("other", ["restart_step"], "KeyError"))).build(
        automation={"max_attempts_without_progress": 1})

    class OddError(Exception): ...

    stage.fail(OddError("the flux was off"))
    assert stage.answer() == "needs_attention"
    mine = {"id": "odd", "title": "odd", "state": "crashed", "then": ["restart_step"], "max_attempts": 1,
            "match": {"it": {"exception": "OddError"}, "condition": "it"}}
    (stage.home / "recovery_rules").mkdir()
    (stage.home / "recovery_rules" / "00-mine.yaml").write_text(json.dumps({"version": 1, "rules": [mine]}))
    told = json.loads(so8t(stage, "recover", "--yes", "--json").output)
    assert told["rule"] == "odd" and stage.run().state == "training"


def test_an_action_that_is_stuck_asks_again_and_is_tried_anew(tmp_path: Path) -> None:
    """A path that is missing: exit 78; once it is there, the same command goes through."""
    mine = {**SHIPPED, "then": ["verify_paths", "restart_step"]}
    stage = Stage(tmp_path / "home", rule_set(tmp_path / "rules", mine))
    (tmp_path / "home" / "recovery_rules").mkdir(parents=True)
    (tmp_path / "home" / "recovery_rules" / "mine.yaml").write_text(json.dumps({"version": 1, "rules": [mine]}))
    stage.build(data={"sources": [{"kind": "files", "path": "texts", "licence": "MIT"}]})
    stage.fail(MemoryError())
    told = json.loads(so8t(stage, "recover", "--yes", "--json", expect=78).output)
    assert "not there" in told["escalate"] and stage.run().state == "needs_attention"
    (tmp_path / "home" / "texts").mkdir()
    so8t(stage, "recover", "--yes")
    assert stage.run().state == "training"
    assert [row["status"] for row in stage.rows(schema.action)] == ["failed", "done", "done"]


# Killed -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    place = (QUICK or tmp_path) / f"so8t-recover-{os.getpid()}"
    yield place
    shutil.rmtree(place, ignore_errors=True)


def by_hand(stage: Stage) -> None:
    """``so8t recover --yes``, unless an earlier one has come to its end."""
    if stage.run().state == "needs_attention":
        so8t(stage, "recover", "--yes", "--json")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_point_by_hand(stuck: Stage, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once begun it is only brought to its end: the batch is halved once, whoever was killed how often."""
    monkeypatch.setattr("so8t_fsm.rulebook.load_rules", lambda layers, **_: stuck.rules)
    calm = copied(stuck, folder / "home")
    names = points_of(calm, by_hand)
    expected = outcome(calm)
    expected.pop("files")  # each of them has a log
    assert expected["overrides"]["training.batch_size"][1] == 4 and len(names) > 10
    for number in range(1, len(names) + 1):
        stage = copied(stuck, folder / "home")
        killed_at(stage, number, by_hand)
        by_hand(stage)
        found = outcome(stage)
        found.pop("files")
        assert found == expected, f"point {number}: {names[number - 1]}"


def test_a_runner_killed_in_mid_recovery_is_finished_by_hand(stuck: Stage) -> None:
    """What its decision has done already is not done again."""
    from so8t_fsm import answer

    with stuck.handle() as handle:
        handle.move("resume", "again", incident=None)
        begin(handle)
    with stuck.handle() as handle, handle.store.write() as connection:
        connection.execute(schema.run.update().values(ledgers=None))
    stuck.fail(MemoryError())

    class Killed(BaseException): ...

    def dying(*_: Any, **__: Any) -> None:
        raise Killed

    with stuck.handle() as handle, pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer.Answer, "_wait", dying)
        with pytest.raises(Killed):
            answer.Answer(handle).give()
    assert stuck.overrides()["training.batch_size"] == 4 and stuck.run().state == "out_of_memory"
    so8t(stuck, "recover", "--yes")
    assert stuck.overrides()["training.batch_size"] == 4 and stuck.run().state == "backing_off"


def test_rules_that_break_while_nobody_looked_leave_the_shipped_ones(tmp_path: Path) -> None:
    """They linted when the runner started; at the first failure the file of a moment ago is gone."""
    from so8t_fsm.rulebook import Rulebook

    own = tmp_path / "recovery_rules" / "mine.yaml"
    own.parent.mkdir()
    (tmp_path / "state").mkdir()
    own.write_text(json.dumps({"version": 1, "rules": [SHIPPED]}))
    said: list[str] = []
    assert Rulebook(tmp_path, said.append).current().rule("main-memory").max_attempts == 1  # type: ignore[union-attr]
    book = Rulebook(tmp_path, said.append)
    own.write_text("version: 1\nrulez: []\n")
    assert book.current().rule("main-memory").max_attempts == 3  # type: ignore[union-attr]
    assert book.current() is book.current() and len(said) == 1 and "the shipped ones answer" in said[0]
