"""What the benchmarks share: the disk's own speed in the same minute, percentiles, and one way to print them."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for entry in (ROOT, ROOT / "tests"):
    sys.path.insert(0, str(entry))


@contextmanager
def place() -> Iterator[Path]:
    """A folder where the state lies (a temporary directory is often memory, not disk), gone afterwards."""
    (ROOT / "state").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=ROOT / "state"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class BareDisk:
    """One 4 KiB page of a file, overwritten and flushed: the least that anything durable must wait for."""

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder / "bare", os.O_RDWR | os.O_CREAT)
        os.pwrite(self._fd, bytes(1 << 16), 0)
        os.fsync(self._fd)
        self._page = os.urandom(4096)

    def once(self) -> float:
        """Seconds for one page."""
        began = time.perf_counter()
        os.pwrite(self._fd, self._page, 4096)
        os.fdatasync(self._fd) if hasattr(os, "fdatasync") else os.fsync(self._fd)
        return time.perf_counter() - began

    def close(self) -> None:
        os.close(self._fd)


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p95 in milliseconds, and how many were measured."""
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"p50_ms": round(statistics.median(seconds) * 1e3, 3), "p95_ms": round(cuts[18] * 1e3, 3), "n": len(seconds)}


def show(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """A table for people, then one line of JSON for programs."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    width = max(len(name) for name in rows)
    print(f"\n{title}\n{'':<{width}}  " + "  ".join(f"{column:>12}" for column in columns))
    for name, row in rows.items():
        print(f"{name:<{width}}  " + "  ".join(f"{row.get(column, ''):>12}" for column in columns))
    print(json.dumps({"title": title, "rows": rows}))
