"""Which items are asked, and what each model answers: run once, kept in checkpoints, never run again."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from so8t_fsm.step import StepContext, StepFailure, artifacts
from so8t_ops.evaluation.settings import BenchmarkSettings

LABELS = ("ALLOW", "ESCALATION", "DENY", "REFUSE")
VARIANT_NAMES = {"A": "base", "B": "warm start", "C": "PPO"}
CHECKPOINT_FILE = "predictions.json"

Load = Callable[[Path, str], tuple[Any, Any]]
"""``load_variant(training directory, variant)`` gives a model and its tokenizer."""
Predict = Callable[..., Sequence[Any]]
"""``predict_labels(model, tokenizer, texts, languages=…, batch_size=…)`` gives one answer per text, with the
attributes ``label``, ``text`` and ``scores``."""


@dataclass(frozen=True)
class Item:
    """One item of the held-out split."""

    sample_id: str
    text: str
    label: str
    language: str
    source: str
    synthetic: bool


@dataclass(frozen=True)
class Answer:
    """What a model said to one item.  ``label`` is None where it named none of the four."""

    label: str | None
    text: str
    scores: Mapping[str, float]


def read_items(path: Path, max_items: int = 0) -> tuple[list[Item], dict[str, int]]:
    """The labelled text items of a split in the order of the file, and how many rows were left out, by reason.

    Raises:
        StepFailure: (data_invalid) the file is missing, lacks a column, repeats an item or has an unknown label.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise StepFailure(f"{path.name}: the test split cannot be read ({error})", state="data_invalid",
                          hint="so8t rerun --from preprocessing") from error
    items: list[Item] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for number, row in enumerate(rows):
        missing = {"sample_id", "modality", "text", "label"} - set(row)
        if missing:
            raise _bad_split(path, f"has no column {', '.join(sorted(missing))}")
        if row["sample_id"] in seen:
            raise _bad_split(path, f"row {number} repeats the item {row['sample_id']}")
        seen.add(row["sample_id"])
        if row["modality"] != "text":
            left_out[row["modality"]] += 1
        elif row["label"] is None:
            left_out["unlabelled"] += 1
        elif row["label"] not in LABELS:
            raise _bad_split(path, f"row {number} has the label {row['label']!r}, not one of {', '.join(LABELS)}")
        else:
            items.append(Item(row["sample_id"], row["text"] or "", row["label"], row.get("language") or "?",
                              row.get("source") or "?", bool(row.get("synthetic"))))
    if max_items and len(items) > max_items:
        left_out["over_max_items"] = len(items) - max_items
        chosen = {i.sample_id for i in sorted(items, key=lambda i: artifacts.canonical_hash(i.sample_id))[:max_items]}
        items = [item for item in items if item.sample_id in chosen]
    if not items:
        raise _bad_split(path, "has no labelled text item")
    return items, dict(sorted(left_out.items()))


def _bad_split(path: Path, what: str) -> StepFailure:
    return StepFailure(f"{path.name} {what}", state="data_invalid", hint="so8t rerun --from preprocessing")


def missing_variant(training: Path, variant: str) -> str | None:
    """Why a variant cannot be run, or None when it can."""
    if variant == "A":
        return None
    try:
        adapters = json.loads((training / "model.json").read_text("utf-8")).get("adapters", {})
    except (OSError, ValueError) as error:
        raise StepFailure(f"training/model.json cannot be read ({error})", state="data_invalid",
                          hint="so8t rerun --from training") from error
    # C lies on top of B, so it needs both.
    for name in ("B", "C") if variant == "C" else ("B",):
        if name not in adapters:
            return f"training made no adapter for {name}"
        if not (training / adapters[name]).is_dir():
            return f"the adapter directory {adapters[name]} is missing"
    return None


def collect_answers(
    ctx: StepContext, items: Sequence[Item], variants: Sequence[str], settings: BenchmarkSettings,
    load: Load, predict: Predict,
) -> dict[str, list[Answer]]:
    """Ask every variant every item, batch by batch, going on where the newest checkpoint left off.

    Returns:
        Per variant, one answer per item, in the order of ``items``.

    Raises:
        StopRequested: through the context; what was answered is in a checkpoint.
        StepFailure: (crashed) a model gave more or fewer answers than it was asked for.
    """
    fingerprint = artifacts.canonical_hash(
        {"items": [[i.sample_id, i.label, i.text] for i in items], "training": ctx.identities.get("training", "")})
    answers = _restore(ctx.checkpoint, fingerprint, variants, len(items))
    total = len(items) * len(variants)
    done = sum(map(len, answers.values()))
    ctx.progress(done, total)

    def save(directory: Path) -> None:
        state = {"fingerprint": fingerprint, "answers": {
            v: [[a.label, a.text, dict(a.scores)] for a in given] for v, given in answers.items()}}
        (directory / CHECKPOINT_FILE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")

    for variant in variants:
        given = answers[variant]
        if len(given) == len(items):
            continue
        model, tokenizer = load(ctx.inputs["training"], variant)
        while len(given) < len(items):
            batch = items[len(given) : len(given) + settings.batch_size]
            said = predict(model, tokenizer, [i.text for i in batch], languages=[i.language for i in batch],
                           batch_size=settings.batch_size)
            if len(said) != len(batch):
                raise StepFailure(f"variant {variant} gave {len(said)} answers to {len(batch)} items")
            given.extend(Answer(p.label if p.label in LABELS else None, p.text,
                                {k: round(float(v), 6) for k, v in sorted((p.scores or {}).items())}) for p in said)
            done += len(batch)
            ctx.progress(done, total, note=f"{variant} ({VARIANT_NAMES[variant]})")
            ctx.maybe_checkpoint(save, done)
        # One model at a time: the next one may need all of the memory.
        del model, tokenizer
        gc.collect()
    return answers


def _restore(
    checkpoint: Path | None, fingerprint: str, variants: Sequence[str], limit: int,
) -> dict[str, list[Answer]]:
    """What a checkpoint holds of these items and this training; nothing, where it is about others."""
    answers: dict[str, list[Answer]] = {variant: [] for variant in variants}
    if checkpoint is None:
        return answers
    state = json.loads((checkpoint / CHECKPOINT_FILE).read_text("utf-8"))
    if state.get("fingerprint") == fingerprint:
        for variant in variants:
            answers[variant] = [Answer(*row) for row in state["answers"].get(variant, [])][:limit]
    return answers
