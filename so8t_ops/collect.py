"""Step 1, collect: licensed samples from every configured source, as Parquet shards with full provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from so8t_fsm.step import MiB, Needs, Step, StepContext
from so8t_ops.data.settings import DataSettings, FilesSource, HubSource


class Collect(Step):
    """Commits ``shards/*.parquet``, ``media/…`` and ``provenance.json``.

    Every row has its source, SPDX licence and sha256; the same bytes are never stored twice; what the licence gate
    refuses is counted and listed with the reason.
    """

    name = "collecting"
    state = "collecting"
    sections = {"data": DataSettings}
    reads = ("data.sources", "data.licenses", "data.max_samples", "data.shard_size", "data.seed")

    def needs(self, config: Mapping[str, Mapping[str, Any]], home: Path, out: Path) -> Needs:
        """Twice the size of local files, and the Hub's host where a source is on the Hub."""
        settings = DataSettings.model_validate(config.get("data", {}))
        size, network = 64 * MiB, set()
        for source in settings.sources:
            if isinstance(source, FilesSource):
                path = home / Path(source.path).expanduser()
                files = path.rglob("*") if path.is_dir() else [path]
                size += 2 * sum(file.stat().st_size for file in files if file.is_file())
            elif isinstance(source, HubSource):
                from so8t_ops.data.hub import host

                network.add(host())
        return Needs(disk={out: size}, ram=256 * MiB, network=tuple(sorted(network)))

    def run(self, ctx: StepContext) -> None:
        from so8t_ops.data.shards import Collector

        collector = Collector(ctx, ctx.section("data", DataSettings))
        collector.run()
        provenance = collector.provenance()
        text = json.dumps(provenance, indent=2, ensure_ascii=False) + "\n"
        (ctx.out / "provenance.json").write_text(text, encoding="utf-8", newline="\n")
        ctx.progress(provenance["totals"]["kept"], provenance["totals"]["kept"], unit="samples")
