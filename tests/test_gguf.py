"""The integrating step: variant C merged, GGUF written and read back, by us, by transformers and by llama.cpp."""

from __future__ import annotations

import dataclasses
import json
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from tiny_phi3 import SIZES, TEXTS, blueprint_of, divergence, file_of, integrate, logits, make_training, write_facts
from transformers import AutoConfig, AutoModelForCausalLM

from so8t_fsm import artifacts
from so8t_ops.export.gguf_check import check_gguf
from so8t_ops.export.gguf_write import write_gguf
from so8t_ops.export.layout import Value
from so8t_ops.export.vocabulary import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary
from so8t_ops.integrate import read_config, tokenizer_keys
from so8t_ops.model.load import load_base, load_tokenizer
from so8t_ops.model.tokenizer import SPECIALS

TYPES = ("f32", "f16", "bf16", "q8_0")

NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"} | {
    f"model.layers.{n}.{theirs}": f"blk.{n}.{ours}" for n in range(2) for theirs, ours in {
        "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}.items()}
"""Written out here once more, so that the table under test isn't its own witness."""


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, training: Path) -> Path:
    return integrate(tmp_path_factory.mktemp("home"), training, types=TYPES)[0]


# -- the merge --------------------------------------------------------------------------------------------------------

def test_merged_weights_are_the_base_plus_both_adapters(training: Path, out: Path) -> None:
    base, merged = load_file(training / "base" / "model.safetensors"), load_file(out / "merged" / "model.safetensors")
    assert base.keys() == merged.keys()
    moved = set()
    for name, weight in base.items():
        for adapter in ("warm", "ppo"):
            parts = load_file(training / adapter / "adapter_model.safetensors")
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{stem}.lora_B.weight" in parts:
                weight = weight + 8 / 4 * parts[f"{stem}.lora_B.weight"] @ parts[f"{stem}.lora_A.weight"]
                moved.add(name)
        torch.testing.assert_close(merged[name], weight, rtol=0, atol=1e-6)
    assert len(moved) == 8


def test_merged_logits_are_those_of_the_base_under_both_adapters(training: Path, out: Path) -> None:
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(load_base(training / "base", torch.float32), training / "warm", "warm")
    adapted.load_adapter(training / "ppo", "ppo")
    adapted.base_model.set_adapter(["warm", "ppo"])
    ids = list(range(3, 60))
    plain = logits(load_base(training / "base", torch.float32), ids)
    ours = logits(load_base(out / "merged", torch.float32), ids)
    assert np.abs(ours - logits(adapted, ids)).max() < 1e-5 < 0.1 < np.abs(ours - plain).max()


def test_merged_folder_is_complete_and_the_same_everywhere(training: Path, out: Path) -> None:
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (out / "merged" / name).read_bytes() == (training / "base" / name).read_bytes()
    header = (out / "merged" / "model.safetensors").read_bytes()[8:200]
    assert b'"__metadata__":{"format":"pt"}' in header
    assert "_name_or_path" not in read_config(out / "merged")
    assert len({stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*") if path.is_file()}) == 1
    home, source = str(out.parents[4]).encode(), str(training).encode()
    for path in out.rglob("*"):
        assert path.is_dir() or not any(place in path.read_bytes() for place in (home, source)), path


def test_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    large = SIZES.model_copy(update={"hidden_size": 128, "intermediate_size": 512})
    training = make_training(tmp_path / "training", large)
    whole, _ = integrate(tmp_path / "whole", training)
    parts, _ = integrate(tmp_path / "parts", training, shard_size="1MB")
    assert len(list((parts / "merged").glob("*.safetensors"))) > 1
    assert file_of(whole).read_bytes() == file_of(parts).read_bytes()
    a, b = (json.loads((out / "certificate.json").read_text()) for out in (whole, parts))
    assert a == b


def test_certificate_names_what_went_in(training: Path, out: Path, tmp_path: Path) -> None:
    page = json.loads((out / "certificate.json").read_text())
    assert page["inputs"] == {"training": artifacts.Manifest.load(training).identity}
    assert page["gguf"] == {file_of(out, k).name: artifacts.hash_file(file_of(out, k))[0] for k in TYPES}
    assert page["base"]["files"]["model.safetensors"] == artifacts.hash_file(training / "base" / "model.safetensors")[0]
    # A base of one's own is known by its folder's name; where it lies is nobody's business.
    moved = tmp_path / "somebody" / "My-Phi-3"
    shutil.copytree(training, tmp_path / "training")
    shutil.move(tmp_path / "training" / "base", moved)
    write_facts(tmp_path / "training", str(moved))
    other, _ = integrate(tmp_path / "home", tmp_path / "training")
    assert json.loads((other / "certificate.json").read_text())["base"]["name"] == "My-Phi-3"
    assert file_of(other).read_bytes() == file_of(out).read_bytes()
    assert not any(b"somebody" in path.read_bytes() for path in other.rglob("*") if path.is_file())


# -- the file ---------------------------------------------------------------------------------------------------------

def test_f16_holds_every_tensor_bit_for_bit(out: Path) -> None:
    merged = load_file(out / "merged" / "model.safetensors")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file_of(out)).tensors}
    assert set(found) == {f"{NAMES[name.removesuffix('.weight')]}.weight" for name in merged}
    for name, weight in merged.items():
        tensor = found[f"{NAMES[name.removesuffix('.weight')]}.weight"]
        wanted = weight.half() if weight.ndim == 2 else weight
        assert np.array_equal(tensor.data, wanted.numpy()), name
        assert tensor.data.dtype == wanted.numpy().dtype and tensor.data_offset % 32 == 0


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_reads_back(out: Path, kind: str) -> None:
    check = json.loads((out / "gguf_check.json").read_text())[file_of(out, kind).name]
    assert check["ok"] and not check["problems"] and len(check["tensors"]) == 15
    worst = max(tensor["max_abs_error"] for tensor in check["tensors"])
    assert (worst == 0) if kind == "f32" else (0 < worst < {"f16": 2e-4, "bf16": 2e-3, "q8_0": 4e-3}[kind])
    reader = gguf.GGUFReader(file_of(out, kind))
    assert reader.fields["general.file_type"].contents() == {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}[kind]
    size = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}[kind]
    for tensor in reader.tensors:
        assert tensor.n_bytes == tensor.n_elements * (4 if len(tensor.shape) == 1 else size)


