"""The A/B/C comparison: its statistics against scipy and hand-worked tables, its step against fabricated models."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats

from so8t_fsm import artifacts
from so8t_fsm.step import StepFailure
from so8t_fsm.testing import run_step
from so8t_ops.evaluate import Evaluate
from so8t_ops.evaluation import compare
from so8t_ops.evaluation import statistics as st
from so8t_ops.evaluation.predictions import LABELS, Answer, Item
from so8t_ops.evaluation.settings import BenchmarkSettings

PAIRS = some.lists(some.tuples(some.booleans(), some.booleans()), min_size=1, max_size=60)
# No deadline: the machine that runs the tests may be busy.
FEW = settings(max_examples=30, deadline=None)
QUICK = {"bootstrap_resamples": 400, "batch_size": 7}


# --- statistics --------------------------------------------------------------------------------------------------

def test_mcnemar_by_hand() -> None:
    # 1 against 7 discordant items: two-sided binomial, 2 · (C(8,0) + C(8,1)) / 2^8 = 18/256.
    first = [True] * 5 + [True] + [False] * 7 + [False] * 3
    second = [True] * 5 + [False] + [True] * 7 + [False] * 3
    assert st.mcnemar(first, second) == st.McNemar(1, 7, pytest.approx(18 / 256))


@FEW
@given(PAIRS)
def test_mcnemar_is_the_binomial_test_and_symmetric(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    one, other = st.mcnemar(first, second), st.mcnemar(second, first)
    assert 0 <= one.p <= 1
    assert one.p == other.p and (one.only_first, one.only_second) == (other.only_second, other.only_first)
    discordant = one.only_first + one.only_second
    expected = stats.binomtest(one.only_first, discordant).pvalue if discordant else 1.0
    assert one.p == pytest.approx(expected)


def test_mcnemar_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError):
        st.mcnemar([True], [True, False])


def test_holm_by_hand() -> None:
    # Sorted .01 .03 .04 times 3, 2, 1, never falling.
    assert st.holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert st.holm([]) == []


@FEW
@given(some.lists(some.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_order_and_only_raises(p_values: list[float]) -> None:
    corrected = st.holm(p_values)
    assert all(q >= p - 1e-12 and 0 <= q <= 1 for p, q in zip(p_values, corrected, strict=True))
    in_order = [q for _, q in sorted(zip(p_values, corrected, strict=True))]
    assert in_order == sorted(in_order)


@FEW
@given(some.integers(0, 200), some.integers(0, 200), some.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_matches_scipy(right: int, more: int, confidence: float) -> None:
    n = right + more
    interval = st.wilson(right, n, confidence)
    if n == 0:
        assert (interval.low, interval.high, interval.method) == (0.0, 1.0, "none")
        return
    known = stats.binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((known.low, known.high), abs=1e-9)
    assert 0 <= interval.low <= right / n + 1e-12 and right / n - 1e-12 <= interval.high <= 1


def test_difference_is_scipys_bca_bootstrap() -> None:
    import numpy as np

    first, second = [True] * 20 + [False] * 20, [True] * 15 + [False] * 5 + [True] * 12 + [False] * 8
    estimate, interval = st.paired_difference(first, second, resamples=1000, seed=3)
    known = stats.bootstrap((np.array([b - a for a, b in zip(map(int, first), map(int, second), strict=True)]) * 1.0,),
                            np.mean, n_resamples=1000, batch=500, method="BCa", rng=np.random.default_rng(3))
    assert estimate == pytest.approx(7 / 40) and interval.method == "BCa bootstrap"
    assert (interval.low, interval.high) == tuple(known.confidence_interval)
    assert st.paired_difference(first, second, resamples=1000, seed=3) == (estimate, interval)


@pytest.mark.parametrize(("first", "second", "low", "high"), [
    (False, False, -0.3085, 0.3085), (True, True, -0.3085, 0.3085),
    (False, True, 0.3831, 1.0), (True, False, -1.0, -0.3831)])
def test_equal_differences_get_an_honest_interval(first: bool, second: bool, low: float, high: float) -> None:
    # Upper Clopper-Pearson limit of 0 in 10: 1 - 0.025^(1/10) = 0.30850.
    _, interval = st.paired_difference([first] * 10, [second] * 10)
    assert interval.method == "Clopper-Pearson bound"
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=2e-4)
    assert stats.beta.ppf(0.975, 1, 10) == pytest.approx(0.30850, abs=1e-5)


@FEW
@given(PAIRS)
def test_difference_is_always_finite_and_inside(pairs: list[tuple[bool, bool]]) -> None:
    estimate, interval = st.paired_difference([a for a, _ in pairs], [b for _, b in pairs], resamples=200)
    assert -1 <= interval.low <= interval.high <= 1 and math.isfinite(estimate)


def test_detectable_difference_solves_connors_formula() -> None:
    n, psi = 400, 80 / 400
    d = st.minimum_detectable_difference(n, 80, alpha=0.05, power=0.8)
    assert d is not None
    z_a, z_b = stats.norm.ppf(0.975), stats.norm.ppf(0.8)
    assert (z_a * psi**0.5 + z_b * (psi - d * d) ** 0.5) ** 2 / d**2 == pytest.approx(n, rel=1e-6)
    assert st.minimum_detectable_difference(3, 0, alpha=0.05) is None
    assert st.minimum_detectable_difference(0, 0, alpha=0.05) is None


@FEW
@given(some.integers(8, 2000), some.floats(0, 1))
def test_more_items_detect_smaller_differences(n: int, share: float) -> None:
    few = st.minimum_detectable_difference(n, round(n * share), alpha=0.05)
    many = st.minimum_detectable_difference(4 * n, 4 * round(n * share), alpha=0.05)
    assert few is not None and many is not None and 0 < many < few <= 1


def test_confusion_by_hand() -> None:
    assert st.confusion(["a", "a", "b"], ["a", None, "x"], ["a", "b"]) == [[1, 0, 1], [0, 0, 1]]
    with pytest.raises(ValueError, match="'c' is not one of"):
        st.confusion(["c"], ["a"], ["a", "b"])


# --- the step ----------------------------------------------------------------------------------------------------

@dataclass
class FakeModels:
    """Three models: right on a fixed share of the items, by the item's number.  Counts what it was asked."""

    share: dict[str, int] = field(default_factory=lambda: {"A": 3, "B": 6, "C": 9})
    asked: list[tuple[str, str]] = field(default_factory=list)
    short: bool = False

    def load(self, training: Path, variant: str) -> tuple[str, None]:
        assert (training / "model.json").is_file()
        return variant, None

    def predict(self, model: str, tokenizer: None, texts: Sequence[str], languages: Sequence[str] | None = None,
                batch_size: int = 16) -> list[Answer]:
        said = []
        for text in texts:
            self.asked.append((model, text))
            number = int(text.split("#")[1])
            truth = LABELS[number % 4]
            label = truth if number % 10 < self.share[model] else LABELS[(number + 1) % 4]
            label = None if number % 37 == 36 else label
            said.append(Answer(label, f"<final>{label}</final>", {label: 0.1 + number / 1000} if label else {}))
        return said[:-1] if self.short else said


