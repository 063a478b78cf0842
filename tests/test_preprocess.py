"""Preprocessing: equal samples, outliers, personal data, a split without leakage, and a report that stands alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from so8t_fsm.artifacts import Manifest
from so8t_fsm.step import StepFailure
from so8t_fsm.testing import run_step
from so8t_ops.collect import Collect
from so8t_ops.data import cleansing, duplicates, split
from so8t_ops.data.labels import LABELS
from so8t_ops.data.settings import NearDuplicateSettings, OutlierSettings, PreprocessSettings
from so8t_ops.preprocess import Preprocess

ROOT = Path(__file__).parents[1]
ROLE = {"ALLOW": "baker", "ESCALATION": "doctor", "DENY": "gossip", "REFUSE": "thief"}
THINGS = ("bread river window lantern garden violin mountain letter engine pepper bridge carpet blanket hammer island "
          "ticket candle feather mirror orchard").split()


def base(families: int = 5) -> list[dict[str, Any]]:
    """A small sound data set: every class in ``families`` families of three unlike texts."""
    def text(label: str, f: int, k: int) -> str:
        first, second, third = THINGS[(7 * f + 3 * k) % 20], THINGS[(f + 11 * k + 5) % 20], THINGS[(3 * f + k) % 20]
        return f"{ROLE[label]} {first} and {second}, case {third[::-1]}"

    return [{"text": text(label, f, k), "label": label, "group": f"{label}-{f}"}
            for label in LABELS for f in range(families) for k in range(3)]


def collected(home: Path, *records: dict[str, Any], second: list[dict[str, Any]] | None = None) -> Path:
    """Collect the base set and the given rows (and a second source with other judgements)."""
    home.mkdir(parents=True, exist_ok=True)
    sources = []
    for name, content in (("rows", [*base(), *records]), ("second", second or [])):
        if content:
            (home / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in content), "utf-8")
            sources.append({"kind": "files", "path": f"{name}.jsonl", "licence": "MIT"})
    directory, _ = run_step(Collect(), {"data": {"sources": sources}}, home)
    assert directory is not None
    return directory


def preprocess(home: Path, directory: Path, **options: Any) -> Path:
    done, _ = run_step(Preprocess(), {"data": {"preprocess": options}}, home, {"collecting": directory})
    assert done is not None
    return done


def read(directory: Path, *names: str) -> list[dict[str, Any]]:
    tables = {name: pq.read_table(directory / f"{name}.parquet").to_pylist() for name in names}
    return [{**row, "split": name} for name, table in tables.items() for row in table]


def reasons(directory: Path) -> dict[str, str]:
    return {row["text"]: row["reason"] for row in read(directory, "rejected")}


# --- equal samples --------------------------------------------------------------------------------------------------

def test_texts_that_differ_in_width_case_or_space_are_one(tmp_path: Path) -> None:
    made = collected(tmp_path, {"text": "ＡＢＣ　カタカナ の質問"}, {"text": "abc ｶﾀｶﾅ  の質問"})
    done = preprocess(tmp_path, made)
    assert reasons(done) == {"abc ｶﾀｶﾅ  の質問": "exact_duplicate"}
    assert "ＡＢＣ　カタカナ の質問" in {r["text"] for r in read(done, "train")}  # stored as it came


LONG = "今日の会議の資料を明日の朝までに三部印刷して机の上に置いておいてください。"


@pytest.mark.parametrize(("policy", "kept", "reason"), [
    ("stricter", ["DENY"], "near_duplicate"), ("drop", [], "label_conflict")])
def test_near_duplicates_that_disagree_follow_the_policy(
    tmp_path: Path, policy: str, kept: list[str], reason: str,
) -> None:
    made = collected(tmp_path, {"text": LONG, "label": "ALLOW"}, {"text": LONG[:-1] + "！", "label": "DENY"})
    done = preprocess(tmp_path, made, near_duplicates={"on_conflict": policy})
    left = [row["label"] for row in read(done, *split.SPLITS) if row["text"].startswith("今日の会議")]
    assert left == kept and set(reasons(done).values()) == {reason}
    conflict, = json.loads((done / "stats.json").read_text("utf-8"))["label_conflicts"]
    assert conflict["labels"] == ["ALLOW", "DENY"] and conflict["kept"] == (kept[0] if kept else None)


@pytest.mark.parametrize(("policy", "kept"), [("stricter", ["REFUSE"]), ("drop", [])])
def test_bytes_judged_in_two_ways_follow_the_policy(tmp_path: Path, policy: str, kept: list[str]) -> None:
    made = collected(tmp_path, {"text": LONG, "label": "ALLOW"}, second=[{"text": LONG, "label": "REFUSE"}])
    done = preprocess(tmp_path, made, near_duplicates={"on_conflict": policy})
    assert [row["label"] for row in read(done, *split.SPLITS) if row["text"] == LONG] == kept


def test_unlabelled_texts_never_shadow_a_held_out_one(tmp_path: Path) -> None:
    tail = " okay then"
    done = preprocess(tmp_path, collected(tmp_path, *({"text": row["text"] + tail} for row in base()[::3])))
    where = {row["text"]: row["split"] for row in read(done, *split.SPLITS)}
    out = {text for text, reason in reasons(done).items() if reason == "similar_to_held_out"}
    assert out == {row["text"] + tail for row in base()[::3] if where[row["text"]] != "train"}
    assert len(out) >= 8 and sum(text.endswith(tail) for text in where) == 20 - len(out)


def test_pictures_that_look_the_same_are_one(tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    for name, x, quality in (("a.png", 10, 0), ("b.jpg", 10, 95), ("c.png", 40, 0)):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).rectangle((x, 8, x + 14, 50), fill="navy")
        image.save(tmp_path / name, **({"quality": quality} if quality else {}))
    made = collected(tmp_path, *({"text": "a bar", "media": name} for name in ("a.png", "b.jpg", "c.png")))
    done = preprocess(tmp_path, made)
    assert [row["media_path"][-4:] for row in read(done, "rejected")] == [".jpg"]
    kept = [row for row in read(done, *split.SPLITS) if row["modality"] == "image"]
    assert len(kept) == 2 and all((done / row["media_path"]).is_file() for row in kept)


def test_hashing_finds_the_pairs_that_comparing_all_finds(tmp_path: Path) -> None:
    directory, _ = run_step(Collect(), {"data": {"sources": [{"kind": "prompts", "per_family": 30}]}}, tmp_path)
    assert directory is not None
    rows = [r for p in sorted((directory / "shards").iterdir()) for r in pq.read_table(p).to_pylist()][:720]
    near = NearDuplicateSettings(group_at=0.5)
    cut = [duplicates.shingles(row, near) for row in rows]
    all_pairs = {(i, j) for j in range(len(rows)) for i in range(j) if 2 * len(cut[i] & cut[j]) >= len(cut[i] | cut[j])}
    found = {(i, j) for i, j, _ in duplicates.similar_texts(rows, duplicates.signatures(rows, near), near)}
    assert len(all_pairs) > 30 and found <= all_pairs and len(found) >= 0.95 * len(all_pairs)


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(
    st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=30),
    st.lists(st.sampled_from("abcdefghijklmnop"), min_size=n, max_size=n))))
@settings(max_examples=60, deadline=None)
def test_groups_are_the_finest_that_respect_every_link(case: tuple[list[tuple[int, int]], list[str]]) -> None:
    pairs, keys = case
    names = duplicates.components(len(keys), pairs, keys)
    assert all(names[i] == names[j] for i, j in pairs)
    reach = {i: {i} for i in range(len(keys))}  # plain flood fill as the reference
    links = [*pairs, *((i, j) for i in range(len(keys)) for j in range(i) if keys[i] == keys[j])]
    for _ in keys:
        for i, j in links:
            reach[i] = reach[j] = reach[i] | reach[j]
    for i in range(len(keys)):
        assert {j for j in range(len(keys)) if names[j] == names[i]} == set().union(*(reach[j] for j in reach[i]))


# --- what is left out -------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "kind"), [
    ("write to taro.yamada@example.co.jp please", "mail address"),
    ("電話は０９０－１２３４－５６７８です", "phone number"),
    ("call 03-1234-5678", "phone number"), ("+81 3-1234-5678", "phone number"),
    ("card 4242 4242 4242 4242", "card number"), ("個人番号 123456789018", "My Number"),
    ("card 4242 4242 4242 4241", None), ("個人番号 123456789012", None),
    ("version 1.2.3-4 of 2024-05-06 at 12:30", None), ("pi is 3.14159265358979", None), ("@user and a@b", None),
])
def test_personal_data_is_known_by_form_and_check_digit(text: str, kind: str | None) -> None:
    assert cleansing.personal_data(text) == kind


@given(st.lists(st.integers(0, 9), min_size=15, max_size=15).filter(any), st.integers(1, 9), st.integers(0, 15))
def test_luhn_notices_every_single_wrong_digit(digits: list[int], change: int, where: int) -> None:
    check = next(d for d in range(10) if cleansing.passes_luhn([*digits, d]))
    wrong = [*digits, check]
    wrong[where] = (wrong[where] + change) % 10
    assert not cleansing.passes_luhn(wrong)


def test_every_reason_is_recorded_with_its_text(tmp_path: Path) -> None:
    stem = "昔々あるところにおじいさんとおばあさんが住んでいました。"
    (tmp_path / "bench.jsonl").write_text(json.dumps({"q": {"stem": stem}}), "utf-8")
    rows = {"x": "too_short", "y" * 300: "too_long", "broken \ufffd text": "broken_text",
            "my mail is someone@example.org": "personal_data",
            f"問題：{stem}さて？": "benchmark_overlap"}
    made = collected(tmp_path, *({"text": text} for text in rows))
    options = {"max_chars": 200, "benchmarks": ["bench.jsonl"], "benchmark_ngram": 20}
    assert reasons(preprocess(tmp_path, made, **options)) == rows
    assert "my mail is someone@example.org" not in reasons(preprocess(tmp_path, made, pii="keep", **options))


def test_a_missing_benchmark_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StepFailure, match=r"gone\.jsonl: cannot be read as a benchmark") as caught:
        preprocess(tmp_path, collected(tmp_path), benchmarks=["gone.jsonl"])
    assert caught.value.state == "data_invalid"


def test_robust_z_is_the_plain_z_of_a_normal_sample_and_never_divides_by_zero() -> None:
    sample = np.random.default_rng(0).normal(10, 3, 100_000)
    assert np.allclose(cleansing.robust_z(sample), (sample - 10) / 3, atol=0.08)
    assert cleansing.robust_z(np.ones(5)).tolist() == [0] * 5
    mostly = np.array([1.0] * 9 + [11.0])  # no spread around the median: the mean deviation, 1, stands in
    assert cleansing.robust_z(mostly)[-1] == pytest.approx(10 / 1.2533)


def test_outliers_are_the_planted_ones_the_most_extreme_first() -> None:
    texts = [f"a plain request about the {a} and the {b}" for a in THINGS for b in THINGS[:5]]
    planted = {"w" * 120: "outlier_repetition", " ".join(THINGS) * 3: "outlier_length"}
    found = cleansing.outliers([*texts, *planted], OutlierSettings(), seed=0)
    assert {[*texts, *planted][i]: found[i].reason for i in list(found)[:2]} == planted and len(found) <= 5
    one = cleansing.outliers([*texts, *planted], OutlierSettings(max_fraction=0.01), seed=0)
    assert len(one) == 1 and set(one) <= set(found)
    assert cleansing.outliers([*planted], OutlierSettings(), seed=0) == {}  # too few to know what is normal


# --- the split ------------------------------------------------------------------------------------------------------

@st.composite
def labelled_groups(draw: st.DrawFn) -> tuple[list[str], list[str], list[str]]:
    labels, languages, groups = [], [], []
    for label in LABELS:
        for g in range(draw(st.integers(3, 12))):
            language = draw(st.sampled_from(["ja", "en"]))
            for _ in range(draw(st.integers(1, 8))):
                labels.append(label)
                languages.append(language)
                groups.append(f"{label}{g}")
    return labels, languages, groups


@given(labelled_groups(), st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_no_group_crosses_and_every_class_is_everywhere(data: tuple[list[str], ...], seed: int) -> None:
    labels, languages, groups = data
    splits = split.stratified(labels, languages, groups, 0.1, 0.2, seed)  # three groups of each class are enough
    where: dict[str, set[str]] = {}
    for group, name in zip(groups, splits, strict=True):
        where.setdefault(group, set()).add(name)
    assert all(len(names) == 1 for names in where.values())
    assert {(label, name) for label, name in zip(labels, splits, strict=True)} == {
        (label, name) for label in LABELS for name in split.SPLITS}
    assert splits == split.stratified(labels, languages, groups, 0.1, 0.2, seed)


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_shares_are_what_was_asked_for(seed: int) -> None:
    labels = [label for label in LABELS for _ in range(24 * 10)]
    languages = [("ja", "en")[i // 10 % 2] for i in range(len(labels))]
    groups = [f"g{i // 10}" for i in range(len(labels))]
    splits = split.stratified(labels, languages, groups, 0.1, 0.2, seed)
    for label in LABELS:
        count = Counter(name for one, name in zip(labels, splits, strict=True) if one == label)
        assert count["test"] / 240 == pytest.approx(0.2, abs=0.05)
        assert count["validation"] / 240 == pytest.approx(0.1, abs=0.05)


def test_a_class_without_enough_groups_is_said_by_name(tmp_path: Path) -> None:
    rows = [row for row in base() if row["label"] != "DENY" or row["group"] in ("DENY-0", "DENY-1")]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    sources = [{"kind": "files", "path": "few.jsonl", "licence": "MIT"}]
    made, _ = run_step(Collect(), {"data": {"sources": sources}}, tmp_path)
    assert made is not None
    with pytest.raises(StepFailure, match=r"class DENY has 2 group\(s\)") as caught:
        preprocess(tmp_path, made)
    assert caught.value.state == "data_invalid" and "\n" not in str(caught.value)


def test_a_leak_is_a_failure_not_a_warning() -> None:
    with pytest.raises(StepFailure, match="group 'a' is in train and in test"):
        split.verify(["ALLOW", "ALLOW"], ["a", "a"], ["train", "test"])
    with pytest.raises(StepFailure, match="train has no sample of class ESCALATION, DENY, REFUSE"):
        split.verify(["ALLOW"] * 3, ["a", "b", "c"], split.SPLITS)


# --- the whole step on the default data -----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("default")
    made, _ = run_step(Collect(), {"data": {}}, home)
    assert made is not None
    return made, preprocess(home, made)


def test_the_default_data_has_what_training_and_evaluation_need(default: tuple[Path, Path]) -> None:
    _, done = default
    rows = read(done, *split.SPLITS)
    labelled = [row for row in rows if row["label"]]
    count = Counter((row["split"], row["label"]) for row in labelled)
    assert sum(n for (name, _), n in count.items() if name == "test") >= 150
    assert all(count[name, label] >= 10 for name in split.SPLITS for label in LABELS)
    assert {row["language"] for row in labelled if row["split"] == "test"} == {"ja", "en"}
    assert {row["split"] for row in rows if row["modality"] == "text" and not row["label"]} == {"train"}
    for key in ("group", "group_id"):
        where: dict[str, set[str]] = {}
        for row in rows:
            where.setdefault(row[key], set()).add(row["split"])
        assert all(len(names) == 1 for names in where.values())
    assert {row["modality"] for row in rows if row["split"] == "test"} == {"text", "image", "audio"}


def test_nothing_is_lost_between_the_steps(default: tuple[Path, Path]) -> None:
    made, done = default
    before = [r["sample_id"] for p in sorted((made / "shards").iterdir()) for r in pq.read_table(p).to_pylist()]
    after = [r["sample_id"] for r in read(done, *split.SPLITS, "rejected")]
    assert sorted(before) == sorted(after)
    stats = json.loads((done / "stats.json").read_text("utf-8"))
    assert stats["offered"] == len(before) and sum(stats["rejected"].values()) == len(read(done, "rejected"))
    assert stats["kept"] == sum(stats["by_split"].values()) == sum(stats["by_licence"].values())


def test_unseen_families_can_be_told_apart_but_not_perfectly(default: tuple[Path, Path]) -> None:
    """The test split must leave room in both directions: above chance for a model that learnt, below 100 %."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test = ([r for r in read(default[1], name) if r["label"]] for name in ("train", "test"))
    model = make_pipeline(TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True),
                          LogisticRegression(C=10, max_iter=300))
    model.fit([r["text"] for r in train], [r["label"] for r in train])
    assert 0.7 < model.score([r["text"] for r in test], [r["label"] for r in test]) < 0.995


