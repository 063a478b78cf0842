"""Step 5: the base model, the warm start and the PPO model on the same held-out items, compared as pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from so8t_fsm.step import GiB, MiB, Needs, Settings, Step, StepContext, StepFailure
from so8t_ops.evaluation.predictions import Load, Predict
from so8t_ops.evaluation.settings import BenchmarkSettings


class Evaluate(Step):
    """Commits ``items.parquet``, ``summary.json``, ``model-index.json`` and ``abc_report.html``.

    Args:
        load, predict: how a variant is loaded and asked; by default :mod:`so8t_ops.model.classify`.
    """

    name: ClassVar[str] = "evaluating"
    state: ClassVar[str] = "evaluating"
    sections: ClassVar[Mapping[str, type[Settings]]] = {"benchmark": BenchmarkSettings}
    reads: ClassVar[tuple[str, ...]] = ("benchmark",)
    uses: ClassVar[tuple[str, ...]] = ("preprocessing", "training")

    def __init__(self, load: Load | None = None, predict: Predict | None = None) -> None:
        self._load, self._predict = load, predict

    def needs(self, config: Mapping[str, Mapping[str, Any]], home: Path, out: Path) -> Needs:
        return Needs(disk={out: 64 * MiB}, ram=1 * GiB)

    def run(self, ctx: StepContext) -> None:
        from so8t_ops.evaluation import compare, pages
        from so8t_ops.evaluation import predictions as pr

        settings = ctx.section("benchmark", BenchmarkSettings)
        training = ctx.inputs["training"]
        items, left_out = pr.read_items(ctx.inputs["preprocessing"] / "test.parquet", settings.max_items)
        not_run: dict[str, str] = {v: reason for v in settings.variants if (reason := pr.missing_variant(training, v))}
        variants = [v for v in pr.VARIANT_NAMES if v in settings.variants and v not in not_run]
        if not variants:
            raise StepFailure(
                f"training: none of the variants {', '.join(settings.variants)} can be run", state="data_invalid",
                hint="name A, B or C in benchmark.variants, or run so8t rerun --from training")
        load, predict = self._asking()
        answers = pr.collect_answers(ctx, items, variants, settings, load, predict)
        by_item = {v: dict(zip([i.sample_id for i in items], given, strict=True)) for v, given in answers.items()}
        summary = compare.summarise(items, by_item, not_run, left_out, settings)

        write_items(ctx.out / "items.parquet", items, answers)
        _write_json(ctx.out / "summary.json", summary)
        _write_json(ctx.out / "model-index.json", model_index(summary))
        page = pages.abc_report(summary, items, answers, settings.shown_disagreements)
        (ctx.out / "abc_report.html").write_text(page, encoding="utf-8", newline="\n")

    def _asking(self) -> tuple[Load, Predict]:
        if self._load and self._predict:
            return self._load, self._predict
        from so8t_ops.model.classify import load_variant, predict_labels

        return self._load or load_variant, self._predict or predict_labels


def write_items(path: Path, items: Sequence[Any], answers: Mapping[str, Sequence[Any]]) -> None:
    """One row per item: what it is, and per variant that was run its label, its text, whether it was right, and its
    score for each label (null where the model gave none)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from so8t_ops.evaluation.predictions import LABELS

    columns: dict[str, Any] = {
        name: pa.array([getattr(item, name) for item in items], pa.bool_() if name == "synthetic" else pa.string())
        for name in ("sample_id", "text", "label", "language", "source", "synthetic")}
    scores = pa.struct([(label, pa.float64()) for label in LABELS])
    for variant, given in answers.items():
        columns[f"{variant}_label"] = pa.array([a.label for a in given], pa.string())
        columns[f"{variant}_text"] = pa.array([a.text for a in given], pa.string())
        columns[f"{variant}_right"] = pa.array(
            [a.label == i.label for a, i in zip(given, items, strict=True)], pa.bool_())
        columns[f"{variant}_scores"] = pa.array([{k: a.scores.get(k) for k in LABELS} for a in given], scores)
    pq.write_table(pa.table(columns), path, compression="zstd")


def model_index(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of the published model C in the Hub's ``model-index`` form; empty where C was not run."""
    score = summary["variants"]["C"]
    if score["status"] != "run":
        return []
    metrics = [{"type": "accuracy", "name": "Accuracy", "value": score["accuracy"]["value"]},
               {"type": "accuracy", "name": "Accuracy, allow or not", "value": score["allow_vs_rest"]["value"]}]
    metrics += [{"type": "recall", "name": f"Recall {label}", "value": c["recall"]["value"]}
                for label, c in score["per_class"].items() if c["recall"]["n"]]
    return [{"name": "SO8T", "results": [{
        "task": {"type": "text-classification", "name": "Four-way safety decision"},
        "dataset": {"type": "so8t-test", "name": "SO8T held-out test split", "split": "test"},
        "metrics": metrics}]}]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")