def rows(n: int = 60, **changes: Any) -> list[dict[str, Any]]:
    made = [{"sample_id": f"s{k:04}", "modality": "text", "text": f"<b>問い</b> & question #{k}",
             "label": LABELS[k % 4], "language": "ja" if k % 2 else "en", "source": "made", "synthetic": True}
            for k in range(n)]
    return [{**row, **changes} for row in made]


def inputs(
    home: Path, table: list[dict[str, Any]] | None = None, adapters: Sequence[str] = ("B", "C"),
) -> dict[str, Path]:
    split, training = home / "in" / "preprocessing", home / "in" / "training"
    split.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows() if table is None else table), split / "test.parquet")
    names = {"B": "warm", "C": "ppo"}
    for variant in adapters:
        (training / names[variant]).mkdir(parents=True)
        (training / names[variant] / "adapter_config.json").write_text("{}")
    training.mkdir(exist_ok=True)
    (training / "model.json").write_text(json.dumps({"base": "base", "adapters": {v: names[v] for v in adapters}}))
    for directory in (split, training):
        artifacts.seal(directory)
    return {"preprocessing": split, "training": training}


def evaluate(home: Path, given: dict[str, Path], models: FakeModels | None = None, *, attempt: int = 1,
             stop_when: Any = None, **benchmark: Any) -> Path | None:
    models = models or FakeModels()
    step = Evaluate(models.load, models.predict)
    return run_step(step, {"benchmark": {**QUICK, **benchmark}}, home, given, attempt=attempt, stop_when=stop_when)[0]


def loaded(directory: Path | None, name: str) -> Any:
    assert directory is not None
    return json.loads((directory / name).read_text("utf-8"))


