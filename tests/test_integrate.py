"""The integrating step: what it refuses, how it stops and repeats, what it needs, and what llama.cpp thinks of it."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from conftest import ROOT, child_environment
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny_phi3 import SIZES, TEXTS, divergence, file_of, integrate, logits, make_training

from so8t_fsm import artifacts
from so8t_fsm.step import GiB, StepFailure
from so8t_ops.export.layout import metadata, rope_factors, tensor_name
from so8t_ops.export.settings import ConversionSettings
from so8t_ops.export.weights import Weights
from so8t_ops.integrate import Integrate
from so8t_ops.model.load import load_base, load_tokenizer

PHI_35: dict[str, Any] = {
    "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 262144,
    "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 48, "short_factor": [1.0] * 48},
}
"""Phi-3.5-mini's configuration, as transformers 4 wrote it."""


def keys_of(config: dict[str, Any]) -> dict[str, Any]:
    found = metadata(config, name="Phi-3.5", kind="f16", license_id="mit", author="", languages=())
    return {key: value.value for key, value in found.items()}


def copied(training: Path, target: Path) -> Path:
    shutil.copytree(training, target)
    return target


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, training: Path) -> Path:
    return integrate(tmp_path_factory.mktemp("home"), training)[0]


# -- LongRoPE and configurations --------------------------------------------------------------------------------------

def test_phi_35_gets_the_keys_that_llama_cpp_expects() -> None:
    assert keys_of(PHI_35) == {
        "general.architecture": "phi3", "general.type": "model", "general.name": "Phi-3.5", "general.file_type": 1,
        "general.quantization_version": 2, "general.license": "mit", "phi3.context_length": 131072,
        "phi3.rope.scaling.original_context_length": 4096, "phi3.embedding_length": 3072,
        "phi3.feed_forward_length": 8192, "phi3.block_count": 32, "phi3.attention.head_count": 32,
        "phi3.attention.head_count_kv": 32, "phi3.attention.layer_norm_rms_epsilon": 1e-5,
        "phi3.rope.dimension_count": 96, "phi3.rope.freq_base": 10000.0, "phi3.attention.sliding_window": 262144,
        "phi3.rope.scaling.attn_factor": pytest.approx(1.190238, abs=1e-6)}


def test_configurations_of_transformers_5_and_the_first_phi_3_mean_the_same() -> None:
    four = {key: value for key, value in PHI_35.items() if key not in ("rope_scaling", "rope_theta")}
    five = four | {"rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "long_factor": [2.0] * 48,
        "short_factor": [1.0] * 48, "original_max_position_embeddings": 4096}}
    first = PHI_35 | {"rope_scaling": PHI_35["rope_scaling"] | {"type": "su"}}
    assert keys_of(five) == keys_of(first) == keys_of(PHI_35)
    assert rope_factors(five) == rope_factors(first) == {
        "rope_factors_long.weight": [2.0] * 48, "rope_factors_short.weight": [1.0] * 48}
    plain = four | {"original_max_position_embeddings": 131072, "sliding_window": None}
    assert "phi3.rope.scaling.attn_factor" not in keys_of(plain) and rope_factors(plain) == {}
    assert keys_of(plain)["phi3.attention.sliding_window"] == 0
    part = five | {"rope_parameters": five["rope_parameters"] | {"partial_rotary_factor": 0.5, "attention_factor": 1.5}}
    assert keys_of(part)["phi3.rope.dimension_count"] == 48
    assert keys_of(part)["phi3.rope.scaling.attn_factor"] == 1.5


@pytest.mark.parametrize(("change", "words"), [
    ({"model_type": "llama"}, "a model of type 'llama' is not a Phi-3"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE of type 'linear'"),
    ({"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 48, "short_factor": [1.0] * 3}},
     "RoPE's short_factor has 3 values, not 48")])
def test_other_models_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(StepFailure, match=words) as caught:
        config = PHI_35 | change
        keys_of(config), rope_factors(config)
    assert caught.value.state == "data_invalid" and caught.value.hint and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "lm_head.bias", "visual.patch.weight"])
