"""What is compared, and what will count as a result: declared before anything is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from so8t_fsm.step import Settings

Variant = Literal["A", "B", "C"]
Metric = Literal["accuracy", "allow_vs_rest"]
Pair = Literal["A-B", "A-C", "B-C"]


class BenchmarkSettings(Settings):
    """The section ``benchmark``: the A/B/C comparison on the held-out test split."""

    variants: tuple[Variant, ...] = Field(
        ("A", "B", "C"), min_length=1, description="The models to run: A the base, B the warm start, C the PPO model.")
    primary_metric: Metric = Field(
        "accuracy", description="The one metric the verdict is about: 'accuracy' (the right one of four labels) or "
        "'allow_vs_rest' (the right side of the line between answering and not answering).")
    primary_comparison: Pair = Field("A-C", description="The one pair of models the verdict is about.")
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="The family-wise error rate below which a difference counts as found.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="The confidence level of every interval.")
    power: float = Field(
        0.8, gt=0.5, lt=1, description="The probability with which the minimum detectable effect would be found.")
    bootstrap_resamples: int = Field(
        5000, ge=200, le=100_000, description="How many bootstrap samples an interval of a difference is made from.")
    batch_size: int = Field(16, ge=1, le=1024, description="How many items a model answers at once.")
    max_items: int = Field(
        0, ge=0, description="Evaluate at most this many items, chosen by the hash of their names (0 means all).")
    seed: int = Field(20_240_923, ge=0, description="The seed of the bootstrap.")
    shown_disagreements: int = Field(
        100, ge=0, le=10_000, description="How many items on which the models disagree the report prints in full.")