class Links(HTMLParser):
    """Collects every address and every element of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.elements: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")]


def test_the_report_stands_alone_and_shows_the_real_numbers(default: tuple[Path, Path]) -> None:
    page = (default[1] / "dataset_report.html").read_text("utf-8")
    stats = json.loads((default[1] / "stats.json").read_text("utf-8"))
    links = Links()
    links.feed(page)
    assert all(address.startswith(("data:", "#")) for address in links.addresses)
    assert links.elements["svg"] >= 4 and links.elements["img"] == 12 and links.elements["script"] == 0
    assert f"<b>{stats['kept']:,}</b>" in page and f"<b>{stats['by_split']['test']}</b>" in page
    assert "データセットレポート" in page and "BSD-3-Clause" in page and "not in data.licenses" in page
    assert str(default[0]) not in page and not re.search(r"\b20\d\d-\d\d-\d\dT", page)


def test_what_samples_say_cannot_become_markup_and_personal_data_stays_out(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> & \"quotes\" of a stranger"
    made = collected(tmp_path, {"text": evil}, {"text": evil.upper()}, {"text": "mail me at secret.person@example.org"})
    page = (preprocess(tmp_path, made) / "dataset_report.html").read_text("utf-8")
    assert "<script" not in page.lower() and "&lt;script&gt;" in page.lower()
    assert "secret.person" not in page and "personal data" in page


# --- the same bytes again -------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from so8t_fsm.artifacts import Manifest
from so8t_fsm.testing import run_step
from so8t_ops.preprocess import Preprocess
directory, _ = run_step(Preprocess(), {"data": {}}, Path(sys.argv[1]), {"collecting": Path(sys.argv[2])})
print(Manifest.load(directory).to_bytes().decode())
"""


