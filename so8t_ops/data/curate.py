"""The order of cleansing: what each sample shows by itself, equal samples, outliers, groups, then the split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from so8t_fsm.step import StepContext
from so8t_ops.data import cleansing, duplicates, split
from so8t_ops.data.files import bad_data
from so8t_ops.data.labels import LABELS, strictest
from so8t_ops.data.samples import COLUMNS, Row, read_rows
from so8t_ops.data.settings import DataSettings


class Curator:
    """Holds the rows that are still in (``rows``) and those that are out, each with its reason (``rejected``).

    After :meth:`run` every row in ``rows`` has ``group_id`` and ``split``.
    """

    def __init__(self, ctx: StepContext, settings: DataSettings, collected: Path) -> None:
        self.ctx, self.collected, self.seed = ctx, collected, settings.seed
        self.settings = settings.preprocess
        self.rows: list[Row] = list(read_rows(sorted((collected / "shards").glob("*.parquet"))))
        self.rejected: list[Row] = []
        self.conflicts: list[dict[str, Any]] = []
        self.linked = 0
        self.offered = len(self.rows)
        unknown = {row["label"] for row in self.rows} - {*LABELS, None}
        if unknown:
            raise bad_data(f"collected shards: label {min(map(str, unknown))!r} is not one of {', '.join(LABELS)}")

    def run(self, saved: np.ndarray | None, tick: Callable[[np.ndarray], None]) -> None:
        """Cleanse and split.  ``saved`` are MinHash signatures of an earlier attempt, ``tick`` is told of new ones.

        Raises:
            StepFailure: what is left cannot be split into three parts with all four classes.
        """
        self._settle_conflicting_sources()
        self._inspect()
        self._drop_exact()
        similar = self._drop_near(saved, tick)
        similar = self._drop_outliers(similar)
        self._group(similar)
        self._split()

    def stats(self) -> dict[str, Any]:
        """The counts behind the report, as plain JSON."""
        def count(*keys: str) -> dict[str, Any]:
            found = Counter(tuple(str(row[k] or "unlabelled") for k in keys) for row in self.rows)
            return {" / ".join(key): n for key, n in sorted(found.items())}

        labelled = [row for row in self.rows if row["label"]]
        return {
            "format": 1, "offered": self.offered, "kept": len(self.rows), "labelled": len(labelled),
            "rejected": dict(sorted(Counter(row["reason"] for row in self.rejected).items())),
            "by_split": count("split"), "by_split_and_label": count("split", "label"),
            "by_split_and_modality": count("split", "modality"), "by_label_and_language": count("label", "language"),
            "by_source": count("source"), "by_licence": count("licence"),
            "synthetic": sum(bool(row["synthetic"]) for row in self.rows),
            "groups": len({row["group_id"] for row in self.rows}),
            "families": len({row["group"] for row in self.rows}), "similar_pairs": self.linked,
            "label_conflicts": self.conflicts,
        }

    def _leave_out(self, findings: Mapping[int, cleansing.Finding]) -> list[int]:
        """Move rows to ``rejected``.  Returns, for each old row number, the new one (-1 where it is gone)."""
        number: list[int] = []
        kept: list[Row] = []
        for i, row in enumerate(self.rows):
            if i in findings:
                row = {name: row[name] for name in COLUMNS.names}
                self.rejected.append({**row, "reason": findings[i].reason, "detail": findings[i].detail})
                number.append(-1)
            else:
                number.append(len(kept))
                kept.append(row)
        self.rows = kept
        return number

    def _settle_conflicting_sources(self) -> None:
        """Bytes that two sources label differently were stored once; here the stricter label wins, or nobody does."""
        provenance = json.loads((self.collected / "provenance.json").read_text(encoding="utf-8"))
        other: dict[str, list[str]] = {}
        for source in provenance["sources"]:
            for conflict in source["conflicting_labels"]:
                other.setdefault(conflict["sha256"], []).append(conflict["label"])
        findings = {}
        for i, row in enumerate(self.rows):
            if row["sha256"] not in other:
                continue
            claimed = sorted({row["label"], *other[row["sha256"]]} - {None}, key=LABELS.index)
            if len(claimed) > 1:
                self._conflict([row["sample_id"]], claimed)
                if self.settings.near_duplicates.on_conflict == "drop":
                    findings[i] = cleansing.Finding("label_conflict", " / ".join(claimed))
            row["label"] = strictest(claimed)
        self._leave_out(findings)

    def _conflict(self, ids: list[str], labels: list[str]) -> None:
        drop = self.settings.near_duplicates.on_conflict == "drop"
        self.conflicts.append({"samples": ids, "labels": labels, "kept": None if drop else strictest(labels)})

    def _inspect(self) -> None:
        guard = cleansing.BenchmarkGuard(
            [self.ctx.path(p) for p in self.settings.benchmarks], self.settings.benchmark_ngram)
        findings = {}
        for i, row in enumerate(self.rows):
            found = cleansing.inspect(row["text"], self.settings) or guard.find(row["text"])
            if found:
                findings[i] = found
            if i % 256 == 0:
                self.ctx.stop_if_asked()
        self._leave_out(findings)

    def _drop_exact(self) -> None:
        """Texts that differ only in width, case or white space."""
        first: dict[str, int] = {}
        pairs = [(j, i) for i, row in enumerate(self.rows) if row["modality"] == "text"
                 and (j := first.setdefault(cleansing.comparable(row["text"]), i)) != i]
        self._give_way(pairs, "exact_duplicate")

    def _give_way(self, pairs: list[tuple[int, int]], reason: str) -> list[int]:
        gone, conflicts = duplicates.duplicates(self.rows, pairs, self.settings.near_duplicates.on_conflict)
        for i, j in conflicts:
            self._conflict([self.rows[i]["sample_id"], self.rows[j]["sample_id"]],
                           sorted({self.rows[i]["label"], self.rows[j]["label"]}, key=LABELS.index))
        return self._leave_out({
            i: cleansing.Finding("label_conflict" if self.settings.near_duplicates.on_conflict == "drop"
                                 and self._differ(i, j) else reason, f"of {self.rows[j]['sample_id']}")
            for i, j in gone.items()})

    def _differ(self, i: int, j: int) -> bool:
        a, b = self.rows[i]["label"], self.rows[j]["label"]
        return bool(a and b and a != b)

    def _drop_near(self, saved: np.ndarray | None, tick: Callable[[np.ndarray], None]) -> list[tuple[int, int]]:
        """Leave near-duplicates out.  Returns the pairs that are merely similar, in new row numbers."""
        near = self.settings.near_duplicates
        where = [i for i, row in enumerate(self.rows) if row["modality"] == "text"]
        texts = [self.rows[i] for i in where]
        usable = saved is not None and saved.shape[1:] == (near.permutations,) and len(saved) <= len(texts)
        table = duplicates.signatures(texts, near, saved if usable else None, tick)
        pairs = [(where[i], where[j], s) for i, j, s in duplicates.similar_texts(texts, table, near)]
        images = [i for i, row in enumerate(self.rows) if row["modality"] == "image"]
        paths = [self.collected / self.rows[i]["media_path"] for i in images]
        for a, b in duplicates.similar_images(paths, near.image_distance):
            i, j = images[a], images[b]
            # the hash sees neither colour nor digits well: only an equal caption makes a picture the same one
            same = cleansing.comparable(self.rows[i]["text"]) == cleansing.comparable(self.rows[j]["text"])
            pairs.append((i, j, 1.0 if same else near.group_at))
        number = self._give_way([(i, j) for i, j, s in pairs if s >= near.drop_at], "near_duplicate")
        return _renumber([(i, j) for i, j, _ in pairs], number)

    def _drop_outliers(self, similar: list[tuple[int, int]]) -> list[tuple[int, int]]:
        populations: dict[tuple[str, bool], list[int]] = {}
        for i, row in enumerate(self.rows):
            if row["modality"] == "text":
                populations.setdefault((row["language"], row["label"] is not None), []).append(i)
        findings = {}
        for _, members in sorted(populations.items()):
            found = cleansing.outliers([self.rows[i]["text"] for i in members], self.settings.outliers, self.seed)
            findings.update({members[i]: finding for i, finding in found.items()})
            self.ctx.stop_if_asked()
        return _renumber(similar, self._leave_out(findings))

    def _group(self, similar: list[tuple[int, int]]) -> None:
        self.linked = len(similar)
        names = duplicates.components(len(self.rows), similar, [row["group"] for row in self.rows])
        for row, name in zip(self.rows, names, strict=True):
            row["group_id"] = name

    def _split(self) -> None:
        """Labelled rows by class and language; unlabelled pictures and sounds by hash; unlabelled text to train.

        Unlabelled rows follow the labelled ones of their group; unlabelled text whose group is held out is left out.
        """
        sizes = self.settings.split
        labelled = [row for row in self.rows if row["label"]]
        assigned = split.stratified(
            [row["label"] for row in labelled], [row["language"] for row in labelled],
            [row["group_id"] for row in labelled], sizes.validation, sizes.test, self.seed)
        home = {row["group_id"]: name for row, name in zip(labelled, assigned, strict=True)}
        text = {row["group_id"] for row in self.rows if row["modality"] == "text"}
        for modality in ("image", "audio"):
            groups = [row["group_id"] for row in self.rows if row["modality"] == modality]
            free = [g for g in groups if g not in home and g not in text]
            home.update(zip(free, split.by_hash(free, sizes.validation, sizes.test, self.seed), strict=True))
        for row in self.rows:
            row["split"] = home.get(row["group_id"], "train")
        self._leave_out({
            i: cleansing.Finding("similar_to_held_out", f"group {row['group_id']} is in {row['split']}")
            for i, row in enumerate(self.rows)
            if row["modality"] == "text" and not row["label"] and row["split"] != "train"})
        split.verify([row["label"] for row in self.rows], [row["group_id"] for row in self.rows],
                     [row["split"] for row in self.rows])


def _renumber(pairs: list[tuple[int, int]], number: list[int]) -> list[tuple[int, int]]:
    return [(number[i], number[j]) for i, j in pairs if number[i] >= 0 and number[j] >= 0]
