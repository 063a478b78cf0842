"""From answers to results: what each model got right, how the models differ, and the verdict in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from so8t_fsm.step import StepFailure
from so8t_ops.evaluation import statistics as st
from so8t_ops.evaluation.predictions import LABELS, VARIANT_NAMES, Answer, Item
from so8t_ops.evaluation.settings import BenchmarkSettings

METRIC_NAMES = {
    "accuracy": ("accuracy", "正解率"),
    "allow_vs_rest": ("allow-or-not accuracy", "可否判定の正解率"),
}


def rounded(value: float | None, digits: int = 6) -> float | None:
    """A float to six significant digits: what a report needs, and nothing that depends on a library's last bit."""
    return None if value is None else float(f"{value:.{digits}g}")


def is_right(metric: str, item: Item, answer: Answer) -> bool:
    """Did this answer count as right?  An answer that names no label never does."""
    if answer.label is None:
        return False
    if metric == "accuracy":
        return answer.label == item.label
    return (answer.label == "ALLOW") == (item.label == "ALLOW")


def summarise(
    items: Sequence[Item], answers: Mapping[str, Mapping[str, Answer]], not_run: Mapping[str, str],
    left_out: Mapping[str, int], settings: BenchmarkSettings,
) -> dict[str, Any]:
    """All results as JSON values; proportions are 0 to 1, ``points`` are hundredths.

    Args:
        answers: per variant that was run, its answer by ``sample_id``.
        not_run: per variant that was not, the reason.

    Raises:
        StepFailure: (data_invalid) a variant answered another set of items than the ones given.
    """
    wanted = {item.sample_id for item in items}
    for variant, given in answers.items():
        odd = wanted ^ set(given)
        if odd:
            raise StepFailure(
                f"variant {variant} answered another set of items ({len(odd)} differ, for example {min(odd)})",
                state="data_invalid", hint="so8t rerun --from evaluating")
    variants: dict[str, Any] = {}
    for variant, name in VARIANT_NAMES.items():
        if variant in answers:
            ordered = [answers[variant][item.sample_id] for item in items]
            variants[variant] = {"name": name, "status": "run", **_scores(items, ordered, settings.confidence)}
        else:
            reason = not_run.get(variant, "not asked for in benchmark.variants")
            variants[variant] = {"name": name, "status": "not run", "reason": reason}
    comparisons = _comparisons(items, answers, settings)
    summary = {
        "format": 1, "labels": list(LABELS), "items": len(items), "left_out": dict(left_out),
        "synthetic_items": sum(item.synthetic for item in items),
        "declared": {
            "primary_metric": settings.primary_metric, "primary_comparison": settings.primary_comparison,
            "alpha": settings.alpha, "confidence": settings.confidence, "power": settings.power,
            "correction": "Holm", "test": "exact McNemar", "bootstrap_resamples": settings.bootstrap_resamples,
            "seed": settings.seed},
        "variants": variants, "comparisons": comparisons,
    }
    summary["verdict"] = verdict(summary)
    return summary


def _proportion(right: int, n: int, confidence: float) -> dict[str, Any]:
    interval = st.wilson(right, n, confidence)
    return {"value": rounded(right / n) if n else None, "right": right, "n": n,
            "low": rounded(interval.low), "high": rounded(interval.high)}


def _scores(items: Sequence[Item], answers: Sequence[Answer], confidence: float) -> dict[str, Any]:
    """Accuracy overall, by class and by language, with Wilson intervals, and the confusion matrix of one model."""
    right = [is_right("accuracy", i, a) for i, a in zip(items, answers, strict=True)]
    matrix = st.confusion([i.label for i in items], [a.label for a in answers], LABELS)
    per_class = {}
    for k, label in enumerate(LABELS):
        given = sum(row[k] for row in matrix)
        per_class[label] = {"recall": _proportion(matrix[k][k], sum(matrix[k]), confidence),
                            "precision": _proportion(matrix[k][k], given, confidence)}
    languages = sorted({i.language for i in items})
    per_language = {}
    for language in languages:
        chosen = [ok for ok, item in zip(right, items, strict=True) if item.language == language]
        per_language[language] = _proportion(sum(chosen), len(chosen), confidence)
    either = sum(is_right("allow_vs_rest", i, a) for i, a in zip(items, answers, strict=True))
    return {"accuracy": _proportion(sum(right), len(items), confidence),
            "allow_vs_rest": _proportion(either, len(items), confidence),
            "no_label": sum(a.label is None for a in answers),
            "per_class": per_class, "per_language": per_language, "confusion": matrix}


