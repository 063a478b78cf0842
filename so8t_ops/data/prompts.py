"""The project's own prompts: template families in YAML, expanded with a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from ruamel.yaml import YAML

from so8t_ops.data.labels import LABELS
from so8t_ops.data.samples import Sample
from so8t_ops.data.settings import PromptsSource

_SLOT = re.compile(r"\{([a-z]+)(\d?)(\^?)\}")
_TRIES = 40  # draws per wanted prompt before a family counts as exhausted


def load(name: str) -> dict[str, Any]:
    """One of the YAML files beside this module, as plain values."""
    text = (files("so8t_ops.data") / "prompts" / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(YAML(typ="safe", pure=True).load(text))


def families() -> Iterator[tuple[str, dict[str, Any], dict[str, list[Any]]]]:
    """Every family as (label, family, the slots it may use), in the order of labels and files."""
    common = load("common")["slots"]
    for label in LABELS:
        document = load(label.lower())
        for family in document["families"]:
            language = family["language"]
            yield label, family, {**common.get(language, {}), **document["slots"].get(language, {})}


def samples(settings: PromptsSource, seed: int) -> Iterator[Sample]:
    """``per_family`` distinct prompts of every family (fewer where its templates have no more to say)."""
    frames = load("common")["frames"]
    for label, family, slots in families():
        rng = random.Random(f"{seed}:{family['id']}")  # seeded by text: independent of PYTHONHASHSEED and of order
        for text in expand(family["templates"], slots, frames, settings.per_family, rng):
            yield Sample(
                text=text, label=label, language=family["language"], licence="Apache-2.0", declared="Apache-2.0",
                synthetic=True, group=family["id"], item=family["id"])


def expand(
    templates: Sequence[str], slots: Mapping[str, Sequence[Any]], frames: Mapping[str, Sequence[str]], count: int,
    rng: random.Random,
) -> list[str]:
    """Up to ``count`` distinct sentences, the templates taken in turn, fillers and frames drawn without repetition
    until their list is used up."""
    decks: dict[str, list[Any]] = {}

    def draw(name: str, options: Sequence[Any]) -> Any:
        deck = decks.setdefault(name, [])
        if not deck:
            deck.extend(rng.sample(list(options), len(options)))
        return deck.pop()

    found: dict[str, None] = {}
    for turn in range(count * _TRIES):
        if len(found) == count:
            break
        template = templates[turn % len(templates)]
        chosen: dict[str, str] = {}
        for slot, which, _ in _SLOT.findall(template):
            value = str(draw(slot, slots[slot]))
            while which and value == chosen.get(slot):
                value = str(draw(slot, slots[slot]))
            chosen[slot + which] = value
        text = _SLOT.sub(lambda m: _upper(chosen[m[1] + m[2]]) if m[3] else chosen[m[1] + m[2]], template)  # noqa: B023
        kind = frame_kind(text)
        if kind:
            frame = draw(kind, frames[kind])
            text = frame.replace("{^}", _upper(text)).replace("{}", text)
        found.setdefault(text)
    return list(found)


def frame_kind(text: str) -> str | None:
    """Which list of frames suits a filled template, judged by its end; None where it is a full sentence."""
    if text.endswith((".", "?", "!", "。", "？")):
        return None
    if text.endswith("を"):
        return "ja_object"
    if text.endswith(("て", "で")):
        return "ja_action"
    return "en_action"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
