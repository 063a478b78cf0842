"""Which layer wins, and where each value says it is from."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from configuring import SECTIONS, Data, Training, complaint, load
from hypothesis import given, settings
from hypothesis import strategies as st

from so8t_fsm import config
from so8t_fsm.config import Config
from so8t_fsm.step import Settings

# --- layers ----------------------------------------------------------------------------------------------------------

def test_each_layer_beats_the_one_below(tmp_path: Path) -> None:
    found = load(
        tmp_path, "training:\n  batch_size: 2\n  learning_rate: 2e-5\n  name: f\n  ppo:\n    clip: 0.3\n",
        environ={"SO8T__TRAINING__LEARNING_RATE": "3e-5", "so8t__training__NAME": "e",
                 "SO8T__TRAINING__PPO__EPOCHS": "7", "SO8T_HOME": "/elsewhere"},
        sets=["training.name=s", "data.sources=[{name: a}]"], overrides={"training.ppo.clip": (0.5, "diverged")})
    assert found.values["training"] == {
        "batch_size": 2, "learning_rate": 3e-5, "name": "s", "shuffle": True, "optimizer": "adamw", "note": None,
        "ppo": {"clip": 0.5, "epochs": 7}}
    told = {k: v for k, v in found.provenance.items() if not v.startswith("default")}
    assert told == {
        "training.batch_size": "configs/my.yaml:2:3",
        "training.learning_rate": "environment SO8T__TRAINING__LEARNING_RATE",
        "training.name": "--set", "training.ppo.clip": "recovery rule diverged", "data.sources": "--set",
        "training.ppo.epochs": "environment SO8T__TRAINING__PPO__EPOCHS"}
    assert set(found.provenance) == set(config.flatten(found.values))


def test_extends_is_a_chain_and_each_file_keeps_its_own_places(tmp_path: Path) -> None:
    load(tmp_path, "training:\n  batch_size: 1\n  name: base\n  ppo: {clip: 0.1, epochs: 3}\n", name="base/根 元.yaml")
    load(tmp_path, "extends: ../base/根 元.yaml\ntraining:\n  name: middle\n", name="configs/middle.yaml")
    found = load(tmp_path, "extends: middle.yaml\ntraining:\n  ppo:\n    clip: 0.9\n")
    assert found.files == ("base/根 元.yaml", "configs/middle.yaml", "configs/my.yaml")
    assert found.values["training"]["ppo"] == {"clip": 0.9, "epochs": 3}
    assert [found.provenance[f"training.{key}"] for key in ("batch_size", "name", "ppo.clip", "ppo.epochs")] == [
        "base/根 元.yaml:2:3", "configs/middle.yaml:3:3", "configs/my.yaml:4:5", "base/根 元.yaml:4:20"]
    (tmp_path / "base" / "根 元.yaml").write_text("extends: ../configs/my.yaml\n")
    assert complaint(tmp_path, "extends: middle.yaml\n") == (
        "base/根 元.yaml:1:10: extends goes in a circle back to configs/my.yaml; remove one of the lines",)
    (tmp_path / "base" / "根 元.yaml").write_text("training:\n  batch_size: none\n")
    assert complaint(tmp_path, "extends: middle.yaml\n")[0].startswith("base/根 元.yaml:2:15: training.batch_size")


def test_a_section_whose_keys_are_commented_out_is_the_default(tmp_path: Path) -> None:
    assert load(tmp_path, "training:\n#  batch_size: 4\n").values["training"]["batch_size"] == 8


def test_lists_replace_and_free_mappings_merge(tmp_path: Path) -> None:
    load(tmp_path, "data:\n  sources: [{name: a}, {name: b}]\n  weights: {x: 1, Y: 2}\n", name="configs/base.yaml")
    found = load(tmp_path, "extends: base.yaml\ndata:\n  sources: [{name: c}]\n  weights: {x: 3}\n",
                 environ={"SO8T__DATA__WEIGHTS__Y": "4"})
    assert found.values["data"] == {
        "sources": [{"name": "c", "share": 1.0}], "places": [], "weights": {"x": 3.0, "Y": 4.0}}
    assert found.provenance["data.sources"] == "configs/my.yaml:3:3"
    assert found.provenance["data.weights.Y"] == "environment SO8T__DATA__WEIGHTS__Y"


@pytest.mark.parametrize(("text", "value"), [
    ("a", "a"), ("C:\\モデル #1: x", "C:\\モデル #1: x"), ("'7'", "7"), ('"a: b"', "a: b"), ("@x", "@x"), ("on", "on"),
])
def test_a_variable_is_one_scalar_whatever_it_holds(tmp_path: Path, text: str, value: str) -> None:
    assert load(tmp_path, "training:\n", environ={"SO8T__TRAINING__NAME": text}).values["training"]["name"] == value


def test_mistakes_in_variables_options_and_rules_name_them(tmp_path: Path) -> None:
    assert sorted(complaint(
        tmp_path, "training: {}\n",
        environ={"SO8T__TRAINING__BATCHSIZE": "4", "SO8T__TRAINING__BATCH_SIZE": "0", "SO8T__X": "1"},
        sets=["training.learning_rate", "training.nam=3", "training.name={a"],
        overrides={"training.ppo.clip": (9, "r1")},
    )) == [
        "--set training.learning_rate: no value; write it as --set section.key=value",
        "--set training.nam: unknown key 'nam' in training, did you mean 'name'?",
        "--set training.name: not a YAML value: a bracket is opened and never closed; close it",
        "environment SO8T__TRAINING__BATCHSIZE: unknown key 'batchsize' in training, did you mean 'batch_size'?",
        "environment SO8T__TRAINING__BATCH_SIZE: training.batch_size: 0 is not allowed: "
        "must be greater than or equal to 1",
        "environment SO8T__X: unknown section 'x'; known are automation, data, logging, notifications, "
        "resources, training",
        "recovery rule r1: training.ppo.clip: 9 is not allowed: must be less than 1",
    ]


def test_the_steps_that_are_named_bring_the_sections(tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []

    def sections(names: Any) -> dict[str, type[Settings]]:
        asked.append(tuple(names))
        return SECTIONS if "mine" in names else {}

    (tmp_path / "x.yaml").write_text("training: {batch_size: 3}\n")
    found = config.load(tmp_path / "x.yaml", sections, environ={"SO8T__AUTOMATION__STEPS": "[mine]"})
    assert asked[-1] == ("mine",) and found.values["training"]["batch_size"] == 3


LAYER = st.fixed_dictionaries({}, optional={
    ("training", "batch_size"): st.integers(1, 10**9),
    ("training", "learning_rate"): st.floats(1e-12, 1e12, allow_nan=False),
    ("training", "name"): st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=12),
    ("training", "shuffle"): st.booleans(),
    ("training", "ppo", "epochs"): st.integers(1, 99),
    ("data", "sources"): st.lists(
        st.fixed_dictionaries({"name": st.sampled_from("ab"), "share": st.floats(0, 1)}), max_size=2),
})


def nested(layer: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in layer.items():
        here = tree
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = value
    return tree


@settings(max_examples=60, deadline=None)
@given(parent=LAYER, child=LAYER, environ=LAYER, options=LAYER, rules=LAYER)
def test_the_last_layer_that_speaks_wins_and_is_named(
    parent: dict[Any, Any], child: dict[Any, Any], environ: dict[Any, Any], options: dict[Any, Any],
    rules: dict[Any, Any],
) -> None:
    with tempfile.TemporaryDirectory(prefix="設定 ") as folder:
        home = Path(folder)
        load(home, json.dumps({**nested(parent), "logging": {}}), name="configs/parent.yaml")
        found = load(
            home, json.dumps({"extends": "parent.yaml", **nested(child)}),
            environ={"SO8T__" + "__".join(path).upper(): json.dumps(value) for path, value in environ.items()},
            sets=[f"{'.'.join(path)}={json.dumps(value)}" for path, value in options.items()],
            overrides={".".join(path): (value, "r") for path, value in rules.items()})
    layers = {"configs/parent.yaml:": parent, "configs/my.yaml:": child, "environment SO8T__": environ,
              "--set": options, "recovery rule r": rules}
    flat = config.flatten(found.values)
    defaults = config.flatten({"data": Data().model_dump(mode="json"), "training": Training().model_dump(mode="json")})
    for key, default in defaults.items():
        path = tuple(key.split("."))
        label, value = "default", default
        for name, layer in layers.items():
            if path in layer:
                label, value = name, layer[path]
        assert flat[key] == value
        assert found.provenance[key].startswith(label)
    again = Config.from_json(found.to_json(), SECTIONS)
    assert (again.values, again.provenance) == (found.values, found.provenance)
    assert again.section("training") == found.section("training")
