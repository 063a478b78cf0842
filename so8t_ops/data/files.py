"""Samples from files that the user names: .jsonl, .parquet and .txt, with the licence the user declares for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from so8t_fsm.step import StepFailure
from so8t_ops.data import licences
from so8t_ops.data.labels import LABELS
from so8t_ops.data.samples import Sample, script_language
from so8t_ops.data.settings import FilesSource, source_name

SUFFIXES = (".jsonl", ".parquet", ".txt")
MEDIA = {".png": "image", ".jpg": "image", ".jpeg": "image", ".webp": "image", ".wav": "audio", ".flac": "audio"}


def bad_data(message: str, hint: str = "") -> StepFailure:
    """A failure of the kind a person mends in the data."""
    return StepFailure(message, state="data_invalid", hint=hint)


def listing(path: Path) -> list[Path]:
    """The files a source consists of, sorted.

    Raises:
        StepFailure: nothing is there, or nothing of a known kind.
    """
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
    else:
        raise bad_data(f"{path}: no such file or directory", "Correct data.sources[].path.")
    if not found or found[0].suffix.lower() not in SUFFIXES:
        raise bad_data(f"{path}: no {', '.join(SUFFIXES)} file", "Convert the data to one of these formats.")
    return found


def samples(settings: FilesSource, path: Path) -> Iterator[Sample]:
    """Every row of every file, in order.

    Raises:
        StepFailure: a file is missing or unreadable, or a row is not usable; the message has file and line.
    """
    for file in listing(path):
        read = {".jsonl": _jsonl, ".parquet": _parquet, ".txt": _text}[file.suffix.lower()]
        for where, row in read(file, settings):
            yield sample(row, where, settings, file.parent)


def _jsonl(file: Path, settings: FilesSource) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise bad_data(f"{where}: not JSON ({error})", "Every line must be one JSON object.") from None
        if not isinstance(row, dict):
            raise bad_data(f"{where}: a JSON {type(row).__name__}, not an object",
                           "Every line must be one JSON object.")
        yield where, row


def _parquet(file: Path, settings: FilesSource) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise bad_data(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    number = 0
    with table:
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}: row {number}", row


def _text(file: Path, settings: FilesSource) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Paragraphs: runs of lines between blank lines."""
    block: list[str] = []
    start = 1
    for number, line in _lines(file):
        if line.strip():
            start = start if block else number
            block.append(line.strip())
        elif block:
            yield f"{file}:{start}", {settings.text_field: "\n".join(block)}
            block = []
    if block:
        yield f"{file}:{start}", {settings.text_field: "\n".join(block)}


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                # utf-8-sig only at the start: Windows editors like to put a mark there
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise bad_data(f"{file}:{number}: not UTF-8", "Save the file as UTF-8 (not Shift_JIS/cp932).") from None
    except OSError as error:
        raise bad_data(f"{file}: cannot be read ({error.strerror})") from None


def sample(row: Mapping[str, Any], where: str, settings: FilesSource, base: Path) -> Sample:
    """One row as a sample.

    Raises:
        StepFailure: the text is missing or empty, the label unknown, or the media file unusable.
    """
    text = row.get(settings.text_field)
    if settings.text_field not in row:
        raise bad_data(f"{where}: no field {settings.text_field!r} (it has {', '.join(sorted(row)) or 'none'})",
                       "Set text_field of this source to the field that holds the text.")
    if not isinstance(text, str) or not text.strip():
        raise bad_data(f"{where}: field {settings.text_field!r} is not a non-empty string")
    media, suffix, modality = None, "", "text"
    if row.get(settings.media_field):
        media_path = base / str(row[settings.media_field])
        suffix = media_path.suffix.lower()
        if suffix not in MEDIA:
            raise bad_data(f"{where}: {media_path.name!r} is neither picture nor sound ({', '.join(MEDIA)})")
        if not media_path.resolve().is_relative_to(base.resolve()):
            raise bad_data(f"{where}: {row[settings.media_field]!r} leads out of the directory of its file")
        try:
            media, modality = media_path.read_bytes(), MEDIA[suffix]
        except OSError as error:
            raise bad_data(f"{where}: {media_path} cannot be read ({error.strerror})") from None
    group = row.get(settings.group_field)
    name = source_name(settings)
    return Sample(
        text=text, label=label_of(row.get(settings.label_field), settings.label_map, where),
        language=script_language(text) if settings.language == "auto" else settings.language,
        licence=licences.normalise(settings.licence), declared=settings.licence, synthetic=settings.synthetic,
        group=f"{name}:{group}" if group not in (None, "") else "", modality=modality, media=media, suffix=suffix,
        item=name)


def label_of(value: Any, label_map: Mapping[str, str], where: str) -> str | None:
    """A row's label as one of the four classes; None where the row has none.

    Raises:
        StepFailure: the value is neither a class nor translated by the source's ``label_map``.
    """
    if value is None or value == "":
        return None
    label = label_map.get(str(value), str(value))
    if label not in LABELS:
        raise bad_data(f"{where}: label {label!r} is not one of {', '.join(LABELS)}",
                       "Correct the label, or translate it with label_map of this source.")
    return label
