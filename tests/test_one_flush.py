"""A transition costs exactly one flush of the disk: the least that a durable one can."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from crash.server import untraceable

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))


@pytest.mark.strace
@pytest.mark.skipif(untraceable() is not None, reason=f"{untraceable()}")
def test_one_flush_a_transition(tmp_path: Path) -> None:
    from bench_transition import COUNTED, flushes

    found = [Path(name).name for name in flushes(tmp_path)]
    assert found == ["so8t.db-wal"] * COUNTED
