"""The warm start: teach prompt → label and one sentence through a LoRA adapter, on the scored tokens alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from so8t_ops.model.load import load_base, load_tokenizer
from so8t_ops.model.prompt import answer, prompt_ids, stop_ids
from so8t_ops.training.adapters import add_lora, write_adapter
from so8t_ops.training.dataset import Sample
from so8t_ops.training.determinism import settle
from so8t_ops.training.journal import Journal
from so8t_ops.training.settings import TrainingSettings
from so8t_ops.training.supervised import Plan, fit


def warm_start(
    journal: Journal, folder: Path, base_name: str, dtype: Any, settings: TrainingSettings, samples: list[Sample],
) -> None:
    """Write ``warm/`` into the context's output.

    Raises:
        StopRequested: asked to stop; the checkpoint is safe.
        StepFailure: the loss is no longer a number (``diverged``).
    """
    sft = settings.sft
    settle(settings.seed + 1, settings.threads)
    tokenizer = load_tokenizer(folder)
    model = add_lora(load_base(folder, dtype), settings.lora, dropout=settings.lora.dropout)
    plan = Plan(
        "warm", epochs=sft.epochs, max_steps=sft.max_steps, learning_rate=settings.learning_rate * sft.lr_scale,
        warmup=sft.warmup, batch_size=settings.batch_size, accumulation=settings.gradient_accumulation_steps,
        seed=settings.seed, checkpointing=settings.gradient_checkpointing,
    )
    rows = [_row(sample, tokenizer, _end(model, tokenizer), settings.max_length) for sample in samples]
    curve = fit(journal, plan, model, tokenizer, rows)
    write_adapter(model, journal.ctx.out / "warm", base_name)
    journal.finish("warm", "ppo", curve, len(curve))


def _end(model: Any, tokenizer: Any) -> int:
    """The token that ends an answer: Phi-3's ``<|end|>`` where the tokenizer has it."""
    end = tokenizer.get_vocab().get("<|end|>", tokenizer.eos_token_id)
    assert end in stop_ids(model, tokenizer)
    return int(end)


def _row(sample: Sample, tokenizer: Any, end: int, limit: int) -> dict[str, list[int]]:
    assert sample.label is not None
    prompt = prompt_ids(tokenizer, sample.text, limit)
    said = [*tokenizer(answer(sample.label, sample.language), add_special_tokens=False)["input_ids"], end]
    return {"input_ids": prompt + said, "labels": [-100] * len(prompt) + said}
