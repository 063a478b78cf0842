"""What a Phi-3 GGUF holds: keys and values, tensor names and types.  Pure.

Names and meanings follow llama.cpp's converter for ``phi3``; ``qkv_proj`` and ``gate_up_proj`` stay fused and are not
permuted, as llama.cpp's phi3 graph expects them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from so8t_fsm.step import StepFailure

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""llama.cpp's ``llama_ftype``."""

TENSORS = {
    "model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm",
    "input_layernorm": "attn_norm", "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Value:
    """One metadata value and the GGUF type it is written with (``u32``, ``f32``, ``bool``, ``string``)."""

    kind: str
    value: Any


def tensor_name(name: str) -> str:
    """The GGUF name of a tensor of ``Phi3ForCausalLM``.

    Raises:
        StepFailure: there is no such tensor in a Phi-3.
    """
    stem = name.removesuffix(".weight")
    if stem in TENSORS and name.endswith(".weight"):
        return f"{TENSORS[stem]}.weight"
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    if found and found[2] in TENSORS:
        return f"blk.{found[1]}.{TENSORS[found[2]]}.weight"
    raise StepFailure(f"{name}: no tensor of a Phi-3 has this name", state="data_invalid",
                      hint="Only models of the class Phi3ForCausalLM can be converted.")


def tensor_type(shape: Sequence[int], wanted: str) -> str:
    """One-dimensional tensors stay f32; rows that q8_0's blocks of 32 do not fit stay f16."""
    if len(shape) == 1:
        return "f32"
    return "f16" if wanted == "q8_0" and shape[-1] % 32 else wanted


def rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """RoPE's parameters: transformers 5 keeps them in ``rope_parameters``, 4 in ``rope_scaling`` and ``rope_theta``."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    found.setdefault("rope_type", found.get("type", "default"))
    return found


def rope_factors(config: Mapping[str, Any]) -> dict[str, list[float]]:
    """LongRoPE's two factor tensors, each of head_dim / 2 values; none for plain RoPE."""
    found = rope(config)
    if found["rope_type"] != "longrope":
        return {}
    return {"rope_factors_long.weight": list(found["long_factor"]), "rope_factors_short.weight": list(found["short_factor"])}


def metadata(config: Mapping[str, Any], *, name: str, kind: str, license_id: str, author: str,
             languages: Sequence[str]) -> dict[str, Value]:
    """General and ``phi3.*`` keys of a model with this Hugging Face configuration.

    The attention factor of LongRoPE is sqrt(1 + ln(s) / ln(n)) with s the stretch and n the original context
    (Ding et al. 2024, LongRoPE, arXiv:2402.13753; Phi-3's modelling code).
    """
    if config.get("model_type") != "phi3":
        raise StepFailure(f"a model of type {config.get('model_type')!r} is not a Phi-3", state="data_invalid",
                          hint="Set model.base to a Phi-3 or Phi-3.5.")
    heads = int(config["num_attention_heads"])
    found = rope(config)
    context = int(config["max_position_embeddings"])
    original = int(found.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or context)
    partial = float(found.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    keys = {
        "general.architecture": Value("string", "phi3"), "general.type": Value("string", "model"),
        "general.name": Value("string", name), "general.file_type": Value("u32", FILE_TYPES[kind]),
        "general.quantization_version": Value("u32", 2), "general.license": Value("string", license_id),
        "general.languages": Value("strings", list(languages)),
        "phi3.context_length": Value("u32", context),
        "phi3.rope.scaling.original_context_length": Value("u32", original),
        "phi3.embedding_length": Value("u32", config["hidden_size"]),
        "phi3.feed_forward_length": Value("u32", config["intermediate_size"]),
        "phi3.block_count": Value("u32", config["num_hidden_layers"]),
        "phi3.attention.head_count": Value("u32", heads),
        "phi3.attention.head_count_kv": Value("u32", config.get("num_key_value_heads") or heads),
        "phi3.attention.layer_norm_rms_epsilon": Value("f32", config["rms_norm_eps"]),
        "phi3.rope.dimension_count": Value("u32", int(partial * config["hidden_size"] // heads)),
        "phi3.rope.freq_base": Value("f32", float(found["rope_theta"])),
        "phi3.attention.sliding_window": Value("u32", config.get("sliding_window") or 0),
    }
    if author:
        keys["general.author"] = Value("string", author)
    if found["rope_type"] == "longrope" and context > original:
        keys["phi3.rope.scaling.attn_factor"] = Value(
            "f32", math.sqrt(1 + math.log(context / original) / math.log(original)))
    return keys


def token_keys(tokenizer: Mapping[str, Any]) -> dict[str, Value]:
    """``tokenizer.ggml.*`` apart from the lists, from ids and switches of the Hugging Face tokenizer."""
    keys = {
        "tokenizer.ggml.model": Value("string", "llama"), "tokenizer.ggml.pre": Value("string", "default"),
        "tokenizer.ggml.add_bos_token": Value("bool", bool(tokenizer.get("add_bos_token"))),
        "tokenizer.ggml.add_eos_token": Value("bool", bool(tokenizer.get("add_eos_token"))),
    }
    for key, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if tokenizer.get(f"{key}_id") is not None:
            keys[f"tokenizer.ggml.{name}_token_id"] = Value("u32", tokenizer[f"{key}_id"])
    if tokenizer.get("chat_template"):
        keys["tokenizer.chat_template"] = Value("string", tokenizer["chat_template"])
    return keys