@pytest.mark.parametrize("kind", TYPES)
def test_transformers_reads_the_same_model(out: Path, kind: str) -> None:
    config = AutoConfig.from_pretrained(out / "merged")
    second = AutoModelForCausalLM.from_pretrained(
        out / "gguf", gguf_file=file_of(out, kind).name, config=config, dtype=torch.float32)
    model = load_base(out / "merged", torch.float32)
    rounded = {"f16": torch.float16, "bf16": torch.bfloat16}.get(kind)
    if rounded:  # what the type loses is known; nothing else may be lost
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.data = weight.data.to(rounded).float()
    ids = list(range(3, 99))
    ours, theirs = logits(second, ids), logits(model, ids)
    if kind == "q8_0":
        assert divergence(ours, theirs) < 3.7e-3 and np.abs(ours - theirs).max() < 0.32
    else:
        assert np.abs(ours - theirs).max() < 1e-5


def test_tokens_are_the_tokenizer_s(out: Path) -> None:
    tokenizer = load_tokenizer(out / "merged")
    pieces = SentencePieceProcessor(model_file=str(out / "merged" / "tokenizer.model"))
    fields = gguf.GGUFReader(file_of(out)).fields
    tokens, scores, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type"))
    assert len(tokens) == len(scores) == len(types) == read_config(out / "merged")["vocab_size"]
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert [tokens[i] for i in ids] == tokenizer.convert_ids_to_tokens(ids) and ids == pieces.encode(text)
        raw = b"".join(bytes([int(tokens[i][3:-1], 16)]) if types[i] == BYTE else tokens[i].encode() for i in ids)
        assert raw.decode().replace("▁", " ") == " " + text
    assert any(types[i] == BYTE for i in tokenizer("👩‍👩‍👧")["input_ids"])
    for special in SPECIALS:
        i = tokenizer.convert_tokens_to_ids(special)
        assert (tokens[i], scores[i], types[i]) == (special, -1000.0, CONTROL)
    assert (tokens[2], types[2]) == ("</s>", USER_DEFINED)
    plain = [i for i in range(len(pieces)) if types[i] == NORMAL]
    assert len(plain) > 100 and [scores[i] for i in plain] == [pieces.get_score(i) for i in plain]
    assert (tokens[-1], scores[-1], types[-1]) == (f"[PAD{len(tokens) - 1}]", -10000.0, UNUSED)