def test_three_models_are_compared(tmp_path: Path) -> None:
    done = evaluate(tmp_path, inputs(tmp_path))
    summary = loaded(done, "summary.json")
    # 60 items, of which number 36 gets no label from anybody; 36 % 10 = 6 would be right for C alone.
    assert [summary["variants"][v]["accuracy"]["right"] for v in "ABC"] == [18, 36, 53]
    assert [summary["variants"][v]["no_label"] for v in "ABC"] == [1, 1, 1]
    assert [row["pair"] for row in summary["comparisons"]] == ["A-B", "A-C", "B-C"]
    a_c = summary["comparisons"][1]
    assert (a_c["only_A_right"], a_c["only_C_right"]) == (0, 35)
    assert a_c["p"] == pytest.approx(2 * 0.5**35) and a_c["p_holm"] == pytest.approx(3 * 2 * 0.5**35)
    assert a_c["points"] == pytest.approx(100 * 35 / 60, rel=1e-5) and a_c["significant"]
    assert summary["verdict"]["outcome"] == "better"
    assert summary["verdict"]["en"].startswith("C (PPO) is better than A (base) in accuracy: +58.3 points")
    for v in "ABC":
        matrix = summary["variants"][v]["confusion"]
        assert sum(map(sum, matrix)) == 60 and sum(row[-1] for row in matrix) == 1
        assert sum(matrix[k][k] for k in range(4)) == summary["variants"][v]["accuracy"]["right"]
        assert sum(c["n"] for c in summary["variants"][v]["per_language"].values()) == 60

    table = pq.read_table(done / "items.parquet").to_pylist()  # type: ignore[operator]
    assert len(table) == 60 and table[36]["C_label"] is None and not table[36]["C_right"]
    assert sum(row["B_right"] for row in table) == 36
    assert table[0]["A_scores"] == {"ALLOW": 0.1, "ESCALATION": None, "DENY": None, "REFUSE": None}


def test_model_index_is_what_the_hub_reads(tmp_path: Path) -> None:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    index = loaded(evaluate(tmp_path, inputs(tmp_path)), "model-index.json")
    name, results = model_index_to_eval_results(index)
    assert name == "SO8T" and results[0].metric_value == pytest.approx(53 / 60, rel=1e-5)
    assert {r.metric_name for r in results} >= {"Accuracy", "Recall REFUSE"}


class Page(HTMLParser):
    """Fails on a tag closed out of turn; keeps the text and the svg ids."""

    VOID = {"meta", "br", "link", "img", "hr"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        assert not self.stack, f"left open: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.stack.append(tag)
        self.ids += [value or "" for key, value in attrs if key == "id"]
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for key, value in attrs if key == "id"]
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def svgs(html: str) -> Iterator[ElementTree.Element]:
    start = 0
    while (start := html.find("<svg", start)) >= 0:
        end = html.index("</svg>", start) + len("</svg>")
        yield ElementTree.fromstring(html[start:end])
        start = end


def test_report_is_one_sound_page(tmp_path: Path) -> None:
    done = evaluate(tmp_path, inputs(tmp_path))
    assert done is not None
    html = (done / "abc_report.html").read_text("utf-8")
    page = Page(html)
    text = " ".join(page.words)
    assert loaded(done, "summary.json")["verdict"]["ja"] in text and "混同行列" in text
    assert "60 of 60 items are synthetic" in text
    assert "&lt;b&gt;問い&lt;/b&gt; &amp; question #3" in html and "<b>問い" not in html
    assert len(page.ids) == len(set(page.ids)), "an id is used twice"
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links), "the page needs another file"
    assert len(list(svgs(html))) == 3


def test_interrupted_anywhere_the_bytes_are_the_same_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    whole = evaluate(tmp_path / "whole", given)
    assert whole is not None
    models, attempt, done = FakeModels(), 0, None
    while done is None:
        attempt += 1
        before = len(models.asked)
        done = evaluate(tmp_path / "cut", given, models, attempt=attempt,
                        stop_when=lambda _, before=before: before < len(models.asked) < 180)
    assert attempt == 27  # a stop after every one of the 27 batches but the last
    assert len(models.asked) == len(set(models.asked)) == 180
    assert artifacts.Manifest.load(done).files == artifacts.Manifest.load(whole).files


def test_a_checkpoint_of_another_training_is_not_used(tmp_path: Path) -> None:
    given, models = inputs(tmp_path), FakeModels()
    assert evaluate(tmp_path, given, models, stop_when=lambda seen: any(r.get("done") == 0 for r in seen)) is None
    assert len(models.asked) == 7
    (given["training"] / "ppo" / "adapter_config.json").write_text('{"r": 8}')
    artifacts.seal(given["training"])
    assert evaluate(tmp_path, given, models, attempt=2) is not None
    assert len(models.asked) == 7 + 180


