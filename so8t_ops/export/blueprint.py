"""What one GGUF file is to hold.  The writer and the check both work from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from so8t_fsm.step import StepFailure
from so8t_ops.export.layout import Value, rope_factors, tensor_name, tensor_type
from so8t_ops.export.vocabulary import Vocabulary
from so8t_ops.export.weights import Weights

LARGEST = {"f32": 3.4028234663852886e38, "f16": 65504.0, "bf16": 3.3895313892515355e38, "q8_0": 65504.0 * 127}
"""The largest magnitude of each type; a block of q8_0 is signed bytes times one f16."""


@dataclass(frozen=True)
class Blueprint:
    """Attributes:
        weights: the merged model's tensors.
        config: its Hugging Face configuration.
        keys: the file's metadata, the token lists left out.
        vocabulary: the token lists.
        kind: type of the file, ``f32``, ``f16``, ``bf16`` or ``q8_0``.
    """

    weights: Weights
    config: Mapping[str, Any]
    keys: Mapping[str, Value]
    vocabulary: Vocabulary
    kind: str

    @cached_property
    def factors(self) -> Mapping[str, list[float]]:
        """LongRoPE's factor tensors by their GGUF names."""
        return rope_factors(self.config)

    @cached_property
    def sources(self) -> Mapping[str, str]:
        """GGUF name to name in the merged model, in the order of the file.

        Tied embeddings are stored once: llama.cpp takes ``token_embd`` for the head when there is no ``output``.
        """
        tied = bool(self.config.get("tie_word_embeddings"))
        return {tensor_name(name): name for name in self.weights if not (tied and name == "lm_head.weight")}

    def names(self) -> list[str]:
        """Every tensor of the file, in its order."""
        return [*self.factors, *self.sources]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor in rows and columns (a GGUF file states it reversed)."""
        return (len(self.factors[name]),) if name in self.factors else self.weights.shape(self.sources[name])

    def type_of(self, name: str) -> str:
        """The type a tensor is stored with."""
        return tensor_type(self.shape(name), self.kind)

    def array(self, name: str) -> Any:
        """The tensor to be stored, as a float32 numpy array.

        Raises:
            StepFailure: it holds something that is no number, or that its type has no room for (``data_invalid``).
        """
        import numpy as np

        if name in self.factors:
            return np.asarray(self.factors[name], dtype=np.float32)
        array, kind = self.weights.get(self.sources[name]), self.type_of(name)
        largest = float(max(array.max(), -array.min())) if array.size else 0.0
        if not np.isfinite(largest):
            raise StepFailure(
                f"{self.sources[name]} of the merged model holds a value that is no number", state="data_invalid",
                hint="The training diverged: train again with a lower learning rate.")
        if largest > LARGEST[kind]:
            raise StepFailure(
                f"{self.sources[name]} holds {largest:.6g}, and the largest {kind} is {LARGEST[kind]:.6g}",
                state="data_invalid", hint=f"Replace {self.kind} by bf16 or f32 in conversion.types.")
        return array
