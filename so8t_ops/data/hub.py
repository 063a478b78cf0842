"""Samples from a dataset on the Hugging Face Hub, streamed, resumable, under the licence its card declares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from so8t_ops.data import licences
from so8t_ops.data.files import MEDIA, bad_data, label_of
from so8t_ops.data.samples import Sample, script_language
from so8t_ops.data.settings import HubSource


def host() -> str:
    """``host:port`` of the Hub that ``HF_ENDPOINT`` names."""
    url = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    return f"{url.hostname}:{url.port or (80 if url.scheme == 'http' else 443)}"


class HubStream:
    """One split, read row by row in the dataset's own order.

    The commit is resolved once and kept in the state, so that a resumed run reads what the first one read.  Refusals
    and network errors of the Hub are left to rise: the machine knows their kinds.
    """

    gated = True  # nothing of a data set is downloaded before its card's licence has passed

    def __init__(self, settings: HubSource, state: dict[str, Any] | None) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        from huggingface_hub import HfApi

        self._settings, self._rows = settings, None
        self._resume: dict[str, Any] | None = (state or {}).get("rows")
        revision = (state or {}).get("commit") or settings.revision
        info = HfApi().dataset_info(settings.dataset, revision=revision)
        self.commit = str(info.sha)
        declared = getattr(info.card_data, "license", None) if info.card_data else None
        declared = declared or [t.removeprefix("license:") for t in info.tags or [] if t.startswith("license:")]
        # a card may list several licences without saying how they combine; the careful reading is that all apply
        self.declared = declared if isinstance(declared, str) else " AND ".join(sorted(declared)) or None
        self.licence = licences.normalise(self.declared)

    @property
    def facts(self) -> dict[str, Any]:
        return {"dataset": self._settings.dataset, "commit": self.commit, "declared_licence": self.declared}

    def state(self) -> dict[str, Any]:
        """JSON from which a new stream goes on after the last row taken from this one."""
        return {"commit": self.commit, "rows": self._rows.state_dict() if self._rows is not None else self._resume}

    def __iter__(self) -> Iterator[Sample]:
        from datasets import Audio, ClassLabel, Image, load_dataset

        s = self._settings
        rows = load_dataset(s.dataset, s.subset, split=s.split, revision=self.commit, streaming=True)
        where = f"{s.dataset}@{self.commit[:8]}"
        features = rows.features or {}
        if features and s.text_field not in features:
            raise bad_data(f"{where}: no column {s.text_field!r} (it has {', '.join(features)})",
                           "Set text_field of this source to the column that holds the text.")
        if s.media_field:
            if not isinstance(features.get(s.media_field), Image | Audio):
                raise bad_data(f"{where}: column {s.media_field!r} holds neither pictures nor sounds")
            rows = rows.cast_column(s.media_field, type(features[s.media_field])(decode=False))
        if self._resume is not None:
            rows.load_state_dict(self._resume)
        self._rows = rows
        classes = features.get(s.label_field)
        for row in rows:
            value = row.get(s.label_field)
            if isinstance(classes, ClassLabel) and isinstance(value, int):
                value = classes.int2str(value) if value >= 0 else None
            text = row.get(s.text_field)
            if not isinstance(text, str) or not text.strip():
                continue
            media, suffix, modality = self._media(row, where)
            yield Sample(
                text=text, label=label_of(value, s.label_map, where),
                language=script_language(text) if s.language == "auto" else s.language,
                licence=self.licence, declared=self.declared, synthetic=False, modality=modality, media=media,
                suffix=suffix, item=s.dataset)

    def _media(self, row: dict[str, Any], where: str) -> tuple[bytes | None, str, str]:
        cell = row.get(self._settings.media_field) if self._settings.media_field else None
        if not cell:
            return None, "", "text"
        suffix = Path(cell.get("path") or "").suffix.lower()
        if suffix not in MEDIA or not cell.get("bytes"):
            raise bad_data(f"{where}: {cell.get('path')!r} is neither picture nor sound ({', '.join(MEDIA)})")
        return cell["bytes"], suffix, MEDIA[suffix]
