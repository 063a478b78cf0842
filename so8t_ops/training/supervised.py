"""Supervised phases on TRL's trainer, made exact across interruptions.

The trainer's own checkpoints are written in place and picked by name, so that a half-written one can be taken for the
newest.  Here the trainer writes into a scratch directory, the context seals a copy, and a resume is always told the
path of a checkpoint that verified.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from so8t_fsm.step import StepFailure
from so8t_ops.training.journal import Curve, Journal

MEASURES = ("loss", "grad_norm", "learning_rate")


@dataclass(frozen=True)
class Plan:
    """How one supervised phase runs.  ``max_steps`` 0 leaves the length to ``epochs``."""

    name: str
    epochs: float
    max_steps: int
    learning_rate: float
    warmup: float
    batch_size: int
    accumulation: int
    seed: int
    checkpointing: bool = False


def fit(journal: Journal, plan: Plan, model: Any, tokenizer: Any, rows: Sequence[dict[str, list[int]]]) -> Curve:
    """Train ``model`` in place on rows of ``input_ids`` and ``labels`` (-100: not scored).  Returns the curve.

    Raises:
        StopRequested: asked to stop; the checkpoint is safe.
        StepFailure: the loss or the gradient is no longer a number (``diverged``).
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    scratch = journal.ctx.scratch / plan.name
    on_gpu = torch.cuda.is_available()
    per_epoch = math.ceil(len(rows) / (plan.batch_size * plan.accumulation))
    total = plan.max_steps or max(1, math.ceil(plan.epochs * per_epoch))
    arguments = SFTConfig(
        output_dir=str(scratch), max_steps=total, per_device_train_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.accumulation, learning_rate=plan.learning_rate, lr_scheduler_type="cosine",
        warmup_steps=int(plan.warmup * total), seed=plan.seed, data_seed=plan.seed, use_cpu=not on_gpu,
        bf16=on_gpu and next(model.parameters()).dtype == torch.bfloat16, gradient_checkpointing=plan.checkpointing,
        # Averages over several steps would restart at a resume and change the curve: one entry per step.
        logging_steps=1, logging_nan_inf_filter=False, save_strategy="no", report_to="none", disable_tqdm=True,
        max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, dataloader_num_workers=0, loss_type="nll",
    )
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(list(rows)), processing_class=tokenizer,
        callbacks=[_keeper()(journal, plan, scratch, total)],
    )
    trainer.remove_callback(PrinterCallback)  # one line a step would drown the log that people and rules read
    trainer.train(resume_from_checkpoint=_restore(journal, scratch))
    return _curve(trainer.state.log_history)


def _restore(journal: Journal, scratch: Path) -> str | None:
    if journal.inside is None:
        return None
    kept = next(journal.inside.glob("checkpoint-*"))
    target = scratch / kept.name
    shutil.copytree(kept, target, dirs_exist_ok=True)
    return str(target)


def _curve(history: Sequence[dict[str, Any]]) -> Curve:
    """Only what repeats: the trainer also logs speeds, and running means that restart at a resume."""
    return [
        {"step": entry["step"], **{key: float(entry[key]) for key in MEASURES if key in entry}}
        for entry in history if "loss" in entry
    ]


def _keeper() -> type:
    """The callback class, made late because its base class is in transformers."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        """Reports progress, saves when due, and refuses to go on with numbers that are none."""

        def __init__(self, journal: Journal, plan: Plan, scratch: Path, total: int) -> None:
            self.journal, self.plan, self.scratch, self.total = journal, plan, scratch, total

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # A restored scheduler brings back its old learning rate; the settings decide, they may have been lowered.
            scheduler, optimizer = kwargs.get("lr_scheduler"), kwargs.get("optimizer")
            if scheduler is None or optimizer is None or not hasattr(scheduler, "lr_lambdas"):
                return
            scheduler.base_lrs = [args.learning_rate] * len(scheduler.base_lrs)
            for group, scale in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
                group["initial_lr"] = args.learning_rate
                group["lr"] = args.learning_rate * scale(scheduler.last_epoch)
            scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # what the log will say

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            for key in ("loss", "grad_norm"):
                if key in logs and not math.isfinite(float(logs[key])):
                    raise StepFailure(
                        f"training.{self.plan.name}: {key} is {logs[key]} at step {state.global_step}",
                        state="diverged", hint="Lower training.learning_rate and resume from an earlier checkpoint.",
                    )

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            self.journal.ctx.progress(state.global_step, self.total, "steps", self.plan.name)
            if state.global_step < self.total and self.journal.ctx.checkpoint_due():
                control.should_save = True
            return control

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= self.total:
                return  # the phase's end is saved by the journal
            written = self.scratch / f"checkpoint-{state.global_step}"

            def write(directory: Path) -> None:
                shutil.move(written, directory / written.name)
                # A pickle that nobody reads back has no place in a checkpoint.
                (directory / written.name / "training_args.bin").unlink(missing_ok=True)

            self.journal.save(write, state.global_step)

    return Keeper
