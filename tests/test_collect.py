"""Collecting: the licence gate, never the same bytes twice, resuming at any sample, one clear line for bad input."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from so8t_fsm.artifacts import Manifest
from so8t_fsm.step import StepFailure
from so8t_fsm.testing import run_step
from so8t_ops.collect import Collect
from so8t_ops.data import distributions, licences, prompts
from so8t_ops.data.labels import LABELS
from so8t_ops.data.settings import DataSettings, PromptsSource

ROOT = Path(__file__).parents[1]


def collect(home: Path, *sources: dict[str, Any], **settings: Any) -> Path:
    """Run the step to its end; returns the committed directory."""
    directory, _ = run_step(Collect(), {"data": {"sources": list(sources), **settings}}, home)
    assert directory is not None
    return directory


def rows(directory: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((directory / "shards").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def provenance(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "provenance.json").read_text("utf-8"))


def jsonl(path: Path, *records: Any) -> dict[str, Any]:
    """Write a file and return the source that names it (relative to the home, which is the file's directory)."""
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return {"kind": "files", "path": path.name, "licence": "MIT"}


# --- what comes out -------------------------------------------------------------------------------------------------

def test_every_row_says_what_it_is_and_the_bytes_agree(tmp_path: Path) -> None:
    directory = collect(tmp_path, {"kind": "prompts", "per_family": 2}, {"kind": "generated", "images": 6, "sounds": 4})
    found = rows(directory)
    assert Counter(r["modality"] for r in found) == {"text": 2 * 96, "image": 6, "audio": 4}
    assert len({r["sample_id"] for r in found}) == len({r["sha256"] for r in found}) == len(found)
    for row in found:
        assert row["licence"] == "Apache-2.0" and row["synthetic"] and row["group"] and row["language"] in ("ja", "en")
        assert (row["media_path"] is None) == (row["modality"] == "text")
        content = row["text"].encode() if row["media_path"] is None else (directory / row["media_path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"]


def test_distributions_are_real_text_under_the_licence_each_declares(tmp_path: Path) -> None:
    directory = collect(tmp_path, {"kind": "distributions", "limit": 60})
    found = rows(directory)
    assert found and not any(row["synthetic"] for row in found) and {row["label"] for row in found} == {None}
    assert all(licences.allows(row["licence"], ["MIT", "Apache-2.0"]) for row in found)
    said = provenance(directory)["sources"][0]
    assert said["offered"] == said["kept"] + said["duplicates"] + sum(entry["samples"] for entry in said["refused"])
    bsd = [entry for entry in said["refused"] if entry["licence"] == "BSD-3-Clause"]
    assert bsd and bsd[0]["reason"] == "not in data.licenses" and bsd[0]["items"]


def test_paragraphs_are_prose() -> None:
    readme = """# Title

[![badge](https://x/y.svg)](https://x) Some badge.

This library reads and writes the *files* of several formats, and it is [documented](https://x) at length.

    indented code that must not be read as a sentence of the description at all.

```python
print("code in a fence is not prose, however long it may be, and must not be kept here.")
```

- a list item that is long enough to be kept but starts like a list, so it is left out here.
"""
    assert distributions.paragraphs(readme) == [
        "This library reads and writes the *files* of several formats, and it is documented at length."]


# --- the project's own prompts --------------------------------------------------------------------------------------

def test_prompts_have_enough_families_of_every_class_in_both_languages() -> None:
    count = Counter((label, family["language"]) for label, family, _ in prompts.families())
    assert set(count) == {(label, language) for label in LABELS for language in ("ja", "en")}
    assert min(count.values()) >= 10
    ids = [family["id"] for _, family, _ in prompts.families()]
    assert len(ids) == len(set(ids))


def test_prompts_are_many_distinct_balanced_and_do_not_name_their_label() -> None:
    made = list(prompts.samples(PromptsSource(kind="prompts"), seed=42))
    assert len(made) >= 800 and len({s.text for s in made}) == len(made)
    assert len(set(Counter((s.label, s.language) for s in made).values())) == 1
    assert not [s.text for s in made if re.search(r"allow|escalat|\b(deny|denie)|refus", s.text, re.IGNORECASE)]
    assert not [s.text for s in made if re.search(r"[{}^]", s.text)]


def test_prompts_speak_one_language_each() -> None:
    """A Japanese template must end so that a Japanese frame fits, or 'Please 作り方.' comes out."""
    for _, family, _ in prompts.families():
        for template in family["templates"]:
            japanese = family["language"] == "ja"
            assert (prompts.frame_kind(template) != "en_action") or not japanese, (family["id"], template)
            assert (prompts.frame_kind(template) in (None, "en_action")) or japanese, (family["id"], template)
    for sample in prompts.samples(PromptsSource(kind="prompts"), seed=7):
        assert (sample.language == "ja") == any("\u3040" <= c <= "\u30ff" for c in sample.text), sample.text


def test_prompts_follow_the_seed_and_the_family_alone() -> None:
    first = {s.text for s in prompts.samples(PromptsSource(kind="prompts"), seed=1)}
    assert first == {s.text for s in prompts.samples(PromptsSource(kind="prompts"), seed=1)}
    assert first != {s.text for s in prompts.samples(PromptsSource(kind="prompts"), seed=2)}


# --- the licence gate -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("written", "passes"), [
    ("MIT", True), ("apache-2.0", True), ("MIT License", True), ("MIT OR GPL-3.0-only", True),
    ("MIT AND GPL-3.0-only", False), ("(MIT OR GPL-2.0-only) AND Apache-2.0", True), ("GPL-3.0-or-later", False),
    ("GPL-2.0-only OR (MIT AND BSD-3-Clause)", False), ("Apache-2.0 WITH LLVM-exception", False),
])
def test_an_expression_passes_only_when_the_list_covers_it(written: str, passes: bool) -> None:
    spdx = licences.normalise(written)
    assert spdx is not None and licences.allows(spdx, ["MIT", "Apache-2.0"]) is passes


