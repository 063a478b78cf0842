"""Step 2, preprocess: cleanse, find near-duplicates, split without leakage, and say in a report what was done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from so8t_fsm.step import MiB, Needs, Step, StepContext
from so8t_ops.data.settings import DataSettings


class Preprocess(Step):
    """Commits the three splits, ``rejected.parquet``, ``media/…``, ``stats.json`` and ``dataset_report.html``."""

    name = "preprocessing"
    state = "preprocessing"
    sections = {"data": DataSettings}
    reads = ("data.preprocess", "data.seed")
    uses = ("collecting",)

    def needs(self, config: Mapping[str, Mapping[str, Any]], home: Path, out: Path) -> Needs:
        return Needs(disk={out: 64 * MiB}, ram=512 * MiB)

    def run(self, ctx: StepContext) -> None:
        import numpy as np
        import pyarrow as pa

        from so8t_ops.data.curate import Curator
        from so8t_ops.data.report import render
        from so8t_ops.data.samples import COLUMNS, place, write_table
        from so8t_ops.data.split import SPLITS

        settings, collected = ctx.section("data", DataSettings), ctx.inputs["collecting"]
        curator = Curator(ctx, settings, collected)

        saved = None
        if ctx.checkpoint is not None:
            saved = np.load(ctx.checkpoint / "signatures.npy", allow_pickle=False)

        def tick(done: np.ndarray) -> None:
            ctx.progress(len(done), len(curator.rows), unit="samples", note="signatures")
            ctx.maybe_checkpoint(lambda d: np.save(d / "signatures.npy", done, allow_pickle=False), len(done))

        curator.run(saved, tick)
        ctx.stop_if_asked()
        schema = COLUMNS.append(pa.field("group_id", pa.string()))
        for split in SPLITS:
            rows = [row for row in curator.rows if row["split"] == split]
            write_table(ctx.out / f"{split}.parquet", [{k: row[k] for k in schema.names} for row in rows], schema)
            for row in rows:
                if row["media_path"]:
                    place(collected / row["media_path"], ctx.out / row["media_path"])
        rejected_schema = COLUMNS.append(pa.field("reason", pa.string())).append(pa.field("detail", pa.string()))
        write_table(ctx.out / "rejected.parquet", curator.rejected, rejected_schema)
        stats = curator.stats()
        _write(ctx.out / "stats.json", json.dumps(stats, indent=2, ensure_ascii=False) + "\n")
        provenance = json.loads((collected / "provenance.json").read_text(encoding="utf-8"))
        page = render(curator.rows, curator.rejected, stats, provenance, collected, settings.preprocess.report_examples)
        _write(ctx.out / "dataset_report.html", page)
        ctx.progress(len(curator.rows), len(curator.rows), unit="samples")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
