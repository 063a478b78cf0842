"""The model card: front matter for the Hub, text for people, and no number that evaluating did not measure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from so8t_fsm.step import StepFailure
from so8t_ops.hub.payload import Entry
from so8t_ops.hub.settings import UploadSettings

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.j2"
SPLITS = ("train", "validation", "test")


def model_card(inputs: Mapping[str, Path], payload: Sequence[Entry], settings: UploadSettings) -> str:
    """The text of ``README.md``.

    Args:
        inputs: the committed directories of preprocessing, training and evaluating.
        payload: every other file of the upload.
    """
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard_data import model_index_to_eval_results
    from jinja2 import Environment, StrictUndefined

    summary = _read_json(inputs["evaluating"], "evaluating", "summary.json")
    index = _read_json(inputs["evaluating"], "evaluating", "model-index.json")
    results = model_index_to_eval_results(index)[1] if index else None
    base = base_model(inputs["training"])
    data = ModelCardData(
        language=list(settings.languages), license=settings.license, base_model=base, tags=list(settings.tags),
        library_name="transformers" if settings.include_merged else "gguf", pipeline_tag="text-generation",
        eval_results=results, model_name=settings.repo_id.split("/")[1] if results else None)
    # Markdown, not HTML: nothing is escaped here, _cell() guards what comes from the data.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(TEMPLATE.read_text("utf-8")).render(
        card_data=data.to_yaml().strip(), name=settings.repo_id, base_model=base, files=payload,
        gguf=next(e.name for e in payload if e.name.endswith(".gguf")), merged=settings.include_merged,
        summary=summary, percent=f"{100 * summary['declared']['confidence']:g}%",
        data=data_sources(inputs["preprocessing"]))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def base_model(training: Path) -> str | None:
    """The Hub id of the base model, or None where the base is a directory."""
    base = str(_read_json(training, "training", "model.json").get("base", ""))
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", base) is not None
    return base if is_id and not (training / base).exists() else None


def data_sources(preprocessing: Path) -> list[dict[str, Any]]:
    """How many samples of the splits came from which source under which licence, and how many are synthetic."""
    import pyarrow.parquet as pq

    samples: Counter[tuple[str, str]] = Counter()
    synthetic: Counter[tuple[str, str]] = Counter()
    for split in SPLITS:
        path = preprocessing / f"{split}.parquet"
        if not path.is_file():
            continue
        columns = set(pq.read_schema(path).names) & {"source", "licence", "synthetic"}
        for row in pq.read_table(path, columns=sorted(columns)).to_pylist():
            key = (_cell(row.get("source")), _cell(row.get("licence")))
            samples[key] += 1
            synthetic[key] += bool(row.get("synthetic"))
    return [{"source": source, "licence": licence, "samples": n, "synthetic": synthetic[source, licence]}
            for (source, licence), n in sorted(samples.items())]


def _cell(value: Any) -> str:
    """A value that cannot break out of a Markdown table."""
    return re.sub(r"\s+", " ", str(value or "?")).replace("|", "\\|").replace("<", "&lt;")


def _read_json(directory: Path, step: str, name: str) -> Any:
    try:
        return json.loads((directory / name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StepFailure(f"{step}/{name} cannot be read ({error})", state="data_invalid",
                          hint=f"so8t rerun --from {step}") from error