@pytest.mark.parametrize("written", ["", "  ", "other", "do what you like", "MIT AND", "UNKNOWN"])
def test_what_spdx_does_not_know_is_no_licence(written: str) -> None:
    assert licences.normalise(written) is None


@pytest.mark.parametrize(("fields", "spdx"), [
    ({"License-Expression": "mit"}, "MIT"),
    ({"License": "Apache License, Version 2.0"}, "Apache-2.0"),
    ({"License": "UNKNOWN", "Classifier": ["License :: OSI Approved :: MIT License"]}, "MIT"),
    ({"License": "Copyright (c) 2020 somebody\nPermission is hereby granted", "Classifier": [
        "License :: OSI Approved :: MIT License"]}, "MIT"),
    ({"Classifier": ["License :: OSI Approved :: MIT License",
                     "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"]}, "GPL-3.0-only AND MIT"),
    ({"Classifier": ["License :: OSI Approved :: BSD License"]}, None),  # which BSD is not said
    ({}, None),
])
def test_the_licence_of_a_distribution_is_read_as_pep_639_says(fields: dict[str, Any], spdx: str | None) -> None:
    message = Message()
    for key, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            message[key] = one
    assert licences.of_distribution(message)[0] == spdx


def test_a_source_under_the_gpl_is_refused_counted_and_listed(tmp_path: Path) -> None:
    good = jsonl(tmp_path / "good.jsonl", {"text": "hello there"})
    bad = jsonl(tmp_path / "bad.jsonl", {"text": "copy"}, {"text": "left"}) | {"licence": "GPL-3.0-only"}
    odd = jsonl(tmp_path / "odd.jsonl", {"text": "who knows"}) | {"licence": "some terms of use"}
    directory = collect(tmp_path, good, bad, odd)
    assert [row["text"] for row in rows(directory)] == ["hello there"]
    said = {source["name"]: source for source in provenance(directory)["sources"]}
    assert said["bad"]["refused"] == [
        {"licence": "GPL-3.0-only", "reason": "not in data.licenses", "samples": 2, "items": ["bad"]}]
    assert said["odd"]["refused"][0]["reason"] == "'some terms of use' is not an SPDX expression"
    assert provenance(directory)["totals"] == {"offered": 4, "kept": 1, "duplicates": 0, "refused": 3}


def test_a_licence_enters_when_the_user_lists_it_and_nothing_is_a_failure(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"text": "one"}) | {"licence": "CC-BY-4.0"}
    with pytest.raises(StepFailure, match="no sample may enter the data set: CC-BY-4.0") as caught:
        collect(tmp_path, source)
    assert caught.value.state == "data_invalid" and "data.licenses" in caught.value.hint
    assert len(rows(collect(tmp_path, source, licenses=["CC-BY-4.0"]))) == 1


# --- the same bytes once --------------------------------------------------------------------------------------------

