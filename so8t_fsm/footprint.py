"""How much GPU memory a training run takes, estimated from sizes alone (no torch, no download).

The estimate is a sum of four parts, in bytes, with P parameters, L layers, hidden size h, vocabulary V, batch B,
sequence S (prompt and answer) and b bytes per weight (2 for bfloat16, 4 for float32):

- frozen weights: ``b P``
- LoRA of rank r on every targeted linear layer: ``16 r Σ (in + out)`` (float32 weight, gradient and Adam's two
  moments; Hu et al. 2021, arXiv:2106.09685)
- activations: ``17 b B S h`` a layer without stored attention matrices, or, recomputed in the backward pass,
  ``b B S h`` a layer and one layer in full (Korthikanti et al. 2022, arXiv:2205.05198, section 4)
- logits: ``(b + 8) B S V`` (as computed, in float32, and their gradient), and 1 GiB for the CUDA context.

It is meant to tell 8 GB from 12 GB from 24 GB, no finer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

CONTEXT = 1 << 30

PHI3_TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """The sizes of a Phi-3-like decoder: fused qkv and gate-up projections, untied embeddings."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each linear layer of one block."""
        head = self.hidden // self.heads
        return {
            "qkv_proj": (self.hidden, (self.heads + 2 * self.kv_heads) * head),
            "o_proj": (self.heads * head, self.hidden),
            "gate_up_proj": (self.hidden, 2 * self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def parameters(self) -> int:
        """All weights: blocks with their two norms, input and output embeddings, the last norm."""
        block = sum(a * b for a, b in self.projections.values()) + 2 * self.hidden
        return self.layers * block + 2 * self.vocab * self.hidden + self.hidden

    @classmethod
    def of(cls, base: str, model: Mapping[str, Any], home: Path) -> Self | None:
        """The sizes behind ``model.base``: a known name, a local folder's ``config.json``, or ``model.tiny``.

        None when they cannot be known without a download.
        """
        name = base.lower().replace("_", "-")
        if "phi-3.5-mini" in name or "phi-3-mini" in name:
            return cls(layers=32, hidden=3072, intermediate=8192, heads=32, kv_heads=32, vocab=32064)
        try:
            if name.endswith("tiny-phi3"):
                tiny = model["tiny"]
                return cls(tiny["layers"], tiny["hidden_size"], tiny["intermediate_size"], tiny["heads"], tiny["heads"],
                           tiny["vocab_size"])
            folder = Path(base).expanduser() if base else None
            if folder is None:
                return None
            raw = json.loads((home / folder / "config.json").read_bytes())
            return cls(raw["num_hidden_layers"], raw["hidden_size"], raw["intermediate_size"],
                       raw["num_attention_heads"], raw.get("num_key_value_heads") or raw["num_attention_heads"],
                       raw["vocab_size"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def training_bytes(shape: Shape, values: Mapping[str, Mapping[str, Any]], *, on_gpu: bool = True) -> int:
    """The estimate above, in bytes, for the ``model`` and ``training`` sections; what they lack has usual values."""
    training, dtype = values.get("training", {}), values.get("model", {}).get("dtype", "auto")
    width = 4 if dtype == "float32" or (dtype == "auto" and not on_gpu) else 2
    lora = training.get("lora", {})
    targets = lora.get("targets", PHI3_TARGETS)
    adapters = shape.layers * lora.get("r", 16) * sum(sum(shape.projections.get(t, (0, 0))) for t in targets)
    answer = training.get("ppo", {}).get("max_new_tokens", 16)
    tokens = training.get("batch_size", 1) * (training.get("max_length", 512) + answer)
    layer = 17 * width * tokens * shape.hidden
    if training.get("gradient_checkpointing", False):
        activations = shape.layers * width * tokens * shape.hidden + layer
    else:
        activations = shape.layers * layer
    logits = (width + 8) * tokens * shape.vocab
    return int(width * shape.parameters + 16 * adapters + activations + logits + (CONTEXT if on_gpu else 0))