def test_tensors_that_no_phi_3_has_are_refused(name: str) -> None:
    with pytest.raises(StepFailure, match="no tensor of a Phi-3"):
        tensor_name(name)


# -- bad input --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("wrong", [
    {"name": "SO8T-tiny"}, {"name": "phi-3/x"}, {"name": "phi-3\n"}, {"name": "phi-3 "}, {"types": ["q4_k_m"]},
    {"types": []}, {"types": ["f16", "f16"]}, {"shard_size": "much"}, {"shard_size": "0GB"}])
def test_settings_refuse(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ConversionSettings.model_validate(wrong)


def break_config(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))


def break_pieces(base: Path) -> None:
    described = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    described["model"]["vocab"]["zzz"] = len(described["model"]["vocab"]) + 11
    (base / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")


@pytest.mark.parametrize(("change", "words"), [
    (break_config, "type 'llama' is not a Phi-3"),
    (break_pieces, "'zzz' in tokenizer.json and None in tokenizer.model"),
    (lambda base: (base / "tokenizer.model").unlink(), "tokenizer.model is missing")])
def test_a_base_that_cannot_be_converted_is_refused_before_the_merge(
    training: Path, tmp_path: Path, change: Any, words: str,
) -> None:
    broken = copied(training, tmp_path / "training")
    change(broken / "base")
    with pytest.raises(StepFailure, match=words) as caught:
        integrate(tmp_path, broken)
    assert caught.value.state == "data_invalid" and caught.value.hint and "\n" not in str(caught.value)
    assert not list((tmp_path / "state").rglob("merged"))


def spoil(path: Path, ending: str, value: float) -> str:
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith(ending))
    tensors[name].view(-1)[5] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return name


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_value_that_f16_has_no_room_for_is_named(training: Path, tmp_path: Path) -> None:
    large = copied(training, tmp_path / "training")
    name = spoil(large / "base" / "model.safetensors", "gate_up_proj.weight", 70000.0)
    with pytest.raises(StepFailure, match=f"{name} holds 70000, and the largest f16 is 65504") as caught:
        integrate(tmp_path / "f16", large)
    assert "bf16" in caught.value.hint
    assert integrate(tmp_path / "bf16", large, types=["bf16", "q8_0"])[0]


@pytest.mark.parametrize("folder", ["base", "ppo"])
def test_values_that_are_no_numbers_are_refused(training: Path, tmp_path: Path, folder: str) -> None:
    bad = copied(training, tmp_path / "training")
    file, ending = ("model", "embed_tokens.weight") if folder == "base" else ("adapter_model", "lora_B.weight")
    spoil(bad / folder / f"{file}.safetensors", ending, math.nan)
    with pytest.raises(StepFailure, match="no number|can't be merged") as caught:
        integrate(tmp_path, bad)
    assert caught.value.state == "data_invalid" and "\n" not in str(caught.value)


# -- stopping, repeating, what it takes -------------------------------------------------------------------------------

@pytest.mark.parametrize("after", [2, 7, 22])
def test_a_stop_between_tensors_leaves_nothing_and_the_next_attempt_is_the_same(
    training: Path, out: Path, tmp_path: Path, after: int,
) -> None:
    seen = 0

    def stop(_: Any) -> bool:
        nonlocal seen
        seen += 1
        return seen >= after

    stopped, _ = integrate(tmp_path, training, stop_when=stop)
    assert stopped is None and not (tmp_path / "state/runs/local/integrating/1").exists()
    again, _ = integrate(tmp_path, training, attempt=2)
    assert artifacts.Manifest.load(again).files == artifacts.Manifest.load(out).files


def test_progress_ends_where_it_said(training: Path, tmp_path: Path) -> None:
    _, records = integrate(tmp_path, training, types=["f16", "q8_0"])
    last = [record for record in records if record["unit"] == "tensors" and not record["note"]][-1]
    assert last["done"] == last["total"] == 2 * 2 * 15


AGAIN = """
import sys
from pathlib import Path
from tiny_phi3 import integrate
print(integrate(Path(sys.argv[1]), Path(sys.argv[2]))[0])
"""


