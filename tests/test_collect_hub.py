"""A data set on the Hub: streamed row by row, resumed at any row, refused by its card before anything is downloaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

LICENCES = {"mit": "mit", "gpl": "gpl-3.0", "none": ""}
LINES = [{"text": f"hub row number {n}", "label": n % 2} for n in range(60)]
CARD = "---\nlicense: {}\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n" \
       "    dtype:\n      class_label:\n        names:\n          '0': good\n          '1': bad\n---\n"


class DatasetHub(BaseHTTPRequestHandler):
    """Serves three data sets as the Hub does; they differ in the licence of their card: MIT, GPL, and no licence."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        type(self).asked.append(path)
        name = next((n for n in LICENCES if f"o/{n}" in path), "mit")
        licence = LICENCES[name]
        files = {"README.md": CARD.format(licence).encode(),
                 "data.jsonl": "".join(json.dumps(line) + "\n" for line in LINES).encode()}
        base = f"/o/{name}"
        commit = "a" * 40
        if path.startswith(f"/api/datasets{base}"):
            entries = [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                       for name, data in files.items()]
            if "/tree/" in path:
                return self.reply(json.dumps(entries if path.endswith(commit) else []).encode())
            info = {"id": base[1:], "sha": commit, "private": False, "gated": False,
                    "tags": [f"license:{licence}"] * bool(licence), "cardData": {"license": licence} if licence else {},
                    "siblings": [{"rfilename": name} for name in files]}
            return self.reply(json.dumps(info).encode())
        name = path.rpartition("/")[2]
        if path.startswith(f"/datasets{base}/resolve/") and name in files:
            tag = hashlib.sha1(files[name]).hexdigest()
            return self.reply(files[name], {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"})
        return self.reply(b"{}", status=404)

    def reply(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        headers = dict(headers or {})
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(wanted[1]), int(wanted[2] or len(body) - 1)
            headers["Content-Range"] = f"bytes {start}-{min(end, len(body) - 1)}/{len(body)}"
            body, status = body[start:end + 1], 206
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    DatasetHub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), DatasetHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from pathlib import Path
from so8t_fsm.artifacts import Manifest
from so8t_fsm.testing import run_step
from so8t_ops.collect import Collect
source = {"kind": "hub", "dataset": "o/mit", "label_map": {"good": "ALLOW", "bad": "DENY"}}
config = {"data": {"shard_size": 7, "sources": [source, {"kind": "hub", "dataset": "o/gpl"},
                                                {"kind": "hub", "dataset": "o/none"}]}}
home = Path(sys.argv[1])
whole, _ = run_step(Collect(), config, home / "whole")
stops = 0
for attempt in range(1, 9):
    polls = iter(range(10**6))
    pieces, _ = run_step(Collect(), config, home / "pieces", attempt=attempt, stop_when=lambda _: next(polls) >= 1)
    if pieces is not None:
        break
    stops += 1
same = Manifest.load(pieces).to_bytes() == Manifest.load(whole).to_bytes()
print(json.dumps({"directory": str(whole), "same": same, "stops": stops}))
"""


def test_a_hub_data_set_is_streamed_under_its_cards_licence_and_resumes(tmp_path: Path, hub: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HF_ENDPOINT": hub, "OMP_NUM_THREADS": "1",
           "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["same"] and said["stops"] >= 1
    directory = Path(said["directory"])
    found = [row for path in sorted((directory / "shards").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert [r["text"] for r in found] == [line["text"] for line in LINES]
    assert [r["label"] for r in found[:2]] == ["ALLOW", "DENY"] and {r["licence"] for r in found} == {"MIT"}
    mit, gpl, none = json.loads((directory / "provenance.json").read_text("utf-8"))["sources"]
    assert mit["commit"] == "a" * 40 and mit["declared_licence"] == "mit"
    assert gpl["kept"] == none["kept"] == 0 and gpl["refused"][0]["items"] == ["o/gpl"]
    assert none["refused"][0]["reason"] == "no licence declared"
    read = {path.split("/")[3] for path in DatasetHub.asked if path.endswith("data.jsonl")}
    assert read == {"mit"}  # the others were never downloaded
