"""Logs through the rules, the commands that do it, and the manual about them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from so8t_fsm.rules import load_rules
from so8t_fsm.rules.load import packaged_directory
from so8t_fsm.rules.model import RuleSet
from so8t_fsm.rules.scan import scan
from so8t_fsm.rules.selftest import run_tests
from so8t_fsm.rules.simulate import simulate
from so8t_fsm.states import FAILURES


@pytest.fixture(scope="module")
def rules() -> RuleSet:
    return load_rules([packaged_directory()])


# -- logs -------------------------------------------------------------------------------------------------------------


STORY = """2026-11-22T03:00:00.000Z idle -> collecting: the run begins
2026-11-22T03:00:01.000Z collecting -> collecting: collecting, attempt 1
2026-11-22T03:00:02.000Z [collecting#1] requests.exceptions.ConnectionError: ('Connection aborted.', x)
2026-11-22T03:00:03.000Z collecting -> training: collecting committed 3 files
2026-11-22T03:10:00.000Z [training#1] torch.OutOfMemoryError: CUDA out of memory.
2026-11-22T03:10:00.100Z [training#1] subprocess.CalledProcessError: Command 'x' returned non-zero exit status 1.
2026-11-22T03:10:01.000Z training -> out_of_memory: OutOfMemoryError: CUDA out of memory.
2026-11-22T03:20:00.000Z [training#2] torch.OutOfMemoryError: CUDA out of memory.
2026-11-22T03:20:01.000Z training -> out_of_memory: OutOfMemoryError: CUDA out of memory.
2026-11-22T03:29:00.000Z checkpoint 1 of training at 120
2026-11-22T03:30:00.000Z [training#3] ConnectionError: reset
2026-11-22T03:30:01.000Z training -> paused: stopped: pause by me
"""


def test_a_log_of_ours_gives_one_incident_for_each_failed_attempt(rules: RuleSet) -> None:
    found = list(scan(rules, io.BytesIO(STORY.encode()), "log"))
    said = [(i.state, i.event.step, i.event.attempt, i.event.line) for i in found]
    assert said[:2] == [("out_of_memory", "training", 1, 5), ("out_of_memory", "training", 2, 8)]
    assert "network_failed" not in [state for state, step, *_ in said if step == "collecting"]


def test_foreign_logs_are_cut_at_long_silence(rules: RuleSet) -> None:
    quiet = "all is well\n" * 500
    text = f"OSError: [Errno 28] No space left on device\n{quiet}httpx.ReadTimeout: x\nRuntimeError: x\n"
    assert [i.state for i in scan(rules, io.BytesIO(text.encode()), "log")] == ["disk_full", "network_failed"]


def test_simulation_keeps_ledgers_and_facts(rules: RuleSet) -> None:
    facts = {"training.batch_size": 4}
    whole = simulate(rules, io.BytesIO(STORY.encode()), "log", facts)
    story = [s for s in whole if s.incident.event.step == "training"]
    assert [(s.decision.attempt, s.facts["training.batch_size"]) for s in story[:2]] == [(1, 2), (2, 1)]


# -- commands ---------------------------------------------------------------------------------------------------------


MINE = """version: 1
rules:
  - id: my-rule
    title: mine
    state: disk_full
    match:
      x: {message|contains: no more paper}
    then: [restart_step]
    tests: [{name: t, given: {log: ink}, expect: {}}]
"""


def run(*args: str, home: Path | None = None) -> tuple[int, str, str]:
    import click
    from click.testing import CliRunner

    from so8t_fsm.cli import cli

    where = ("--home", str(home)) if home is not None else ()
    result = CliRunner().invoke(cli, [*where, *args], standalone_mode=False)
    code = result.exit_code
    if isinstance(result.exception, click.ClickException):
        return result.exception.exit_code, result.stdout, result.exception.format_message()
    assert result.exception is None, result.exception
    returned = result.return_value if isinstance(result.return_value, int) else code
    return returned or code, result.stdout, result.stderr


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("configs", "recovery_rules", "logs"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_scan_command(home: Path) -> None:
    path = home / "logs" / "complete_pipeline_x.log"
    path.write_text("2026-11-22T03:00:00.000Z fine\n")
    assert run("scan", home=home) == (0, "no incidents\n", "")
    path.write_text("2026-11-22T03:00:00.000Z fine\nRuntimeError: CUDA out of memory\n")
    code, out, _ = run("scan", "--json", home=home)
    found = json.loads(out)["incidents"]
    assert code == 1 and len(found) == 1
    assert {k: found[0][k] for k in ("rule", "state", "severity", "line", "text")} == {
        "rule": "cuda-out-of-memory", "state": "out_of_memory", "severity": "warning", "line": 2,
        "text": "RuntimeError: CUDA out of memory"}
    assert "reduce_batch_size" in found[0]["actions"]
    assert run("scan", str(home / "no.log"), home=home)[0] == 2


def test_lint_test_and_explain_commands(home: Path) -> None:
    mine = home / "recovery_rules" / "50-mine.yaml"
    mine.write_text(MINE)
    assert run("rules", "lint", home=home)[0] == 0
    code, out, _ = run("rules", "test", str(mine), home=home)
    assert code == 1 and "nothing was seen" in out and "1 tests, 1 failed" in out
    mine.write_text(mine.read_text().replace("log: ink", "log: no more paper"))
    assert run("rules", "test", str(mine), home=home)[0] == 0
    code, out, _ = run("rules", "explain", "my-rule", "--json", home=home)
    assert code == 0 and json.loads(out)["layer"] == "home"
    assert "did you mean 'my-rule'?" in run("rules", "explain", "my-rul", home=home)[2]
    mine.write_text(mine.read_text().replace("restart_step", "restart_stp"))
    code, out, _ = run("rules", "lint", "--json", home=home)
    assert code == 2 and "did you mean 'restart_step'?" in json.loads(out)["problems"][0]
    assert run("scan", home=home)[0] == 2


def test_simulate_command(home: Path) -> None:
    path = home / "old.log"
    path.write_text(STORY)
    code, out, _ = run("rules", "simulate", str(path), "--fact", "training.batch_size=4", "--json", home=home)
    first = json.loads(out)["incidents"][0]
    assert code == 0 and first["decision"]["rule"] == "cuda-out-of-memory"
    assert first["facts"]["training.batch_size"] == 2
    assert "--fact training.batch_size=" in run("rules", "simulate", str(path), home=home)[1]
    assert "NAME=VALUE" in run("rules", "simulate", str(path), "--fact", "x", home=home)[2]


# -- the manual -------------------------------------------------------------------------------------------------------


MANUAL = (Path(__file__).parents[1] / "docs" / "recovery.md").read_text(encoding="utf-8")


def test_the_manual_has_every_state_selector_and_key() -> None:
    from so8t_fsm.rules.schema import SELECTORS, RuleModel

    for state in FAILURES:
        assert f"| `{state}` |" in MANUAL
    for name in SELECTORS:
        assert f"`{name.replace('|', chr(92) + '|')}`" in MANUAL, name
    for name in RuleModel.model_fields:
        assert f"`{name}`" in MANUAL, name


def test_the_manuals_examples_work(tmp_path: Path) -> None:
    """Each is pasted as it stands into a home, linted and tested beside the shipped rules."""
    examples = [block for block in MANUAL.split("### Example ")[1:]]
    assert len(examples) == 3
    for i, block in enumerate(examples):
        lines = block.split("    version: 1\n", 1)[1].splitlines()
        body = ["version: 1"]
        for line in lines:
            if line and not line.startswith("    "):
                break
            body.append(line[4:])
        home = tmp_path / str(i)
        home.mkdir()
        (home / "05-example.yaml").write_text("\n".join(body) + "\n", encoding="utf-8")
        rules = load_rules([("packaged", packaged_directory()), ("home", home)])
        mine = [rule for rule in rules.rules if rule.layer == "home"]
        results = run_tests(rules, mine)
        assert mine and results and not [result for result in results if result.problem], results
