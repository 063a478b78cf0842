"""Step 6: publish the model, its card and its reports, and read back that what arrived is what was sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from so8t_fsm.step import MiB, Needs, Settings, Step, StepContext
from so8t_ops.hub.settings import UploadSettings


class Upload(Step):
    """Commits ``receipt.json`` (what is published, every sha256 verified at the target), ``README.md`` (the model
    card) and the volatile ``delivery.json`` (when and where)."""

    name: ClassVar[str] = "uploading"
    state: ClassVar[str] = "uploading"
    sections: ClassVar[Mapping[str, type[Settings]]] = {"upload": UploadSettings}
    reads: ClassVar[tuple[str, ...]] = ("upload",)
    uses: ClassVar[tuple[str, ...]] = ("collecting", "preprocessing", "training", "integrating", "evaluating")

    def needs(self, config: Mapping[str, Mapping[str, Any]], home: Path, out: Path) -> Needs:
        settings = UploadSettings.model_validate(config.get("upload", {}))
        if settings.target == "folder":
            return Needs(disk={out: 16 * MiB})
        from so8t_ops.hub.client import endpoint

        url = urlsplit(endpoint(settings))
        port = url.port or (443 if url.scheme == "https" else 80)
        return Needs(disk={out: 16 * MiB}, network=(f"{url.hostname}:{port}",))

    def run(self, ctx: StepContext) -> None:
        from so8t_ops.hub import card, client, folder, payload

        settings = ctx.section("upload", UploadSettings)
        client.prepare(settings)
        files = payload.sources(ctx.inputs, settings)
        total = sum(path.stat().st_size for path in files.values())
        ticker = _Ticker(ctx, total)
        entries = payload.measure(files, ticker)
        text = card.model_card(ctx.inputs, entries, settings)
        (ctx.out / payload.CARD).write_text(text, encoding="utf-8", newline="\n")
        entries = sorted([*entries, *payload.measure({payload.CARD: ctx.out / payload.CARD})], key=lambda e: e.name)

        content = payload.content_id(entries)
        receipt = {
            "format": 1, "target": settings.target, "repo_id": settings.repo_id, "content": content,
            "commit": content, "files": {e.name: {"sha256": e.sha256, "bytes": e.size} for e in entries},
            "verified": True}
        delivery: dict[str, Any] = {}
        ticker.note = "sending"
        if settings.target == "folder":
            place = ctx.path(settings.folder) / settings.repo_id
            delivery["changed"] = folder.deliver(entries, place, ticker.restart())
            delivery["location"] = str(place)
            receipt["folder"] = settings.folder
        else:
            sent = client.deliver(entries, settings, ctx.scratch)
            receipt |= {"private": settings.private, "commit": sent["commit"]}
            delivery |= {"changed": bool(sent["sent"]), "location": sent["url"], "sent": sent["sent"],
                         "not_ours": sent["extra"]}
            ctx.volatile(ctx.out / "receipt.json")  # the Hub's commit id depends on when it was made
        delivery["delivered_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        _write_json(ctx.out / "receipt.json", receipt)
        _write_json(ctx.volatile(ctx.out / "delivery.json"), delivery)


class _Ticker:
    """Counts bytes, says how far the work is, and leaves when asked to stop."""

    def __init__(self, ctx: StepContext, total: int) -> None:
        self._ctx, self._total, self._done, self.note = ctx, total, 0, "hashing"

    def __call__(self, size: int) -> None:
        self._ctx.stop_if_asked()
        self._done += size
        self._ctx.progress(min(self._done, self._total), self._total, unit="bytes", note=self.note)

    def restart(self) -> _Ticker:
        self._done = 0
        return self


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")
