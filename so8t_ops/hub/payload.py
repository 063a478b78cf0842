"""What is published: every file with its name in the repository, where it lies now, its size and its sha256."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from so8t_fsm.step import StepFailure, artifacts
from so8t_ops.hub.settings import UploadSettings

CARD = "README.md"


@dataclass(frozen=True)
class Entry:
    """One file of the payload; ``name`` is its POSIX path in the repository."""

    name: str
    source: Path
    sha256: str
    size: int


def content_id(payload: Sequence[Entry]) -> str:
    """sha256 over the names and contents: the same payload has the same id, whenever and wherever it is published."""
    return artifacts.canonical_hash({e.name: {"sha256": e.sha256, "bytes": e.size} for e in payload})


def sources(inputs: Mapping[str, Path], settings: UploadSettings) -> dict[str, Path]:
    """The files to publish beside the model card, by their name in the repository.

    Raises:
        StepFailure: (data_invalid) an earlier step's directory lacks a file that belongs in every upload.
    """
    integrating = inputs["integrating"]
    found: dict[str, Path] = {}
    if settings.include_merged:
        merged = integrating / "merged"
        found |= {p.relative_to(merged).as_posix(): p for p in artifacts.walk_files(merged)} if merged.is_dir() else {}
        if not found:
            raise _lacks("integrating", "merged/")
    ggufs = sorted((integrating / "gguf").glob("*.gguf"))
    if not ggufs:
        raise _lacks("integrating", "gguf/*.gguf")
    found |= {path.name: path for path in ggufs}
    for name, step, required in (
        ("provenance.json", "collecting", True), ("dataset_report.html", "preprocessing", True),
        ("certificate.json", "integrating", True), ("gguf_check.json", "integrating", False),
        ("abc_report.html", "evaluating", True), ("summary.json", "evaluating", True),
    ):
        path = inputs[step] / name
        if path.is_file():
            found["evaluation.json" if name == "summary.json" else name] = path
        elif required:
            raise _lacks(step, name)
    found.pop(CARD, None)
    return found


def _lacks(step: str, name: str) -> StepFailure:
    return StepFailure(f"{step} committed no {name}, which every upload holds", state="data_invalid",
                       hint=f"so8t rerun --from {step}")


def measure(files: Mapping[str, Path], tick: artifacts.Tick | None = None) -> list[Entry]:
    """Hash every file, in the order of their names."""
    payload = []
    for name in sorted(files):
        digest, size = artifacts.hash_file(files[name], tick)
        payload.append(Entry(name, files[name], digest, size))
    return payload
