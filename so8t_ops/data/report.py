"""The data set report: one HTML file without outside resources, in English and Japanese."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from so8t_ops.data.figures import COLOURS, draw
from so8t_ops.data.labels import LABELS
from so8t_ops.data.samples import Row
from so8t_ops.data.split import SPLITS

REASONS: Mapping[str, tuple[str, str]] = {
    "too_short": ("fewer characters than preprocess.min_chars", "文字数が少なすぎる"),
    "too_long": ("more characters than preprocess.max_chars", "文字数が多すぎる"),
    "broken_text": ("replacement or control characters", "文字化け・制御文字"),
    "personal_data": ("a mail address, phone, card or My Number", "個人情報（メール・電話・カード・マイナンバー）"),
    "benchmark_overlap": ("overlaps with a benchmark", "ベンチマークとの重複"),
    "exact_duplicate": ("equal after NFKC normalisation", "NFKC正規化後に同一"),
    "near_duplicate": ("nearly equal (MinHash, exact Jaccard similarity)", "ほぼ同一（MinHash・Jaccard係数）"),
    "label_conflict": ("equal samples with different labels", "同じ内容でラベルが矛盾"),
    "outlier_length": ("length far from the median", "長さの外れ値"),
    "outlier_repetition": ("far too repetitive", "繰り返しの外れ値"),
    "outlier_isolation": ("unusual by all features (isolation forest)", "総合的な外れ値（Isolation Forest）"),
    "similar_to_held_out": ("unlabelled text close to a held-out sample", "評価用データに近いラベルなしテキスト"),
}
_THUMBNAILS, _SOUNDS, _LARGEST = 12, 3, 400_000  # bytes of a medium that may still be embedded


def render(
    rows: Sequence[Row], rejected: Sequence[Row], stats: Mapping[str, Any], provenance: Mapping[str, Any],
    collected: Path, examples: int,
) -> str:
    """The page.  ``rows`` have ``split`` and ``group_id``; media are read below ``collected`` and embedded."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = (files("so8t_ops.data") / "templates" / "dataset_report.html.j2").read_text(encoding="utf-8")
    labelled = [row for row in rows if row["label"]]
    return environment.from_string(template).render(
        stats=stats, provenance=provenance, labels=LABELS, splits=SPLITS, colours=COLOURS,
        figures={name: Markup(svg) for name, svg in draw(rows, rejected).items()},  # made here, from numbers alone
        by_split=_by_split(rows), rejected=_rejected(rejected, examples), licences=_licences(rows, provenance),
        samples={label: _spread([row for row in labelled if row["label"] == label], examples) for label in LABELS},
        pictures=_media(rows, collected, "image", _THUMBNAILS), sounds=_media(rows, collected, "audio", _SOUNDS),
        synthetic_share=round(100 * stats["synthetic"] / max(1, stats["kept"])),
    )


def _by_split(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per split: counts by class, unlabelled text, pictures, sounds, groups."""
    lines = []
    for split in SPLITS:
        mine = [row for row in rows if row["split"] == split]
        labels = Counter(row["label"] for row in mine)
        free = Counter(row["modality"] for row in mine if not row["label"])
        lines.append({
            "name": split, "labels": {label: labels[label] for label in LABELS}, "text": free["text"],
            "image": free["image"], "audio": free["audio"], "total": len(mine),
            "groups": len({row["group_id"] for row in mine})})
    return lines


def _rejected(rejected: Sequence[Row], examples: int) -> list[dict[str, Any]]:
    found: dict[str, list[Row]] = {}
    for row in rejected:
        found.setdefault(row["reason"], []).append(row)
    return [
        {"reason": reason.replace("_", " "), "count": len(members), "english": REASONS.get(reason, ("", ""))[0],
         "japanese": REASONS.get(reason, ("", ""))[1],
         # personal data must not reach a page that people pass on
         "examples": [] if reason == "personal_data" else [
             {"text": _short(row["text"]), "detail": row["detail"], "label": row["label"]}
             for row in members[:examples]]}
        for reason, members in sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))]


def _licences(rows: Sequence[Row], provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line per source and licence: kept samples, then what the gate refused."""
    kept = Counter((row["source"], row["licence"]) for row in rows)
    lines = []
    for source in provenance["sources"]:
        for licence, count in source["licences"].items():
            lines.append({"source": source["name"], "licence": licence, "collected": count,
                          "kept": kept[source["name"], licence], "refused": None})
        for entry in source["refused"]:
            lines.append({"source": source["name"], "licence": entry["licence"], "collected": entry["samples"],
                          "kept": 0, "refused": entry["reason"]})
    return lines


def _spread(rows: Sequence[Row], count: int) -> list[dict[str, str]]:
    """``count`` rows spread evenly over the list, so that examples come from different families and languages."""
    step = max(1, len(rows) // max(1, count))
    return [{"text": _short(row["text"]), "language": row["language"]} for row in rows[step // 2::step][:count]]


def _media(rows: Sequence[Row], collected: Path, modality: str, count: int) -> list[dict[str, str]]:
    """The first media of a modality as data URIs."""
    types = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp",
             ".wav": "audio/wav", ".flac": "audio/flac"}
    found: list[dict[str, str]] = []
    for row in rows:
        if len(found) == count:
            break
        if row["modality"] != modality:
            continue
        path = collected / row["media_path"]
        if path.stat().st_size <= _LARGEST:
            data = base64.b64encode(path.read_bytes()).decode()
            found.append({"uri": f"data:{types[path.suffix]};base64,{data}", "caption": _short(row["text"], 60),
                          "language": row["language"]})
    return found


def _short(text: str, limit: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit - 1] + "…"