def _comparisons(
    items: Sequence[Item], answers: Mapping[str, Mapping[str, Answer]], settings: BenchmarkSettings,
) -> list[dict[str, Any]]:
    """Every pair that was run, on the primary metric, corrected together."""
    metric = settings.primary_metric
    right = {v: [is_right(metric, i, given[i.sample_id]) for i in items] for v, given in sorted(answers.items())}
    pairs = list(combinations(right, 2))
    tests = [st.mcnemar(right[a], right[b]) for a, b in pairs]
    corrected = st.holm([test.p for test in tests])
    rows = []
    for (a, b), test, p_holm in zip(pairs, tests, corrected, strict=True):
        difference, interval = st.paired_difference(
            right[a], right[b], confidence=settings.confidence, resamples=settings.bootstrap_resamples,
            seed=settings.seed)
        excludes_zero = interval.method != "none" and (interval.low > 0 or interval.high < 0)
        # The strictest step of Holm's procedure: the effect that would be found whatever the other pairs show.
        detectable = st.minimum_detectable_difference(
            len(items), test.only_first + test.only_second, alpha=settings.alpha / len(pairs), power=settings.power)
        rows.append({
            "pair": f"{a}-{b}", "metric": metric, "n": len(items), "points": rounded(100 * difference),
            "low_points": rounded(100 * interval.low), "high_points": rounded(100 * interval.high),
            "interval": interval.method, f"only_{a}_right": test.only_first, f"only_{b}_right": test.only_second,
            "p": rounded(test.p), "p_holm": rounded(p_holm), "excludes_zero": excludes_zero,
            "significant": p_holm < settings.alpha and excludes_zero,
            "detectable_points": None if detectable is None else rounded(100 * detectable)})
    return rows


def detectable_text(row: Mapping[str, Any]) -> str:
    """The minimum detectable effect of one comparison, in words."""
    if row["detectable_points"] is None:
        return "no difference could be found with so few items"
    return f"{row['detectable_points']:.1f} points"


def verdict(summary: Mapping[str, Any]) -> dict[str, str]:
    """The predeclared comparison in one sentence, English and Japanese.

    ``outcome`` is better | worse | no_difference | inconclusive | no_verdict, of the second model of the pair.
    """
    declared = summary["declared"]
    first, second = declared["primary_comparison"].split("-")
    absent = [v for v in (first, second) if summary["variants"][v]["status"] != "run"]
    if absent:
        return {"outcome": "no_verdict", "en": f"No verdict: variant {' and '.join(absent)} was not run.",
                "ja": f"判定なし：{'・'.join(absent)} は実行されていません。"}
    row = next(r for r in summary["comparisons"] if r["pair"] == declared["primary_comparison"])
    name_a = f"{first} ({summary['variants'][first]['name']})"
    name_b = f"{second} ({summary['variants'][second]['name']})"
    en_metric, ja_metric = METRIC_NAMES[row["metric"]]
    level = f"{100 * declared['confidence']:g}%"
    numbers = (f"{row['points']:+.1f} points, {level} CI {row['low_points']:+.1f} to {row['high_points']:+.1f}, "
               f"exact McNemar p = {row['p_holm']:.3g} after Holm, n = {row['n']}")
    ja_numbers = (f"差 {row['points']:+.1f} ポイント、"
                  f"{level} 信頼区間 {row['low_points']:+.1f}～{row['high_points']:+.1f}、"
                  f"マクネマー正確検定 p = {row['p_holm']:.3g}（Holm 補正後）、n = {row['n']}")
    if row["significant"]:
        outcome, ja_outcome = ("better", "優れています") if row["points"] > 0 else ("worse", "劣ります")
        return {"outcome": outcome, "en": f"{name_b} is {outcome} than {name_a} in {en_metric}: {numbers}.",
                "ja": f"{ja_metric}で {name_b} は {name_a} より{ja_outcome}：{ja_numbers}。"}
    if row["p_holm"] < declared["alpha"] or row["excludes_zero"]:
        return {"outcome": "inconclusive",
                "en": f"Inconclusive: test and interval disagree on {name_b} against {name_a} in {en_metric}: "
                      f"{numbers}; minimum detectable effect: {detectable_text(row)}.",
                "ja": f"{ja_metric}で {name_b} と {name_a} の差は判定できません（検定と区間が不一致）：{ja_numbers}。"}
    found = (f"the smallest difference these items would show with {100 * declared['power']:g}% power is "
             f"{detectable_text(row)}" if row["detectable_points"] is not None else detectable_text(row))
    ja_found = ("項目数が少なく、どの差も検出できません" if row["detectable_points"] is None else
                f"検出力 {100 * declared['power']:g}% で検出できる最小差は {row['detectable_points']:.1f} ポイント")
    return {"outcome": "no_difference",
            "en": f"No significant difference between {name_b} and {name_a} in {en_metric}: {numbers}; {found}.",
            "ja": f"{ja_metric}で {name_b} と {name_a} に有意差はありません：{ja_numbers}。{ja_found}。"}
