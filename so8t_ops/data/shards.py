"""From streams to shards: the licence gate, never the same bytes twice, and a place to go on from at any sample."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from so8t_fsm.step import StepContext, StepFailure
from so8t_ops.data import licences
from so8t_ops.data.labels import LABELS
from so8t_ops.data.samples import Row, Sample, place, read_rows, write_table
from so8t_ops.data.settings import DataSettings, Source, source_name
from so8t_ops.data.sources import Stream, open_source

_LOOK_EVERY = 16  # samples between two looks at the clock and at a request to stop
_ITEMS = 40       # names listed for each reason of refusal


@dataclass
class Tally:
    """What became of one source's samples.

    ``refused`` maps "licence | reason" to [samples, names of some]; 0 samples where a whole source was refused by its
    declared licence, before anything of it was read.
    """

    offered: int = 0
    kept: int = 0
    duplicates: int = 0
    truncated: bool = False
    licences: dict[str, int] = field(default_factory=dict)
    refused: dict[str, list[Any]] = field(default_factory=dict)
    conflicts: list[dict[str, str]] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Collector:
    """Fills ``out/shards`` and ``out/media``.

    A checkpoint holds the finished shards, the rows of the unfinished one, and each stream's own position, so that an
    interrupted run ends with the same bytes as an undisturbed one.
    """

    def __init__(self, ctx: StepContext, settings: DataSettings) -> None:
        self.ctx, self.settings = ctx, settings
        self.index = 0                          # of the source being read
        self.position: Any = None               # of its stream
        self.tallies: list[Tally] = []          # one for each source begun
        self.pending: list[Row] = []            # rows of the unfinished shard
        self.seen: dict[str, str | None] = {}   # sha256 to label of everything kept
        if ctx.checkpoint is not None:
            self._restore(ctx.checkpoint)

    def run(self) -> None:
        """Read every source to its end.

        Raises:
            StepFailure: a source cannot be read, offers nothing, or nothing at all may enter.
            StopRequested: a stop was asked for and the checkpoint is safe.
        """
        while self.index < len(self.settings.sources):
            source = self.settings.sources[self.index]
            stream = open_source(source, self.settings.seed, self.ctx.path, self.position)
            if len(self.tallies) == self.index:
                self.tallies.append(Tally(facts=stream.facts))
            elif self.tallies[self.index].facts != stream.facts:
                self._start_over()  # the source changed while it was being read: a position in it means nothing now
                continue
            self._read(source, stream, self.tallies[self.index])
            self._flush()
            self.index, self.position = self.index + 1, None
        if not self.seen:
            reasons = sorted({key for tally in self.tallies for key in tally.refused})
            raise StepFailure(
                f"no sample may enter the data set: {'; '.join(reasons[:5])}", state="data_invalid",
                hint="Add sources under the licences in data.licenses, or list more licences there.")

    def _read(self, source: Source, stream: Stream, tally: Tally) -> None:
        name = source_name(source)
        reason = licences.refusal(stream.licence, stream.declared, self.settings.licenses)
        if stream.gated and reason:
            self._refuse(tally, stream.licence or stream.declared or "none", reason, name, samples=0)
            return
        for number, sample in enumerate(self._capped(stream, tally), 1):
            self._take(sample, name, tally)
            if len(self.pending) == self.settings.shard_size:
                self._flush()
            if number % _LOOK_EVERY == 0:
                self.ctx.progress(len(self.seen), unit="samples", note=name)
                if self.ctx.checkpoint_due():
                    self.position = stream.state()
                    self.ctx.save_checkpoint(self._save, sum(t.offered for t in self.tallies))
        if tally.offered == 0:
            raise StepFailure(f"source {name!r}: no samples", state="data_invalid",
                              hint="Correct or remove this entry of data.sources.")

    def _capped(self, stream: Stream, tally: Tally) -> Iterator[Sample]:
        for sample in stream:
            if tally.kept >= self.settings.max_samples:
                tally.truncated = True
                return
            yield sample

    def _take(self, sample: Sample, name: str, tally: Tally) -> None:
        tally.offered += 1
        reason = licences.refusal(sample.licence, sample.declared, self.settings.licenses)
        if reason:
            self._refuse(tally, sample.licence or sample.declared or "none", reason, sample.item or name)
            return
        digest = sample.digest()
        if digest in self.seen:
            tally.duplicates += 1
            kept = self.seen[digest]
            if sample.label is not None and sample.label != kept:
                # the bytes are stored once; that a second source judges them differently must not get lost
                tally.conflicts.append({"sha256": digest, "label": sample.label})
            return
        row = sample.row(name, digest)
        if sample.media is not None:
            path = self.ctx.out / row["media_path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sample.media)
        self.seen[digest] = sample.label
        self.pending.append(row)
        tally.kept += 1
        licence = str(sample.licence)
        tally.licences[licence] = tally.licences.get(licence, 0) + 1

    @staticmethod
    def _refuse(tally: Tally, licence: str, reason: str, item: str, samples: int = 1) -> None:
        entry = tally.refused.setdefault(f"{licence} | {reason}", [0, []])
        entry[0] += samples
        if item not in entry[1] and len(entry[1]) < _ITEMS:
            entry[1].append(item)

    def _flush(self) -> None:
        if not self.pending:
            return
        tally = self.tallies[self.index]
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", source_name(self.settings.sources[self.index])).strip("-.") or "source"
        name = f"shards/{self.index:02d}-{plain}-{len(tally.shards):05d}.parquet"
        write_table(self.ctx.out / name, self.pending)
        tally.shards.append(name)
        self.pending.clear()

    def _save(self, directory: Path) -> None:
        for part in ("shards", "media"):
            for path in sorted((self.ctx.out / part).rglob("*")):
                if path.is_file():
                    place(path, directory / path.relative_to(self.ctx.out))
        write_table(directory / "pending.parquet", self.pending)
        state = {"index": self.index, "position": self.position, "tallies": [asdict(t) for t in self.tallies]}
        (directory / "state.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")

    def _restore(self, directory: Path) -> None:
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        self.index, self.position = state["index"], state["position"]
        self.tallies = [Tally(**tally) for tally in state["tallies"]]
        for part in ("shards", "media"):
            for path in sorted((directory / part).rglob("*")):
                if path.is_file():
                    place(path, self.ctx.out / path.relative_to(directory))
        self.pending = list(read_rows([directory / "pending.parquet"]))
        finished = [self.ctx.out / name for tally in self.tallies for name in tally.shards]
        for row in (*read_rows(finished), *self.pending):
            self.seen[row["sha256"]] = row["label"]

    def _start_over(self) -> None:
        for part in ("shards", "media"):
            shutil.rmtree(self.ctx.out / part, ignore_errors=True)
        self.index, self.position = 0, None
        self.tallies, self.pending, self.seen = [], [], {}

    def provenance(self) -> dict[str, Any]:
        """What ``provenance.json`` says: per source where it came from, what was kept, and what was refused and why."""
        sources = []
        for source, tally in zip(self.settings.sources, self.tallies, strict=True):
            refused = [
                dict(zip(("licence", "reason"), key.rsplit(" | ", 1), strict=True), samples=count, items=sorted(items))
                for key, (count, items) in sorted(tally.refused.items())]
            sources.append({
                "name": source_name(source), "kind": source.kind, **tally.facts, "offered": tally.offered,
                "kept": tally.kept, "duplicates": tally.duplicates, "truncated": tally.truncated,
                "licences": dict(sorted(tally.licences.items())), "refused": refused,
                "conflicting_labels": sorted(tally.conflicts, key=lambda c: (c["sha256"], LABELS.index(c["label"]))),
                "shards": tally.shards,
            })
        return {
            "format": 1, "allowed_licences": list(self.settings.licenses), "seed": self.settings.seed,
            "sources": sources,
            "totals": {key: sum(s[key] for s in sources) for key in ("offered", "kept", "duplicates")} | {
                "refused": sum(entry["samples"] for s in sources for entry in s["refused"])},
        }
