"""How fast the rules read a large log: ``so8t scan`` beside grep and ripgrep on the same gigabyte, and its memory."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from _common import ROOT, place, show

CALM = "2026-11-22 10:00:{s:02d}.123Z [training#1] step {n} of 9000000, lr 1e-05, 4321 tokens/s, 9.8 GiB in use\n"
ERROR = "2026-11-22 10:59:59.123Z [training#1] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
NEEDLE = "CUDA out of memory"
TEXTS = (
    "import json; from so8t_fsm.rules import layers_of, load_rules; from so8t_fsm.rules.prefilter import Prefilter; "
    "print(json.dumps(Prefilter(load_rules(layers_of(None))).texts))"
)


def make(path: Path, size: int) -> None:
    """A log of calm lines with one error at its end."""
    block = "".join(CALM.format(s=n % 60, n=n) for n in range(10_000)).encode()
    with path.open("wb") as out:
        for _ in range(max(1, size // len(block))):
            out.write(block)
        out.write(ERROR.encode())


def run(command: Sequence[str], path: Path) -> tuple[float, int, str]:
    """Wall seconds, peak resident KiB, and output of one command."""
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
    assert process.stdout is not None
    told = process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    return time.perf_counter() - began, usage.ru_maxrss, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    chosen = parser.parse_args()
    # In a process of its own: a child's peak memory counts what its parent had when it forked.
    texts = json.loads(subprocess.check_output([sys.executable, "-c", TEXTS], env={**os.environ, "PYTHONPATH": str(ROOT)}))
    with place() as folder:
        log, small, words = folder / "big.log", folder / "small.log", folder / "words"
        make(log, chosen.megabytes << 20)
        make(small, chosen.megabytes << 16)
        words.write_text("\n".join(texts) + "\n", encoding="utf-8")
        subprocess.run(["cksum", str(log)], stdout=subprocess.DEVNULL, check=True)  # into the page cache, for all alike
        scan = [sys.executable, "-c", "from so8t_fsm.cli import main; main()", "--home", str(folder), "scan", "--json"]
        commands = {
            "grep -c -F": ["grep", "-c", "-F", NEEDLE, str(log)],
            "grep -c -F, all the rules' texts": ["grep", "-c", "-F", "-f", str(words), str(log)],
            "so8t scan": [*scan, str(log)],
            "so8t scan, a sixteenth of it": [*scan, str(small)],
        }
        if shutil.which("rg"):
            commands["rg -c -F, all the rules' texts"] = ["rg", "-c", "-F", "-f", str(words), str(log)]
        (folder / "configs").mkdir()
        rows = {}
        for name, command in commands.items():
            seconds, peak, told = run(command, log)
            size = small.stat().st_size if "sixteenth" in name else log.stat().st_size
            if name.startswith("so8t"):
                found = json.loads(told)["incidents"]
                assert [one["state"] for one in found] == ["out_of_memory"], found
            rows[name] = {"seconds": round(seconds, 2), "MiB/s": round(size / seconds / (1 << 20)), "peak_MiB": peak >> 10}
        fastest = rows["grep -c -F"]["seconds"]
        for row in rows.values():
            row["x grep -F"] = round(row["seconds"] / fastest, 1) if fastest else 0
        show(f"one {chosen.megabytes} MiB log, {len(texts)} texts of all rules", rows)


if __name__ == "__main__":
    main()