def test_what_was_not_run_has_no_number(tmp_path: Path) -> None:
    done = evaluate(tmp_path, inputs(tmp_path, adapters=["B"]))
    summary = loaded(done, "summary.json")
    assert summary["variants"]["C"] == {"name": "PPO", "status": "not run", "reason": "training made no adapter for C"}
    assert [row["pair"] for row in summary["comparisons"]] == ["A-B"]
    assert summary["verdict"] == {"outcome": "no_verdict", "en": "No verdict: variant C was not run.",
                                  "ja": "判定なし：C は実行されていません。"}
    assert loaded(done, "model-index.json") == []
    assert "not run: training made no adapter for C" in (done / "abc_report.html").read_text("utf-8")  # type: ignore


def test_a_lost_adapter_is_said_and_what_lies_on_top_of_it_is_not_run(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    (given["training"] / "warm" / "adapter_config.json").unlink()
    (given["training"] / "warm").rmdir()
    artifacts.seal(given["training"])
    summary = loaded(evaluate(tmp_path, given), "summary.json")
    assert {v: s.get("reason") for v, s in summary["variants"].items()} == {
        "A": None, "B": "the adapter directory warm is missing", "C": "the adapter directory warm is missing"}


def test_base_alone_still_makes_a_report(tmp_path: Path) -> None:
    done = evaluate(tmp_path, inputs(tmp_path, adapters=[]))
    assert loaded(done, "summary.json")["comparisons"] == []
    Page((done / "abc_report.html").read_text("utf-8"))  # type: ignore[operator]


def test_no_difference_names_what_could_have_been_found(tmp_path: Path) -> None:
    models = FakeModels(share={"A": 5, "B": 5, "C": 5})
    verdict = loaded(evaluate(tmp_path, inputs(tmp_path), models), "summary.json")["verdict"]
    assert verdict["outcome"] == "no_difference"
    assert "+0.0 points" in verdict["en"] and "80% power is" in verdict["en"] and "検出できる最小差" in verdict["ja"]


def test_a_worse_model_is_called_worse(tmp_path: Path) -> None:
    models = FakeModels(share={"A": 9, "B": 6, "C": 2})
    verdict = loaded(evaluate(tmp_path, inputs(tmp_path), models), "summary.json")["verdict"]
    assert verdict["outcome"] == "worse" and "劣ります" in verdict["ja"]


def test_only_labelled_text_is_scored_and_the_rest_is_said(tmp_path: Path) -> None:
    table = rows(20) + [dict(r, sample_id=r["sample_id"] + "i", modality="image") for r in rows(3)]
    table += [dict(rows(1)[0], sample_id="u", label=None)]
    summary = loaded(evaluate(tmp_path, inputs(tmp_path, table), max_items=12), "summary.json")
    assert summary["items"] == 12 and summary["left_out"] == {"image": 3, "over_max_items": 8, "unlabelled": 1}


@pytest.mark.parametrize(("table", "message"), [
    (rows(4) + rows(1), "row 4 repeats the item s0000"),
    (rows(4, label="MAYBE"), "row 0 has the label 'MAYBE', not one of ALLOW, ESCALATION, DENY, REFUSE"),
    (rows(4, modality="audio"), "has no labelled text item"),
    ([{"sample_id": "x", "text": "y"}], "has no column label, modality")])
def test_a_bad_split_is_refused(tmp_path: Path, table: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(StepFailure, match=message) as failure:
        evaluate(tmp_path, inputs(tmp_path, table))
    assert failure.value.state == "data_invalid" and failure.value.hint


def test_too_few_answers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StepFailure, match="variant A gave 6 answers to 7 items"):
        evaluate(tmp_path, inputs(tmp_path), FakeModels(short=True))


def test_another_set_of_items_is_refused() -> None:
    items = [Item(f"s{k}", "", "ALLOW", "en", "made", True) for k in range(3)]
    answers = {"A": {i.sample_id: Answer("ALLOW", "", {}) for i in items},
               "B": {i.sample_id: Answer("ALLOW", "", {}) for i in items[:2]}}
    with pytest.raises(StepFailure, match=r"variant B answered another set of items \(1 differ, for example s2\)"):
        compare.summarise(items, answers, {}, {}, BenchmarkSettings())


def test_the_other_metric_asks_only_whether_to_answer() -> None:
    item = Item("s", "", "DENY", "en", "made", True)
    assert compare.is_right("allow_vs_rest", item, Answer("REFUSE", "", {}))
    assert not compare.is_right("allow_vs_rest", item, Answer("ALLOW", "", {}))
    assert not compare.is_right("allow_vs_rest", item, Answer(None, "", {}))
    assert not compare.is_right("accuracy", item, Answer("REFUSE", "", {}))
