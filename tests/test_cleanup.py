"""Clean-up: it deletes what it was told to and nothing else, and tells the run's story from the machine's record."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from so8t_fsm import artifacts
from so8t_fsm.testing import run_step
from so8t_ops.cleanup import CleanUp
from so8t_ops.evaluation import timeline
from so8t_ops.evaluation.run_report import gantt

BEGIN = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)


def at(minutes: float) -> str:
    return (BEGIN + timedelta(minutes=minutes)).isoformat()


def row(rev: int, minutes: float, to_state: str, step: str, **more: Any) -> dict[str, Any]:
    return {"rev": rev, "at": at(minutes), "to_state": to_state, "step": step, "attempt": 1, **more}


RECORD: dict[str, Any] = {
    "run": {"id": "local", "created_at": at(0), "config_path": "configs/x.yaml"},
    "steps": [
        {"name": "collecting", "status": "committed", "attempts": 1, "started_at": at(0), "committed_at": at(10),
         "identity": "c" * 64},
        {"name": "training", "status": "committed", "attempts": 2, "started_at": at(10), "committed_at": at(100)},
        {"name": "cleaning_up", "status": "running", "attempts": 1, "started_at": at(110)}],
    "history": [
        row(3, 30, "out_of_memory", "training", reason="CUDA out of memory <8 GiB>", trigger="failed"),
        row(1, 0, "collecting", "collecting"), row(2, 10, "training", "training"),
        row(4, 31, "backing_off", "training"), row(5, 40, "training", "training"),
        row(6, 100, "needs_attention", "uploading", reason="no token"), row(7, 110, "cleaning_up", "cleaning_up")],
    "overrides": [{"key": "training.batch_size", "was": 8, "value": 4, "by": "cuda-out-of-memory", "at": at(31)}]}

SUMMARY = {
    "items": 60, "verdict": {"outcome": "better", "en": "C is better than A.", "ja": "C が優れています。"},
    "variants": {"A": {"name": "base", "status": "run", "accuracy": {"value": 0.3}},
                 "B": {"name": "warm start", "status": "not run", "reason": "no adapter"}},
    "comparisons": [{"pair": "A-C", "p": 0.01, "p_holm": 0.03, "significant": True}]}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    base = tmp_path / "state" / "runs" / "local"
    made = {name: base / name / "1" for name in ("evaluating", "uploading")}
    for directory in made.values():
        directory.mkdir(parents=True)
    (made["evaluating"] / "summary.json").write_text(json.dumps(SUMMARY))
    (made["evaluating"] / "abc_report.html").write_text("page")
    (made["uploading"] / "receipt.json").write_text('{"target": "folder", "commit": "abc"}')
    (made["uploading"] / "delivery.json").write_text('{"location": "somewhere/hub"}')
    for directory in made.values():
        artifacts.seal(directory)
    return made


def clean(
    home: Path, inputs: dict[str, Path], disposable: tuple[Path, ...] = (), record: Any = None, **more: Any,
) -> Any:
    return run_step(CleanUp(), {}, home, inputs, record=RECORD if record is None else record, disposable=disposable,
                    **more)[0]


def fill(directory: Path, size: int = 100) -> Path:
    directory.mkdir(parents=True)
    (directory / "data.bin").write_bytes(b"x" * size)
    return directory


def completion(home: Path) -> Any:
    return json.loads((home / "logs" / "pipeline_completion_local.json").read_text("utf-8"))


def test_it_deletes_what_it_was_told_to_and_counts_the_bytes(tmp_path: Path, inputs: dict[str, Path]) -> None:
    base = tmp_path / "state" / "runs" / "local"
    staging, old = fill(base / "training" / "staging-1", 1000), fill(base / "collecting" / "1", 24)
    bystander = fill(base / "training" / "2")
    done = clean(tmp_path, inputs, (staging, old, base / "training" / "staging-9"))
    report = json.loads((done / "cleanup.json").read_text())
    assert report["freed_bytes"] == 1024 and report["deleted"] == ["training/staging-1", "collecting/1"]
    assert report["kept"] == [] and report["completion"] == "logs/pipeline_completion_local.json"
    assert not staging.exists() and not old.exists() and bystander.is_dir()
    assert "1.0 KiB freed from 2 directories" in (done / "run_report.html").read_text("utf-8")


def test_it_never_leaves_its_run(tmp_path: Path, inputs: dict[str, Path]) -> None:
    base = tmp_path / "state" / "runs" / "local"
    outside, other = fill(tmp_path / "precious"), fill(tmp_path / "state" / "runs" / "other" / "training" / "1")
    inside = fill(base / "training" / "staging-1")
    link = base / "training" / "link"
    link.symlink_to(outside, target_is_directory=True)
    tunnel = base / "tunnel"
    tunnel.symlink_to(tmp_path, target_is_directory=True)
    forbidden = (outside, other, link, tunnel / "precious", base / ".." / ".." / ".." / "precious", base,
                 inputs["evaluating"], inputs["evaluating"].parent, base / "cleaning_up",
                 base / "cleaning_up" / "checkpoints")
    done = clean(tmp_path, inputs, (*forbidden, inside))
    report = json.loads((done / "cleanup.json").read_text())
    assert report["deleted"] == ["training/staging-1"]
    assert [k["path"] for k in report["kept"]] == [str(p) for p in forbidden]
    assert [k["reason"] for k in report["kept"]] == [
        "it is not inside the directory of this run", "it is not inside the directory of this run", "it is a link",
        "it is not inside the directory of this run", "it is not inside the directory of this run",
        "it is not inside the directory of this run", *["it is still in use"] * 4]
    assert (outside / "data.bin").exists() and (other / "data.bin").exists() and link.is_symlink()


def test_a_link_inside_is_not_followed(tmp_path: Path, inputs: dict[str, Path]) -> None:
    outside = fill(tmp_path / "precious")
    staging = fill(tmp_path / "state" / "runs" / "local" / "training" / "staging-1")
    (staging / "away").symlink_to(outside, target_is_directory=True)
    clean(tmp_path, inputs, (staging,))
    assert not staging.exists() and (outside / "data.bin").exists()


def test_the_completion_record_tells_the_run(tmp_path: Path, inputs: dict[str, Path]) -> None:
    clean(tmp_path, inputs)
    told = completion(tmp_path)
    assert told["run"] == "local" and told["config"] == "configs/x.yaml" and told["created_at"] == at(0)
    steps = {s["name"]: s for s in told["steps"]}
    assert list(steps) == list(timeline.STEPS)
    assert steps["collecting"]["seconds"]["working"] == 600 and steps["collecting"]["identity"] == "c" * 64
    assert steps["training"]["seconds"] == {"working": 80 * 60, "failed": 60, "waiting": 540, "person": 0}
    assert steps["uploading"]["seconds"]["person"] == 600
    assert steps["evaluating"]["identity"] == artifacts.Manifest.load(inputs["evaluating"]).identity
    assert [i["state"] for i in told["incidents"]] == ["out_of_memory", "needs_attention"]
    assert told["results"]["variants"] == {"A": {"name": "base", "status": "run", "accuracy": 0.3},
                                           "B": {"name": "warm start", "status": "not run", "accuracy": None}}
    assert told["results"]["comparisons"][0]["p_holm"] == 0.03 and told["results"]["verdict"] == "C is better than A."
    assert told["upload"] == {"target": "folder", "commit": "abc", "location": "somewhere/hub"}
    assert told["overrides"] == RECORD["overrides"]


def test_a_second_run_replaces_the_record(tmp_path: Path, inputs: dict[str, Path]) -> None:
    clean(tmp_path, inputs)
    first = completion(tmp_path)
    clean(tmp_path, inputs, record={**RECORD, "overrides": []}, attempt=2)
    assert first["overrides"] and not completion(tmp_path)["overrides"]
    assert [p.name for p in (tmp_path / "logs").iterdir()] == ["pipeline_completion_local.json"]


def test_everything_it_commits_is_volatile(tmp_path: Path, inputs: dict[str, Path]) -> None:
    manifest = artifacts.Manifest.load(clean(tmp_path, inputs))
    assert not manifest.files and set(manifest.volatile) == {"cleanup.json", "run_report.html"}


def test_the_page_shows_results_incidents_and_places(tmp_path: Path, inputs: dict[str, Path]) -> None:
    html = (clean(tmp_path, inputs) / "run_report.html").read_text("utf-8")
    for shown in ("C is better than A.", "C が優れています。", "CUDA out of memory &lt;8 GiB&gt;", "no token", "30.0%",
                  "training.batch_size", "8 → 4", "1 h 20 min", "somewhere/hub", "abc_report.html", "2 incidents"):
        assert shown in html, shown
    assert "<script" not in html and "http" not in html.replace("http://www.w3.org", "")
    start = html.index("<svg")
    svg = ElementTree.fromstring(html[start : html.index("</svg>") + 6])
    words = " ".join("".join(e.itertext()) for e in svg.iter("{http://www.w3.org/2000/svg}text"))
    for lane in ("collecting", "training", "uploading", "waiting for a person"):
        assert lane in words


@pytest.mark.parametrize("record", [
    {"run": {}}, {"history": [{}], "steps": [{}]}, {"history": None, "steps": None, "run": None, "overrides": None},
    {"history": [{"to_state": "training", "at": "not a time"}]}, {"steps": [{"name": "mine", "status": "committed"}]},
    {"overrides": [{"key": "x"}], "history": [{"to_state": "crashed"}]}])
def test_a_record_with_holes_still_makes_a_report(tmp_path: Path, record: dict[str, Any]) -> None:
    done = clean(tmp_path, {}, record=record)
    html = (done / "run_report.html").read_text("utf-8")
    assert "Nothing was evaluated in this run." in html and "The record of this run holds no times." in html
    assert completion(tmp_path)["results"] is None and completion(tmp_path)["upload"] is None


def test_a_stop_is_heard_between_two_directories(tmp_path: Path, inputs: dict[str, Path]) -> None:
    base = tmp_path / "state" / "runs" / "local" / "training"
    heaps = tuple(fill(base / f"staging-{k}") for k in range(3))
    assert clean(tmp_path, inputs, heaps, stop_when=lambda seen: len(seen) > 0) is None
    assert sum(h.exists() for h in heaps) == 2
    assert clean(tmp_path, inputs, heaps, attempt=2) is not None
    assert not any(h.exists() for h in heaps)


def test_segments_follow_the_history_and_fall_back_on_the_steps() -> None:
    now = BEGIN + timedelta(minutes=120)
    found = timeline.segments(RECORD, now)
    assert [(s.step, s.kind, s.seconds / 60) for s in found] == [
        ("collecting", "working", 10), ("training", "working", 20), ("training", "failed", 1),
        ("training", "waiting", 9), ("training", "working", 60), ("uploading", "person", 10),
        ("cleaning_up", "working", 10)]
    alone = timeline.segments({"steps": RECORD["steps"]}, now)
    assert [(s.step, s.seconds / 60) for s in alone] == [("collecting", 10), ("training", 90)]


def test_the_picture_is_the_same_for_the_same_run() -> None:
    found = timeline.segments(RECORD, BEGIN + timedelta(days=3))
    assert gantt(found) == gantt(found) and "days since 2026-01-02 03:00 UTC" in gantt(found)
    assert gantt([]) == ""


@pytest.mark.parametrize(("seconds", "words"), [
    (None, "–"), (0, "0.0 s"), (59.94, "59.9 s"), (185, "3 min 05 s"), (25_920, "7 h 12 min"), (273_600, "3 d 04 h")])
def test_durations_as_people_say_them(seconds: float | None, words: str) -> None:
    assert timeline.spoken(seconds) == words


def test_sizes_as_people_say_them() -> None:
    assert [timeline.spoken_bytes(n) for n in (0, 1023, 1536, 5 << 30, 3 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 GiB", "3.0 TiB"]


def test_the_states_are_the_machines() -> None:
    from so8t_fsm import states

    known = set(timeline.STEPS) | timeline.FAILURES | timeline.WAITING | timeline.PERSON | {"idle", "completed"}
    assert known == set(states.STATES) and timeline.STEPS == states.WORKING
