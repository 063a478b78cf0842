"""The ``training`` section: batch sizes, seeds, the warm start and PPO."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from so8t_fsm.step import Settings


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021, "LoRA", arXiv:2106.09685)."""

    r: int = Field(16, ge=1, le=512, description="Rank of each adapter.")
    alpha: float = Field(32.0, gt=0, description="Scale of each adapter; its product is weighted by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapters in the warm start; PPO uses none.")
    targets: tuple[str, ...] = Field(
        ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens"), min_length=1,
        description="Names of the linear and embedding layers that get an adapter.",
    )


class SftSettings(Settings):
    """The supervised warm start."""

    epochs: float = Field(1.5, gt=0, le=1000, description="Passes over the labelled training prompts.")
    max_steps: int = Field(0, ge=0, description="Optimizer steps at most; 0 leaves it to the epochs.")
    lr_scale: float = Field(1.0, gt=0, description="Multiplies training.learning_rate for the warm start.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")


class PpoSettings(Settings):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347)."""

    updates: int = Field(24, ge=0, le=1_000_000, description="Rollout-and-optimise rounds.")
    rollout_batch: int = Field(64, ge=2, le=65536, description="Prompts answered per update.")
    minibatch: int = Field(32, ge=1, le=65536, description="Answers per optimizer step.")
    epochs: int = Field(2, ge=1, le=100, description="Passes over one rollout.")
    clip: float = Field(0.2, gt=0, lt=1, description="Clip range of the probability ratio.")
    value_clip: float = Field(0.2, gt=0, description="Clip range of the value prediction around its old value.")
    value_weight: float = Field(0.5, ge=0, description="Weight of the value loss.")
    value_lr_scale: float = Field(10.0, gt=0, description="Multiplies PPO's learning rate for the value head.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount per token.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of generalised advantage estimation.")
    kl_target: float = Field(1.0, gt=0, description="Divergence from the warm start aimed at, in nats per answer.")
    kl_init: float = Field(0.05, ge=0, description="First weight of the divergence in the reward.")
    kl_rate: float = Field(0.1, ge=0, le=1, description="How fast that weight adapts per update.")
    entropy: float = Field(0.003, ge=0, description="Weight of the entropy bonus.")
    temperature: float = Field(1.0, gt=0, le=10, description="Sampling temperature of the rollouts.")
    max_new_tokens: int = Field(16, ge=2, le=4096, description="Longest answer in a rollout, in tokens.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm above which gradients are scaled down.")
    lr_scale: float = Field(0.3, gt=0, description="Multiplies training.learning_rate for PPO.")

    @model_validator(mode="after")
    def _minibatches_fit(self) -> Self:
        if self.rollout_batch % self.minibatch:
            raise ValueError("training.ppo: rollout_batch must be a multiple of minibatch")
        return self


class TrainingSettings(Settings):
    """How the model is trained.  The recovery rules change batch_size, learning_rate, max_length and the like."""

    batch_size: int = Field(16, ge=1, le=4096, description="Sequences per forward pass, the part that memory limits.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=4096, description="Forward passes per optimizer step; times batch_size it is the effective batch.",
    )
    learning_rate: float = Field(
        3e-3, gt=0, le=1, description="The one learning rate; the warm start and PPO scale it by their lr_scale.",
    )
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of every random draw of the step.")
    max_length: int = Field(192, ge=16, le=131072, description="Longest prompt text in tokens; the rest is cut off.")
    max_samples: int = Field(0, ge=0, description="Labelled prompts to use at most; 0 means all of them.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time.",
    )
    threads: int = Field(2, ge=1, le=256, description="CPU threads; results are bit-exact only for the same number.")
    lora: LoraSettings = Field(default_factory=LoraSettings, description="The adapters.")
    sft: SftSettings = Field(default_factory=SftSettings, description="The supervised warm start.")
    ppo: PpoSettings = Field(default_factory=PpoSettings, description="The PPO phase.")
