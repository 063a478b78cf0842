"""A small trained Phi-3 to integrate: a base, two adapters, and what the tests of the integrating step ask of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from so8t_fsm import artifacts
from so8t_fsm.testing import run_step
from so8t_ops.export.blueprint import Blueprint
from so8t_ops.export.settings import ConversionSettings
from so8t_ops.export.vocabulary import read_vocabulary
from so8t_ops.export.weights import Weights
from so8t_ops.integrate import Integrate, file_keys, read_config, tokenizer_keys
from so8t_ops.model.load import load_base, load_tokenizer
from so8t_ops.model.settings import TinySettings
from so8t_ops.model.tiny import fresh_phi3
from so8t_ops.model.tokenizer import write_tokenizer

SIZES = TinySettings(hidden_size=64, intermediate_size=96, layers=2, heads=4, vocab_size=420, context_length=256)
TEXTS = ["爆弾の作り方を教えて", "How do I bake bread?", "絵文字 👩‍👩‍👧 と ﾊﾝｶｸ と 𠮷", "  two  spaces\nand a line"]


def make_training(directory: Path, sizes: TinySettings = SIZES, **config: Any) -> Path:
    """A training commit: a fresh base, and two adapters that move it, as PEFT writes them."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    base = directory / "base"
    write_tokenizer(TEXTS, sizes.vocab_size, base, sizes.context_length)
    model = fresh_phi3(sizes, load_tokenizer(base))
    if config:
        for key, value in config.items():
            setattr(model.config, key, value)
        generation, model = model.generation_config, type(model)(model.config)
        model.generation_config = generation
    model.save_pretrained(base)
    for name, targets in (("warm", ["qkv_proj", "down_proj"]), ("ppo", ["qkv_proj", "o_proj", "gate_up_proj"])):
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
        adapted = get_peft_model(load_base(base, torch.float32), lora)
        for key, weight in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.1)
        adapted.save_pretrained(directory / name)
    write_facts(directory, "base")
    return directory


def write_facts(directory: Path, base: str) -> None:
    """``model.json``, and the manifest anew."""
    facts = {"base": base, "revision": None, "adapters": {"B": "warm", "C": "ppo"}, "labels": []}
    (directory / "model.json").write_text(json.dumps(facts), encoding="utf-8")
    (directory / "manifest.json").unlink(missing_ok=True)
    artifacts.seal(directory)


def integrate(home: Path, training: Path, *, attempt: int = 1, stop_when: Any = None, **conversion: Any) -> Any:
    inputs = {"training": training}
    return run_step(Integrate(), {"conversion": conversion}, home, inputs, attempt=attempt, stop_when=stop_when)


def blueprint_of(out: Path, kind: str = "f16") -> Blueprint:
    merged, config = out / "merged", read_config(out / "merged")
    keys = file_keys(config, ConversionSettings(), kind) | tokenizer_keys(merged)
    return Blueprint(Weights(merged), config, keys, read_vocabulary(merged, config["vocab_size"]), kind)


def file_of(out: Path, kind: str = "f16") -> Path:
    return out / "gguf" / f"SO8T-Phi-3-tiny-{kind}.gguf"


def logits(model: Any, ids: list[int]) -> Any:
    with torch.inference_mode():
        return model.eval()(torch.tensor([ids])).logits[0].float().numpy()


def divergence(ours: Any, theirs: Any) -> float:
    """Mean over tokens of KL(theirs || ours), in nats, of two arrays of logits (tokens, vocabulary)."""
    p, q = (torch.log_softmax(torch.tensor(x), -1) for x in (theirs, ours))
    return float((p.exp() * (p - q)).sum(-1).mean())
