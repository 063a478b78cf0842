"""What one sample is, and how rows are written so that equal content gives equal bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = pa.schema([
    ("sample_id", pa.string()), ("modality", pa.string()), ("text", pa.string()), ("label", pa.string()),
    ("language", pa.string()), ("source", pa.string()), ("licence", pa.string()), ("synthetic", pa.bool_()),
    ("group", pa.string()), ("media_path", pa.string()), ("sha256", pa.string()),
])
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing a source offers.

    Attributes:
        text: the text itself, or the caption of a picture or sound.
        label: one of the four classes, or None.
        language: ``ja`` or ``en``.
        licence: canonical SPDX expression, or None where the source's own words (``declared``) are not one.
        group: samples that must never be on both sides of a split share it; empty for a group of its own.
        modality: ``text``, ``image`` or ``audio``.
        media, suffix: the bytes of the picture or sound and their file suffix.
        item: what to call the origin in ``provenance.json`` when the sample is refused.
    """

    text: str
    label: str | None
    language: str
    licence: str | None
    declared: str | None
    synthetic: bool
    group: str = ""
    modality: str = "text"
    media: bytes | None = None
    suffix: str = ""
    item: str = ""

    def digest(self) -> str:
        """sha256 of the content: the media's bytes where there are any, else the text in UTF-8."""
        return hashlib.sha256(self.text.encode() if self.media is None else self.media).hexdigest()

    def row(self, source: str, digest: str) -> Row:
        """The sample as a row of a shard."""
        media_path = None if self.media is None else f"media/{digest[:2]}/{digest}{self.suffix}"
        return {
            "sample_id": f"{source}-{digest[:16]}", "modality": self.modality, "text": self.text, "label": self.label,
            "language": self.language, "source": source, "licence": self.licence, "synthetic": self.synthetic,
            "group": self.group or f"{source}:{digest[:16]}", "media_path": media_path, "sha256": digest,
        }


def script_language(text: str) -> str:
    """``ja`` where the text has kana or at least a tenth of CJK ideographs, else ``en``."""
    if any("\u3040" <= c <= "\u30ff" for c in text):
        return "ja"
    ideographs = sum("\u4e00" <= c <= "\u9fff" for c in text)
    return "ja" if ideographs * 10 >= max(1, len(text)) else "en"


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema = COLUMNS) -> None:
    """Write rows as Parquet.  Every writer setting is fixed, so that equal rows give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    pq.write_table(
        table, path, version="2.6", compression="zstd", compression_level=3, row_group_size=65_536,
        use_dictionary=True, write_statistics=True, store_schema=True, data_page_version="1.0")


def read_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """The rows of several Parquet files, in the order given."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()


def place(source: Path, target: Path) -> None:
    """Make a finished file appear at a second place: a hard link where the file system has them, else a copy.

    Finished files are never written again, so the two names cannot come to differ.  Copies would survive a damaged
    sector better, but five checkpoints of a large collection would then need five times its space.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
