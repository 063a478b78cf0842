"""Which texts are left out, and why: hard limits, personal data, benchmark overlap, and statistical outliers."""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from so8t_ops.data.files import bad_data
from so8t_ops.data.settings import OutlierSettings, PreprocessSettings

FEATURES = ("log length", "repetition", "digits", "punctuation", "latin", "kana", "kanji")
_FEWEST = 30        # texts below which a median says little
_REPETITIVE = 0.5   # share that zlib must save before a text can count as repetitive: chance saves a little


def comparable(text: str) -> str:
    """The form in which texts are compared: NFKC, case folded, white space collapsed.  Never what is stored."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True)
class Finding:
    """Why one text is left out: a reason to count by, and the detail for a reader."""

    reason: str
    detail: str


def inspect(text: str, settings: PreprocessSettings) -> Finding | None:
    """What one text shows by itself."""
    plain = comparable(text)
    if len(plain) < settings.min_chars:
        return Finding("too_short", f"{len(plain)} characters")
    if len(text) > settings.max_chars:
        return Finding("too_long", f"{len(text)} characters")
    if "\ufffd" in text or any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in text):
        return Finding("broken_text", "replacement or control characters")
    if settings.pii == "drop" and (kind := personal_data(text)):
        return Finding("personal_data", kind)
    return None


_MAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w")
_PHONE = re.compile(
    r"(?<![\d-])(?:0\d{1,4}[-‐ー ]\d{1,4}[-‐ー ]\d{3,4}|0[789]0\d{8}"
    r"|\+\d{1,3}[- ]?\d{1,4}[- ]\d{3,4}[- ]\d{3,4})(?![\d-])")
_DIGITS = re.compile(r"(?<![\d.])\d(?:[ -]?\d){11,18}(?![\d.])")


def personal_data(text: str) -> str | None:
    """The kind of personal data a text seems to hold, or None.  Numbers count only where their check digit is right."""
    text = unicodedata.normalize("NFKC", text)
    if _MAIL.search(text):
        return "mail address"
    if _PHONE.search(text):
        return "phone number"
    for match in _DIGITS.findall(text):
        digits = [int(c) for c in match if c.isdigit()]
        if len(digits) == 12 and is_my_number(digits):
            return "My Number"
        if 13 <= len(digits) <= 19 and passes_luhn(digits):
            return "card number"
    return None


def passes_luhn(digits: Sequence[int]) -> bool:
    """The check of payment card numbers (ISO/IEC 7812-1, annex B)."""
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))]
    return any(digits) and sum(doubled) % 10 == 0


def is_my_number(digits: Sequence[int]) -> bool:
    """The check of Japan's 12-digit individual numbers (Ordinance 85 of 2014 of the Ministry of Internal Affairs)."""
    weighted = sum(d * (n + 1 if n <= 6 else n - 5) for n, d in enumerate(reversed(digits[:11]), 1))
    remainder = weighted % 11
    return any(digits) and digits[11] == (0 if remainder <= 1 else 11 - remainder)


class BenchmarkGuard:
    """Finds samples that share a run of ``n`` characters with a benchmark text (shorter ones must be equal)."""

    def __init__(self, paths: Iterable[Path], n: int) -> None:
        """Reads every string of .jsonl files and every line of others.

        Raises:
            StepFailure: a file cannot be read.
        """
        self._n = n
        self._runs: dict[str, str] = {}
        for path in paths:
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
                texts = [t for line in lines if line.strip() for t in (
                    _strings(json.loads(line)) if path.suffix == ".jsonl" else [line])]
            except (OSError, ValueError) as error:
                raise bad_data(f"{path}: cannot be read as a benchmark ({error})",
                               "Correct data.preprocess.benchmarks.") from None
            for text in texts:
                for run in self._cut(comparable(text)):
                    self._runs.setdefault(run, path.name)

    def find(self, text: str) -> Finding | None:
        """The benchmark a text overlaps with, as a finding."""
        for run in self._cut(comparable(text)):
            if run in self._runs:
                return Finding("benchmark_overlap", self._runs[run])
        return None

    def _cut(self, text: str) -> Iterable[str]:
        return (text[i:i + self._n] for i in range(max(1, len(text) - self._n + 1))) if text else ()


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for child in children for text in _strings(child)]


def features(text: str) -> list[float]:
    """Numbers in the order of :data:`FEATURES`; all but the first are shares between 0 and about 1."""
    raw = text.encode()
    size = max(1, len(text))
    kinds = [unicodedata.category(c)[0] for c in text]
    return [
        float(np.log1p(len(text))),
        1.0 - min(1.0, len(zlib.compress(raw, 9)) / (len(raw) + 11)),  # 11 bytes: what zlib adds to any text
        kinds.count("N") / size,
        (kinds.count("P") + kinds.count("S")) / size,
        sum(c.isascii() and c.isalpha() for c in text) / size,
        sum("\u3040" <= c <= "\u30ff" for c in text) / size,
        sum("\u4e00" <= c <= "\u9fff" for c in text) / size,
    ]


def robust_z(values: np.ndarray) -> np.ndarray:
    """Distance from the median in robust standard deviations, same shape as ``values``.

    The modified z-score of Iglewicz & Hoaglin (1993), "How to Detect and Handle Outliers": the spread is 1.4826 times
    the median absolute deviation; where that is 0, 1.2533 times the mean absolute deviation; where both are, z is 0.
    """
    deviation = np.abs(values - np.median(values))
    spread = 1.4826 * np.median(deviation) or 1.2533 * deviation.mean()
    return (values - np.median(values)) / spread if spread > 0 else np.zeros_like(values)


def outliers(texts: Sequence[str], settings: OutlierSettings, seed: int) -> dict[int, Finding]:
    """Which texts of one population (one language, labelled or not) lie far outside it: index to finding.

    Length and repetition are judged one by one, and all features together by an isolation forest (Liu, Ting & Zhou
    2008), whose scores are put on the same robust scale.  At most ``max_fraction`` are found.
    """
    if len(texts) < _FEWEST:
        return {}
    from sklearn.ensemble import IsolationForest

    table = np.array([features(text) for text in texts])
    forest = IsolationForest(n_estimators=settings.trees, random_state=seed % 2**32, n_jobs=1).fit(table)
    scores = np.stack([
        np.abs(robust_z(table[:, 0])),
        np.where(table[:, 1] >= _REPETITIVE, robust_z(table[:, 1]), 0),
        robust_z(-forest.score_samples(table)),        # only the abnormal side counts
    ])
    names = ("outlier_length", "outlier_repetition", "outlier_isolation")
    extreme = scores.max(axis=0)
    order = sorted(np.flatnonzero(extreme >= settings.robust_z).tolist(), key=lambda i: (-extreme[i], i))
    found = {}
    for i in order[:int(settings.max_fraction * len(texts))]:
        which = int(scores[:, i].argmax())
        found[i] = Finding(names[which], f"robust z {scores[which, i]:.1f}, {len(texts[i])} characters")
    return found
