"""The splits as the training phases need them: prompts with labels, and text without."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from so8t_fsm.step import StepFailure
from so8t_ops.model.prompt import LABELS

COLUMNS = ("sample_id", "modality", "text", "label", "language")


@dataclass(frozen=True)
class Sample:
    """A prompt and the class it belongs to; ``label`` is None for text that only the language model reads."""

    text: str
    label: str | None
    language: str


def read_split(path: Path) -> list[Sample]:
    """The text samples of one split in the order of their ids.

    Raises:
        StepFailure: the file cannot be read, misses a column or holds an unknown label (``data_invalid``).
    """
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    try:
        rows = parquet.read_table(path, columns=list(COLUMNS)).to_pylist()
    except (OSError, ArrowException, KeyError) as error:
        raise StepFailure(
            f"{path.name}: {error}", state="data_invalid", hint="Run the preprocessing step again.",
        ) from error
    unknown = {row["label"] for row in rows} - {*LABELS, None}
    if unknown:
        raise StepFailure(
            f"{path.name}: unknown label {min(map(str, unknown))!r}", state="data_invalid",
            hint=f"Labels are {', '.join(LABELS)}, or empty.",
        )
    rows.sort(key=lambda row: str(row["sample_id"]))
    return [
        Sample(row["text"], row["label"], row["language"] or "en")
        for row in rows if row["modality"] == "text" and row["text"] and row["text"].strip()
    ]


def labelled(samples: list[Sample], at_most: int, seed: int) -> list[Sample]:
    """The samples that carry a label, a seeded choice of ``at_most`` of them when that is not 0.

    Raises:
        StepFailure: there are fewer than two of them (``data_invalid``).
    """
    chosen = [sample for sample in samples if sample.label is not None]
    if len(chosen) < 2:
        raise StepFailure(
            f"train.parquet: {len(chosen)} labelled text samples, at least 2 are needed", state="data_invalid",
            hint="Check data.* and the rejected rows of the preprocessing step.",
        )
    if at_most and at_most < len(chosen):
        kept = sorted(random.Random(seed).sample(range(len(chosen)), at_most))
        chosen = [chosen[i] for i in kept]
    return chosen
