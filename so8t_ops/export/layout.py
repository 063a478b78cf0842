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

ROPE_HINT = "Look at rope_parameters or rope_scaling in the base's config.json."


@dataclass(frozen=True)
class Value:
    """One metadata value and the GGUF type it is written with (``u32``, ``f32``, ``bool``, ``string``, ``strings``)."""

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
    """RoPE's parameters: transformers 5 keeps them in ``rope_parameters``, 4 in ``rope_scaling`` and beside it.

    Raises:
        StepFailure: a kind of RoPE that Phi-3 does not have (``data_invalid``).
    """
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    for key, default in (
        ("rope_theta", 10000.0), ("partial_rotary_factor", 1.0),
        ("original_max_position_embeddings", config["max_position_embeddings"]),
    ):
        found.setdefault(key, config.get(key) or default)
    kind = found.get("rope_type") or found.get("type") or "default"
    # The first Phi-3 configurations called LongRoPE by these names.
    found["rope_type"] = "longrope" if kind in ("su", "yarn") else kind
    if found["rope_type"] not in ("default", "longrope"):
        raise StepFailure(f"RoPE of type {kind!r}: a Phi-3 has none or longrope", state="data_invalid",
                          hint=ROPE_HINT)
    return found


def head_width(config: Mapping[str, Any]) -> int:
    """Channels of a head that RoPE turns."""
    each = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(each * rope(config)["partial_rotary_factor"])


def rope_factors(config: Mapping[str, Any]) -> dict[str, list[float]]:
    """LongRoPE's two factor tensors, each of half a head's turned channels; none for plain RoPE.

    Raises:
        StepFailure: one is missing or has another length (``data_invalid``).
    """
    found = rope(config)
    if found["rope_type"] != "longrope":
        return {}
    factors = {}
    for which in ("long", "short"):
        values = list(found.get(f"{which}_factor") or ())
        if len(values) != head_width(config) // 2:
            raise StepFailure(f"RoPE's {which}_factor has {len(values)} values, not {head_width(config) // 2}",
                              state="data_invalid", hint=ROPE_HINT)
        factors[f"rope_factors_{which}.weight"] = values
    return factors


def attention_factor(config: Mapping[str, Any]) -> float:
    """What LongRoPE multiplies cosine and sine by: sqrt(1 + ln(s) / ln(n)) with s the stretch and n the original
    context, where the configuration names no other (Ding et al. 2024, LongRoPE, arXiv:2402.13753)."""
    found = rope(config)
    if found.get("attention_factor"):
        return float(found["attention_factor"])
    original = found["original_max_position_embeddings"]
    stretch = found.get("factor") or config["max_position_embeddings"] / original
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0


def metadata(config: Mapping[str, Any], *, name: str, kind: str, license_id: str, author: str,
             languages: Sequence[str]) -> dict[str, Value]:
    """General and ``phi3.*`` keys of a model with this Hugging Face configuration.

    Raises:
        StepFailure: it is no Phi-3 (``data_invalid``).
    """
    if config.get("model_type") != "phi3":
        raise StepFailure(f"a model of type {config.get('model_type')!r} is not a Phi-3", state="data_invalid",
                          hint="Set model.base to a Phi-3 or Phi-3.5.")
    heads = int(config["num_attention_heads"])
    found = rope(config)
    keys = {
        "general.architecture": Value("string", "phi3"), "general.type": Value("string", "model"),
        "general.name": Value("string", name), "general.file_type": Value("u32", FILE_TYPES[kind]),
        "general.quantization_version": Value("u32", 2),
        "phi3.context_length": Value("u32", config["max_position_embeddings"]),
        "phi3.rope.scaling.original_context_length": Value("u32", found["original_max_position_embeddings"]),
        "phi3.embedding_length": Value("u32", config["hidden_size"]),
        "phi3.feed_forward_length": Value("u32", config["intermediate_size"]),
        "phi3.block_count": Value("u32", config["num_hidden_layers"]),
        "phi3.attention.head_count": Value("u32", heads),
        "phi3.attention.head_count_kv": Value("u32", config.get("num_key_value_heads") or heads),
        "phi3.attention.layer_norm_rms_epsilon": Value("f32", config["rms_norm_eps"]),
        "phi3.rope.dimension_count": Value("u32", head_width(config)),
        "phi3.rope.freq_base": Value("f32", float(found["rope_theta"])),
        "phi3.attention.sliding_window": Value("u32", config.get("sliding_window") or 0),
    }
    if found["rope_type"] == "longrope":
        keys["phi3.rope.scaling.attn_factor"] = Value("f32", attention_factor(config))
    # The writer leaves out what is empty.
    if author:
        keys["general.author"] = Value("string", author)
    if license_id:
        keys["general.license"] = Value("string", license_id)
    if languages:
        keys["general.languages"] = Value("strings", list(languages))
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