def test_the_same_bytes_are_kept_once_and_a_second_judgement_is_not_lost(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "first.jsonl", {"text": "same", "label": "ALLOW"}, {"text": "same", "label": "ALLOW"})
    second = jsonl(tmp_path / "second.jsonl", {"text": "same", "label": "DENY"}, {"text": "other"})
    directory = collect(tmp_path, first, second)
    assert [(r["text"], r["label"], r["source"]) for r in rows(directory)] == [
        ("same", "ALLOW", "first"), ("other", None, "second")]
    one, two = provenance(directory)["sources"]
    assert (one["duplicates"], one["conflicting_labels"]) == (1, [])
    digest = hashlib.sha256(b"same").hexdigest()
    assert (two["duplicates"], two["conflicting_labels"]) == (1, [{"sha256": digest, "label": "DENY"}])


def test_a_picture_that_two_rows_name_is_stored_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "b.png").write_bytes(b"picture")
    source = jsonl(tmp_path / "m.jsonl", {"text": "one", "media": "a.png"}, {"text": "two", "media": "b.png"})
    directory = collect(tmp_path, source)
    assert len(rows(directory)) == 1 == len([p for p in (directory / "media").rglob("*") if p.is_file()])


# --- the same bytes again -------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from so8t_fsm.artifacts import Manifest
from so8t_fsm.testing import run_step
from so8t_ops.collect import Collect
sources = [{"kind": "prompts", "per_family": 3}, {"kind": "generated"}, {"kind": "distributions"}]
directory, _ = run_step(Collect(), {"data": {"sources": sources}}, Path(sys.argv[1]))
print(Manifest.load(directory).to_bytes().decode())
"""


def child(script: str, *arguments: str, **environment: str) -> str:
    """Run a script in a fresh interpreter; returns what it printed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_make_the_same_bytes(tmp_path: Path) -> None:
    made = [child(SCRIPT, str(tmp_path / seed), PYTHONHASHSEED=seed) for seed in ("1", "2")]
    assert made[0] == made[1]
    assert not json.loads(made[0])["volatile"]


def stop_at(poll: int) -> Callable[[list[dict[str, Any]]], bool]:
    """Asks for a stop from the given look at the channel on."""
    polls = iter(range(1_000_000))
    return lambda _: next(polls) >= poll


def test_stopped_again_and_again_it_ends_with_the_same_manifest(tmp_path: Path) -> None:
    texts = [{"text": f"text number {n // 2}", "label": LABELS[n % 4]} for n in range(120)]  # duplicates and conflicts
    for home in ("whole", "pieces"):
        (tmp_path / home).mkdir()
        source = jsonl(tmp_path / home / "texts.jsonl", *texts)
    config = {"data": {"shard_size": 25, "sources": [
        {"kind": "prompts", "per_family": 1}, source, {"kind": "generated", "images": 20, "sounds": 4}]}}
    whole, _ = run_step(Collect(), config, tmp_path / "whole")
    for attempt in range(1, 60):
        pieces, records = run_step(Collect(), config, tmp_path / "pieces", attempt=attempt, stop_when=stop_at(1))
        if pieces is not None:
            break
        assert [r["type"] for r in records].count("checkpoint") == 1
    assert attempt >= 7 and whole is not None and pieces is not None
    assert Manifest.load(pieces).to_bytes() == Manifest.load(whole).to_bytes()
    assert len({row["sha256"] for row in rows(pieces)}) == len(rows(pieces)) == 96 + 60 + 24


def test_a_source_that_changed_in_between_is_read_from_its_start(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "t.jsonl", *({"text": f"old {n}"} for n in range(40)))
    config = {"data": {"sources": [source]}}
    assert run_step(Collect(), config, tmp_path, stop_when=stop_at(0))[0] is None
    jsonl(tmp_path / "t.jsonl", *({"text": f"new {n}"} for n in range(40)))
    directory, _ = run_step(Collect(), config, tmp_path, attempt=2)
    assert directory is not None and [r["text"] for r in rows(directory)] == [f"new {n}" for n in range(40)]


def test_max_samples_cuts_each_source_and_says_so(tmp_path: Path) -> None:
    long = jsonl(tmp_path / "long.jsonl", *({"text": f"long {n}"} for n in range(80)))
    short = jsonl(tmp_path / "short.jsonl", *({"text": f"short {n}"} for n in range(50)))
    said = provenance(collect(tmp_path, long, short, max_samples=50))["sources"]
    assert [(s["kept"], s["truncated"]) for s in said] == [(50, True), (50, False)]


# --- files ----------------------------------------------------------------------------------------------------------

