"""The vocabulary of actions, and those that change settings: what each says it would do is what it does, once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from acting import planned
from hypothesis import given
from hypothesis import strategies as st
from stage import Stage, rule, rule_set

from so8t_fsm import recovery, runs, schema
from so8t_fsm.actions import ACCUMULATION, vocabulary
from so8t_fsm.attempt import Attempt
from so8t_fsm.rules.vocabulary import ACTIONS


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "home", rule_set(tmp_path / "rules", rule("any", ["restart_step"]))).build()


def test_every_action_of_the_rules_is_there() -> None:
    assert set(vocabulary()) == set(ACTIONS)


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
