"""Make the base: a tokenizer from the training text, a fresh Phi-3, and a short run of language modelling.

It learns what the prompts look like and never sees which label belongs to one: variant A is a base that does not know
the task, as a downloaded one would not.
"""

from __future__ import annotations

import random
from typing import Any

from so8t_ops.model.load import load_tokenizer
from so8t_ops.model.prompt import LABELS, REASONS, answer, prompt_ids
from so8t_ops.model.settings import TinySettings
from so8t_ops.model.tiny import fresh_phi3
from so8t_ops.model.tokenizer import write_tokenizer
from so8t_ops.training.dataset import Sample
from so8t_ops.training.determinism import settle
from so8t_ops.training.journal import Journal
from so8t_ops.training.settings import TrainingSettings
from so8t_ops.training.supervised import Plan, fit


def make_base(journal: Journal, sizes: TinySettings, settings: TrainingSettings, samples: list[Sample]) -> None:
    """Write ``base/`` into the context's output: weights, config, tokenizer.

    Raises:
        StopRequested: asked to stop; the checkpoint is safe.
        StepFailure: the loss is no longer a number (``diverged``).
    """
    folder = journal.ctx.out / "base"
    settle(settings.seed, settings.threads)
    write_tokenizer((sample.text for sample in samples), sizes.vocab_size, folder, sizes.context_length)
    tokenizer = load_tokenizer(folder)
    model = fresh_phi3(sizes, tokenizer)
    curve = []
    if sizes.pretrain_steps:
        plan = Plan(
            "base", epochs=1, max_steps=sizes.pretrain_steps, learning_rate=sizes.pretrain_learning_rate, warmup=0.05,
            batch_size=settings.batch_size, accumulation=settings.gradient_accumulation_steps, seed=settings.seed,
        )
        limit = min(settings.max_length, sizes.context_length - 64)
        curve = fit(journal, plan, model, tokenizer, _rows(samples, tokenizer, limit, settings.seed))
        # The trainer wraps the model's forward; what is saved is the weights alone.
    model.save_pretrained(folder)
    journal.finish("base", "warm", curve, sizes.pretrain_steps)


def _rows(samples: list[Sample], tokenizer: Any, limit: int, seed: int) -> list[dict[str, list[int]]]:
    """Every text once as it is, every labelled one once more as a question that ends where an answer would start, and
    the sentences answers are made of, in equal numbers and beside no question: words it can say, not when to."""
    rows: list[list[int]] = []
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    phrases = [answer(label, language) for language in sorted(REASONS) for label in LABELS]
    spoken = [tokenizer(phrase, add_special_tokens=False)["input_ids"] + [end] for phrase in phrases]
    rows += spoken * max(1, len(samples) // (4 * len(spoken)))
    for sample in samples:
        plain = tokenizer(sample.text, add_special_tokens=False)["input_ids"][:limit]
        rows.append([*plain, tokenizer.eos_token_id])
        if sample.label is not None:
            rows.append(prompt_ids(tokenizer, sample.text, limit)[:-1])
    random.Random(seed).shuffle(rows)
    return [{"input_ids": row, "labels": list(row)} for row in rows if len(row) > 1]