def test_another_process_makes_the_same_bytes(training: Path, out: Path, tmp_path: Path) -> None:
    environment = child_environment(PYTHONHASHSEED="4711", OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'tests'}"
    home = tmp_path / "elsewhere, 別の場所"
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, str(home), str(training)], env=environment, capture_output=True, text=True,
        encoding="utf-8", timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    other = Path(done.stdout.splitlines()[-1])
    assert artifacts.Manifest.load(other).to_bytes() == artifacts.Manifest.load(out).to_bytes()


def test_one_tensor_is_in_memory_at_a_time(training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[weakref.ref[Any]] = []
    alive, plain = [], Weights.get

    def get(self: Weights, name: str) -> Any:
        alive.append(sum(old() is not None for old in given))
        array = plain(self, name)
        given.append(weakref.ref(array))
        return array

    monkeypatch.setattr(Weights, "get", get)
    integrate(tmp_path, training, types=["f32", "q8_0"])
    assert len(alive) == 5 * 15 and set(alive) == {0}  # two files written and read, and the certificate


def test_needs_follow_the_size(training: Path, tmp_path: Path) -> None:
    def needs(base: str | None = None, **conversion: Any) -> tuple[float, float]:
        config = {"conversion": conversion} | ({"model": {"base": base}} if base else {})
        found = Integrate().needs(config, tmp_path, tmp_path / "out")
        return found.disk[tmp_path / "out"] / 3.82e9, (found.ram - GiB) / 3.82e9

    disk, ram = needs("owner/Phi-3.5", types=["f16", "q8_0"])
    assert 4 + 2 + 34 / 32 < disk < 1.1 * (4 + 2 + 34 / 32) and 4 < ram < 4.4
    assert needs("owner/Phi-3.5", merge_dtype="bfloat16")[1] < 2.2
    mine, _ = integrate(tmp_path / "home", training, types=["f32", "q8_0"])
    size = sum(path.stat().st_size for path in mine.rglob("*") if path.is_file()) / 3.82e9
    assert size < needs(str(training / "base"), types=["f32", "q8_0"])[0] < needs(types=["f32", "q8_0"])[0] < 0.1


# -- llama.cpp itself -------------------------------------------------------------------------------------------------

@pytest.mark.skipif(
    not (find_spec("llama_cpp") or find_spec("cyllama")), reason="no llama.cpp here: neither llama_cpp nor cyllama")
def test_llama_cpp_agrees_with_transformers(tmp_path: Path) -> None:
    # The heads are as wide as Phi-3.5's: 96 channels.
    sizes = SIZES.model_copy(update={"hidden_size": 768, "heads": 8, "context_length": 131072})
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": 4096, "long_factor": [1.0 + k / 16 for k in range(48)],
        "short_factor": [1.0 + k / 96 for k in range(48)]}
    training = make_training(
        tmp_path / "training", sizes, rope_parameters=rope, original_max_position_embeddings=4096)
    out, _ = integrate(tmp_path, training)
    fields, tokenizer = gguf.GGUFReader(file_of(out)).fields, load_tokenizer(out / "merged")
    assert fields["phi3.rope.scaling.attn_factor"].contents() == pytest.approx(1.190238, abs=1e-6)
    texts = [*TEXTS, *(tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True) for text in TEXTS)]
    ids = np.random.default_rng(3).integers(3, 420, 96).tolist()
    (tmp_path / "request.json").write_text(json.dumps({"ids": ids, "texts": texts}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "llama_probe.py", file_of(out), tmp_path / "request.json",
         tmp_path / "answer.json"], capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    assert answer["tokens"] == [tokenizer(text)["input_ids"] for text in texts]
    ours, theirs = np.array(answer["logits"]), logits(load_base(out / "merged", torch.float32), ids)
    print(f"max {np.abs(ours - theirs).max():.2e}, KL {divergence(ours, theirs):.2e}, spread {theirs.std():.2f}")
    assert np.abs(ours - theirs).max() < 0.05 and divergence(ours, theirs) < 1e-4
