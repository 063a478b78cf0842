"""Real text under a declared licence that every machine has: the descriptions of its Python distributions.

What is installed differs between machines, so this source is the same only on the same machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from importlib import metadata
from itertools import islice
from typing import Any

from so8t_ops.data import licences
from so8t_ops.data.samples import Sample, script_language
from so8t_ops.data.settings import DistributionsSource

_MARKUP = re.compile(
    r"```.*?```|~~~.*?~~~|<!--.*?-->|<[^>\n]+>|!\[[^\]]*\]\([^)]*\)|^\s*\.\. .*$|^[ \t]*[|+].*$|^ {4,}.*$",
    re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)|`([^`<]+)(?: <[^>]*>)?`_{0,2}")
_WORD = re.compile(r"[^\W\d_]{2,}")
_FEWEST, _MOST = 60, 600  # characters of a paragraph worth keeping


def installed() -> dict[str, metadata.Distribution]:
    """Every distribution that can be imported from, by its normalised name, sorted."""
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name:
            found.setdefault(name, distribution)  # the first on sys.path is the one that imports use
    return dict(sorted(found.items()))


def fingerprint() -> dict[str, Any]:
    """How many distributions there are, and a hash of their names and versions."""
    names = [f"{name}=={distribution.version}" for name, distribution in installed().items()]
    return {"installed": len(names), "names_and_versions_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()}


def samples(settings: DistributionsSource) -> Iterator[Sample]:
    """Summary and leading paragraphs of each distribution, by name; a refused one is still yielded, to be listed."""
    for name, distribution in islice(installed().items(), settings.limit):
        meta = distribution.metadata
        spdx, declared = licences.of_distribution(meta)  # type: ignore[arg-type]
        body = meta["Description"] or meta.get_payload() or ""  # type: ignore[attr-defined]
        for text in [*_summary(meta["Summary"]), *paragraphs(str(body))[:settings.paragraphs]]:
            yield Sample(
                text=text, label=None, language=script_language(text), licence=spdx, declared=declared,
                synthetic=False, group=f"distribution:{name}", item=f"{name} {distribution.version}")


def _summary(text: str | None) -> list[str]:
    text = " ".join((text or "").split())
    return [text] if len(text) >= 20 else []


def paragraphs(markup: str) -> list[str]:
    """The running prose of a README in Markdown or reStructuredText: no code, tables, badges, lists or headings."""
    plain = _LINK.sub(lambda m: m[1] or m[2], _MARKUP.sub("\n\n", markup))
    kept = []
    for block in re.split(r"\n\s*\n", plain):
        text = " ".join(block.replace("**", "").replace("``", "").split())
        letters = sum(len(word) for word in _WORD.findall(text))
        prose = text.endswith((".", "!", "?", "。", ":")) and not re.match(r"[#*+\-=>:\[]|\d+\.", text)
        if prose and _FEWEST <= len(text) <= _MOST and letters >= 0.7 * len(text.replace(" ", "")):
            kept.append(text)
    return kept
