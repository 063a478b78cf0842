"""The ``model`` section: which network is trained, and the sizes of the one the step can make itself."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from so8t_fsm.step import Settings

TINY_BASE = "quickstart:tiny-phi3"
"""The base that needs no download: a small Phi-3 which the training step makes from the training split."""


class TinySettings(Settings):
    """Sizes of the self-made base.  Row lengths that are multiples of 256 keep every K-quant format possible."""

    hidden_size: int = Field(768, ge=32, le=4096, description="Width of the residual stream in channels.")
    intermediate_size: int = Field(1024, ge=32, le=16384, description="Width of the feed-forward layer in channels.")
    layers: int = Field(2, ge=1, le=48, description="Number of decoder layers.")
    heads: int = Field(8, ge=1, le=64, description="Number of attention heads; it must divide the hidden size.")
    vocab_size: int = Field(
        2400, ge=300, le=32000,
        description="Pieces the tokenizer may learn, the 256 byte pieces included; special tokens come on top.",
    )
    context_length: int = Field(2048, ge=64, le=131072, description="Longest sequence the model accepts, in tokens.")
    pretrain_steps: int = Field(
        40, ge=0, le=100_000,
        description="Optimizer steps of causal language modelling on unlabelled text that make the base.",
    )
    pretrain_learning_rate: float = Field(1e-3, gt=0, le=1, description="Peak learning rate of that run.")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"model.tiny: hidden_size {self.hidden_size} needs a number of heads that divides it into even parts"
            )
        return self


class ModelSettings(Settings):
    """Which decoder is trained."""

    base: str = Field(
        TINY_BASE, min_length=1,
        description="The base model: a local folder, a Hub id such as owner/name, or quickstart:tiny-phi3.",
    )
    revision: str = Field(
        "main", min_length=1, description="Branch, tag or commit of a Hub model; pin a commit for exact repeats.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Precision of the frozen weights: auto is bfloat16 on a GPU and float32 on a CPU.",
    )
    tiny: TinySettings = Field(default_factory=TinySettings, description="Sizes of the self-made base.")
