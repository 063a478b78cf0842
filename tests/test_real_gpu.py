"""Memory that a device refuses to a training step ends with a smaller micro-batch and the same update.

On the CPU always, under a limit; on a GPU where one is: there the allocator that refuses is CUDA's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from faults import FaultyHome

RULES = {"cpu": "main-memory", "cuda": "cuda-out-of-memory"}
WORDS = {"cpu": "DefaultCPUAllocator: can't allocate memory", "cuda": "out of memory"}
UPDATE = 51.0
"""Mean of 2i² over the samples 1 … 8."""


@pytest.mark.skipif(sys.platform != "linux", reason="the CPU's limit is RLIMIT_AS")
@pytest.mark.parametrize("device", [
    "cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))])
def test_the_update_is_that_of_the_effective_batch(tmp_path: Path, device: str) -> None:
    home = FaultyHome(tmp_path / "home")
    home.faults("faulty_learn", faulty={"device": device}, training={"batch_size": 8, "gradient_accumulation_steps": 1})
    home.resume("--config", home.config)
    failed = home.failed("faulty_learn")
    assert failed and all(WORDS[device] in failure["message"] for failure in failed)
    home.check_recovered([("faulty_learn", "out_of_memory", RULES[device])] * len(failed))
    batch, micros = (home.overrides()[f"training.{key}"][1] for key in ("batch_size", "gradient_accumulation_steps"))
    assert batch == 8 >> len(failed) and batch * micros == 8
    assert (home.committed("faulty_learn") / "out.txt").read_text() == f"faulty_learn learnt {UPDATE:.4f}\n"