def test_two_processes_make_the_same_bytes(default: tuple[Path, Path], tmp_path: Path) -> None:
    expected = Manifest.load(default[1]).to_bytes().decode()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(default[0])]
    made = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True).stdout.strip()
    assert made == expected and not json.loads(made)["volatile"]


def test_stopped_while_hashing_it_ends_with_the_same_bytes(default: tuple[Path, Path], tmp_path: Path) -> None:
    stops = 0
    for attempt in range(1, 30):
        polls = iter(range(10**6))
        done, records = run_step(Preprocess(), {"data": {}}, tmp_path, {"collecting": default[0]}, attempt=attempt,
                                 stop_when=lambda _, polls=polls: next(polls) >= 9)
        if done is not None:
            break
        stops += 1
        if stops == 4:  # the last attempt may run through
            done, _ = run_step(Preprocess(), {"data": {}}, tmp_path, {"collecting": default[0]}, attempt=attempt + 1)
            break
    positions = [r["position"] for r in records if r["type"] == "checkpoint"]
    assert stops == 4 and positions and positions[0] > 900  # it went on, it did not begin again
    assert done is not None and Manifest.load(done).to_bytes() == Manifest.load(default[1]).to_bytes()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="group_at must not be above drop_at"):
        NearDuplicateSettings(group_at=0.95, drop_at=0.9)
    assert PreprocessSettings().near_duplicates.group_at < PreprocessSettings().near_duplicates.drop_at
