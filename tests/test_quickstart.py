"""The seven real steps, end to end, once, on a smaller budget than `make run`; and what must be true afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import ROOT, Home

from so8t_fsm import artifacts

pytestmark = [pytest.mark.quickstart, pytest.mark.timeout(1500)]

SMALLER = f"""
extends: {json.dumps(str(ROOT / "configs" / "quickstart.yaml"))}
model:
  tiny: {{hidden_size: 256, intermediate_size: 512, pretrain_steps: 20}}
training:
  threads: 1
  sft: {{epochs: 1}}
  ppo: {{updates: 6, rollout_batch: 32}}
benchmark: {{bootstrap_resamples: 500}}
automation: {{checkpoint_interval: 3s}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, str]:
    """A home whose run was killed once in the middle of training and went on to its end."""
    home = Home(tmp_path_factory.mktemp("クイック スタート"))
    (home.path / "configs").mkdir()
    (home.path / "configs" / "small.yaml").write_text(SMALLER, encoding="utf-8")
    process = home.start("resume", "--config", "configs/small.yaml")
    until = time.monotonic() + 600
    while time.monotonic() < until and process.poll() is None:
        checkpoint = home.picture()["checkpoint"]
        if checkpoint is not None and checkpoint["step"] == "training":
            break
        time.sleep(0.5)
    assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = home.so8t("resume", timeout=1400)
    return home, done.stdout


def newest(home: Home, step: str) -> Path:
    rows = {row["name"]: row for row in home.picture()["steps"]}
    assert rows[step]["status"] == "committed"
    folders = [p for p in (home.path / "state" / "runs").glob(f"*/{step}/*") if p.name.isdigit()]
    assert len(folders) == 1
    artifacts.verify(folders[0])
    return folders[0]


def test_it_reaches_completed_and_says_what_was_cut_off(finished: tuple[Home, str]) -> None:
    home, told = finished
    assert "was cut off: its runner was killed" in told
    assert "from checkpoint" in told
    picture = home.picture()
    assert picture["state"] == "completed"
    assert {row["status"] for row in picture["steps"]} == {"committed"}


def test_a_second_resume_has_nothing_to_do(finished: tuple[Home, str]) -> None:
    home, _ = finished
    assert "nothing to do" in home.resume()
    assert "nothing to do" in home.resume("--config", "configs/small.yaml")


def test_the_trained_model_answers_better_than_its_base(finished: tuple[Home, str]) -> None:
    home, _ = finished
    summary = json.loads((newest(home, "evaluating") / "summary.json").read_text(encoding="utf-8"))
    text = json.dumps(summary)
    assert "A-C" in text
    pair = next(row for row in summary["comparisons"] if row["pair"] == "A-C")
    assert pair["points"] > 0
    assert pair["p_holm"] < 0.05


def test_the_gguf_reads_back(finished: tuple[Home, str]) -> None:
    import gguf

    home, _ = finished
    folder = newest(home, "integrating")
    checks = json.loads((folder / "gguf_check.json").read_text(encoding="utf-8"))
    assert checks and all(check["ok"] for check in checks.values())
    for name in checks:
        reader = gguf.GGUFReader(folder / "gguf" / name)
        assert reader.fields["general.architecture"].contents() == "phi3"
        assert len(reader.tensors) == len(checks[name]["tensors"])


def test_the_hub_folder_holds_what_the_receipt_says(finished: tuple[Home, str]) -> None:
    home, _ = finished
    receipt = json.loads((newest(home, "uploading") / "receipt.json").read_text(encoding="utf-8"))
    published = [p for p in (home.path / "hub").rglob("*") if p.is_file()]
    assert any(p.suffix == ".gguf" for p in published)
    assert any(p.name == "README.md" for p in published)
    hashes = {hashlib.sha256(p.read_bytes()).hexdigest() for p in published}
    assert {entry["sha256"] for entry in receipt["files"].values()} <= hashes


def test_it_leaves_a_record_and_nothing_else(finished: tuple[Home, str]) -> None:
    home, _ = finished
    run = home.picture()["run"]
    record = json.loads((home.path / "logs" / f"pipeline_completion_{run}.json").read_text(encoding="utf-8"))
    assert run in json.dumps(record)
    left = [p for p in (home.path / "state" / "runs").rglob("*") if p.name.startswith(("staging-", "scratch-"))]
    assert left == []
    assert list((home.path / "state" / "runs").glob("*/*/checkpoints/*")) == []