def test_keys_of_the_tokenizer_are_what_it_does(out: Path, tmp_path: Path) -> None:
    fields = gguf.GGUFReader(file_of(out)).fields
    tokenizer = load_tokenizer(out / "merged")
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 1
    assert fields["tokenizer.ggml.unknown_token_id"].contents() == 0
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert [fields[f"tokenizer.ggml.{which}_token_id"].contents() for which in ("eos", "padding")] == [end, end]
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert "phi-3" in fields["general.name"].contents().lower()
    shutil.copytree(out / "merged", tmp_path / "begins")
    described = json.loads((tmp_path / "begins" / "tokenizer.json").read_text(encoding="utf-8"))
    begin, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    described["post_processor"] = {
        "type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    (tmp_path / "begins" / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    assert tokenizer_keys(tmp_path / "begins")["tokenizer.ggml.add_bos_token"].value is True


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    out, _ = integrate(tmp_path, make_training(tmp_path / "training", tie_word_embeddings=True), types=["f32"])
    names = {tensor.name for tensor in gguf.GGUFReader(file_of(out, "f32")).tensors}
    assert "token_embd.weight" in names and "output.weight" not in names
    second = AutoModelForCausalLM.from_pretrained(
        out / "gguf", gguf_file=file_of(out, "f32").name, config=AutoConfig.from_pretrained(out / "merged"))
    ids = list(range(3, 40))
    assert np.abs(logits(second, ids) - logits(load_base(out / "merged", torch.float32), ids)).max() < 1e-5


def test_rows_that_blocks_do_not_fit_stay_f16(tmp_path: Path) -> None:
    odd = SIZES.model_copy(update={"intermediate_size": 72})
    out, _ = integrate(tmp_path, make_training(tmp_path / "training", odd), types=["q8_0"])
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file_of(out, "q8_0")).tensors}
    assert types["blk.0.ffn_down.weight"] == "F16" and types["blk.0.ffn_up.weight"] == "Q8_0"


# -- the check --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("kind", "name"), [
    ("f16", "token_embd.weight"), ("f16", "blk.1.attn_norm.weight"), ("q8_0", "blk.0.ffn_up.weight"),
    ("bf16", "output.weight")])
def test_a_flipped_byte_is_found_in_its_tensor(out: Path, tmp_path: Path, kind: str, name: str) -> None:
    path = shutil.copy(file_of(out, kind), tmp_path / "model.gguf")
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    at = int(tensor.data_offset + tensor.n_bytes - 1)
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 0x40]))
    check = check_gguf(path, blueprint_of(out, kind), lambda: None)
    assert not check["ok"] and len(check["problems"]) == 1 and f"tensor {name} does not hold" in check["problems"][0]


LOST = "phi3.rope.freq_base"


@pytest.mark.parametrize(("change", "problem"), [
    ({LOST: None}, f"key {LOST} is missing"), ({LOST: Value("f32", 5e5)}, f"key {LOST} is 500000.0, not 10000.0"),
    ({"phi3.block_count": Value("f32", 2.0)}, "key phi3.block_count has type FLOAT32, not UINT32"),
    ({"general.name": Value("string", "Phi 3")}, "key general.name is 'Phi 3', not 'SO8T-Phi-3-tiny'"),
    ({"tokenizer.chat_template": None}, "key tokenizer.chat_template is missing"),
    ({"general.url": Value("string", "x")}, "key general.url has no source")])
def test_a_lost_or_changed_key_is_named(out: Path, tmp_path: Path, change: Mapping[str, Any], problem: str) -> None:
    wanted = blueprint_of(out)
    keys = {key: value for key, value in {**wanted.keys, **change}.items() if value is not None}
    write_gguf(tmp_path / "model.gguf", dataclasses.replace(wanted, keys=keys), lambda: None)
    assert check_gguf(tmp_path / "model.gguf", wanted, lambda: None)["problems"] == [problem]


def test_other_tokens_and_other_tensors_are_named(out: Path, tmp_path: Path) -> None:
    wanted = blueprint_of(out)
    words = wanted.vocabulary
    other = Vocabulary(
        (*words.tokens[:7], b"other", *words.tokens[8:]), (*words.scores[:-1], 1.0), (*words.types[:-1], NORMAL))
    write_gguf(tmp_path / "words.gguf", dataclasses.replace(wanted, vocabulary=other), lambda: None)
    problems = check_gguf(tmp_path / "words.gguf", wanted, lambda: None)["problems"]
    assert [problem.split(" is ")[0] for problem in problems] == [
        "key tokenizer.ggml.tokens: [7]", f"key tokenizer.ggml.scores: [{len(words.tokens) - 1}]",
        f"key tokenizer.ggml.token_type: [{len(words.tokens) - 1}]"]
    tied = dataclasses.replace(wanted, config={**wanted.config, "tie_word_embeddings": True})
    write_gguf(tmp_path / "tied.gguf", tied, lambda: None)
    assert check_gguf(tmp_path / "tied.gguf", wanted, lambda: None)["problems"] == ["tensor output.weight is missing"]
    assert check_gguf(file_of(out), tied, lambda: None)["problems"] == ["tensor output.weight has no source"]
    assert "is f32, not f16" in str(check_gguf(file_of(out, "f32"), wanted, lambda: None)["problems"])


@pytest.mark.parametrize("left", [3, 20_000, -1])
def test_a_cut_off_file_is_a_problem_and_no_traceback(out: Path, tmp_path: Path, left: int) -> None:
    (tmp_path / "model.gguf").write_bytes(file_of(out).read_bytes()[:left])
    check = check_gguf(tmp_path / "model.gguf", blueprint_of(out), lambda: None)
    assert not check["ok"] and check["problems"][0].startswith("it can't be read as GGUF")
