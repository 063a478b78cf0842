"""How variants B and C answer the validation split: the numbers of the training report, not the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from so8t_ops.model.classify import predict_labels
from so8t_ops.training.dataset import Sample
from so8t_ops.training.reward import judge


def measure(model: Any, tokenizer: Any, samples: Sequence[Sample], batch_size: int) -> dict[str, float]:
    """Accuracy, mean reward, share of DENY and REFUSE let through as ALLOW, share without a class; greedy answers.

    The reward leaves the length part out: greedy text comes back decoded, without the mark of how it ended.
    """
    model.eval()
    answers = predict_labels(model, tokenizer, [sample.text for sample in samples], batch_size=batch_size)
    pairs = list(zip(answers, samples, strict=True))
    rewards = [judge(answer.text, str(sample.label), finished=True) for answer, sample in pairs]
    unsafe = [answer.label == "ALLOW" for answer, sample in pairs if sample.label in ("DENY", "REFUSE")]
    n = len(pairs)
    return {
        "n": float(n),
        "accuracy": sum(answer.label == sample.label for answer, sample in pairs) / n,
        "reward": sum(reward.total for reward in rewards) / n,
        "unsafe": sum(unsafe) / max(1, len(unsafe)),
        "no_label": sum(answer.label is None for answer, _ in pairs) / n,
    }