def test_a_directory_of_jsonl_parquet_and_text_is_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "日本 語"
    folder.mkdir()
    jsonl(folder / "1.jsonl", {"q": "質問です", "y": "safe", "group": 7})
    pq.write_table(pa.table({"q": ["what is this"], "y": ["bad"]}), folder / "2.parquet")
    (folder / "3.txt").write_bytes("\ufeffa first\nparagraph\n\n\nand a second\n".encode())
    source = {"kind": "files", "path": "日本 語", "licence": "mit", "name": "mine", "text_field": "q",
              "label_field": "y", "label_map": {"safe": "ALLOW", "bad": "DENY"}}
    directory = collect(tmp_path, source)
    assert [(r["text"], r["label"], r["language"]) for r in rows(directory)] == [
        ("質問です", "ALLOW", "ja"), ("what is this", "DENY", "en"), ("a first\nparagraph", None, "en"),
        ("and a second", None, "en")]
    assert rows(directory)[0]["group"] == "mine:7"
    assert [f["name"] for f in provenance(directory)["sources"][0]["files"]] == ["1.jsonl", "2.parquet", "3.txt"]
    assert str(tmp_path) not in (directory / "provenance.json").read_text("utf-8")


BAD: list[tuple[str, bytes | None, str]] = [
    ("gone.jsonl", None, r"gone\.jsonl: no such file or directory"),
    ("d.jsonl", b'{"text": "a"}\n{"text": \n', r"d\.jsonl:2: not JSON"),
    ("d.jsonl", b'{"text": "a"}\n[1]\n', r"d\.jsonl:2: a JSON list, not an object"),
    ("d.jsonl", b'{"text": "a"}\n\n{"text": "b", "label": "NO"}\n', r"d\.jsonl:3: label 'NO' is not one of ALLOW, "),
    ("d.jsonl", b'{"txt": "a"}\n', r"d\.jsonl:1: no field 'text' \(it has txt\)"),
    ("d.jsonl", b'{"text": "  "}\n', r"d\.jsonl:1: field 'text' is not a non-empty string"),
    ("d.jsonl", b'{"text": "a"}\n{"text": "\x93\xfa\x96{"}\n', r"d\.jsonl:2: not UTF-8"),
    ("d.jsonl", b"", r"source 'd': no samples"),
    ("d.jsonl", b'{"text": "a", "media": "x.exe"}\n', r"d\.jsonl:1: 'x\.exe' is neither picture nor sound"),
    ("d.jsonl", b'{"text": "a", "media": "x.png"}\n', r"d\.jsonl:1: .*x\.png cannot be read"),
    ("d.jsonl", b'{"text": "a", "media": "../x.png"}\n', r"leads out of the directory"),
    ("d.parquet", b"not parquet", r"d\.parquet: not a readable Parquet file"),
    ("d.docx", b"?", r"d\.docx: no \.jsonl, \.parquet, \.txt file"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_input_is_one_line_that_says_where(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StepFailure, match=message) as caught:
        collect(tmp_path, {"kind": "files", "path": name, "licence": "MIT"})
    assert caught.value.state == "data_invalid" and "\n" not in str(caught.value)


def test_two_sources_of_one_name_and_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="two sources are called 'prompts'"):
        DataSettings.model_validate({"sources": [{"kind": "prompts"}, {"kind": "prompts"}]})
    with pytest.raises(ValidationError, match="Extra inputs"):
        DataSettings.model_validate({"sources": [{"kind": "prompts", "per_famly": 3}]})


# --- what the machine needs to know ---------------------------------------------------------------------------------

def test_needs_are_the_hubs_host_and_the_size_of_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 1000)
    local = {"kind": "files", "path": "a.txt", "licence": "MIT"}
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8765")
    needs = Collect().needs({"data": {"sources": [local, {"kind": "hub", "dataset": "a/b"}]}}, tmp_path, tmp_path)
    assert needs.network == ("127.0.0.1:8765",)
    assert needs.disk[tmp_path] - Collect().needs({"data": {}}, tmp_path, tmp_path).disk[tmp_path] == 2000
    monkeypatch.delenv("HF_ENDPOINT")
    assert Collect().needs({"data": {"sources": [{"kind": "hub", "dataset": "a/b"}]}}, tmp_path, tmp_path).network == (
        "huggingface.co:443",)
    assert Collect().needs({"data": {}}, tmp_path, tmp_path).network == ()


def test_the_step_modules_import_nothing_heavy() -> None:
    heavy = "torch transformers datasets huggingface_hub pandas numpy sklearn scipy matplotlib pyarrow PIL jinja2"
    loaded = child("import sys, so8t_ops.collect, so8t_ops.preprocess; print(*sys.modules)").split()
    assert not set(heavy.split()) & set(loaded)
