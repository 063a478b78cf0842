"""The figures of the data set report, as inline SVG that is the same bytes for the same data."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from so8t_ops.data.labels import LABELS
from so8t_ops.data.samples import Row
from so8t_ops.data.split import SPLITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Mapping[str, str] = {
    "ALLOW": "#2f9e77", "ESCALATION": "#e0a63a", "DENY": "#d9683c", "REFUSE": "#9b3450", "unlabelled": "#8d99ae"}
SPLIT_COLOURS: Mapping[str, str] = {"train": "#3d5a80", "validation": "#7ea6c9", "test": "#ee6c4d"}
_INK, _GRID = "#41495a", "#e3e7ee"
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": _INK, "axes.labelcolor": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "axes.edgecolor": _GRID, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": _GRID, "grid.linewidth": 0.8,
    "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False, "svg.fonttype": "path",
}


def _svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element that scales with the page."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def draw(rows: Sequence[Row], rejected: Sequence[Row]) -> dict[str, str]:
    """Every figure by name: ``splits``, ``languages``, ``lengths``, ``rejected`` (only where something was) and
    ``groups``."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figures = {
            "splits": _splits(rows), "languages": _languages(rows), "lengths": _lengths(rows), "groups": _groups(rows)}
        if rejected:
            figures["rejected"] = _rejected(rejected)
    return figures


def _splits(rows: Sequence[Row]) -> str:
    """Share of each class in each split: even bars mean that stratification worked."""
    figure, axes = _axes(6.2, 2.3)
    counts = Counter((row["split"], row["label"]) for row in rows if row["label"])
    left = np.zeros(len(SPLITS))
    totals = np.array([max(1, sum(counts[split, label] for label in LABELS)) for split in SPLITS])
    for label in LABELS:
        values = np.array([counts[split, label] for split in SPLITS])
        shares = 100 * values / totals
        axes.barh(range(len(SPLITS)), shares, left=left, color=COLOURS[label], label=label, height=0.62)
        for y, (share, value, start) in enumerate(zip(shares, values, left, strict=True)):
            if share > 4:
                axes.text(start + share / 2, y, str(value), ha="center", va="center", color="white", fontsize=9)
        left = left + shares
    axes.set(yticks=range(len(SPLITS)), yticklabels=SPLITS, xlim=(0, 100), xlabel="share of the labelled samples (%)")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=4, handlelength=1, handleheight=1)
    return _svg(figure, "splits")


def _languages(rows: Sequence[Row]) -> str:
    figure, axes = _axes(6.2, 2.9)
    names = [*LABELS, "unlabelled"]
    counts = Counter((row["label"] or "unlabelled", row["language"]) for row in rows)
    for k, (language, alpha) in enumerate((("ja", 1.0), ("en", 0.55))):
        values = [counts[name, language] for name in names]
        bars = axes.bar(np.arange(len(names)) + 0.38 * (k - 0.5), values, 0.36, alpha=alpha,
                        color=[COLOURS[name] for name in names])
        axes.bar_label(bars, [f"{language}\n{value}" for value in values], fontsize=8, padding=2)
    axes.set(xticks=range(len(names)), xticklabels=names, ylabel="samples")
    axes.margins(y=0.2)
    axes.grid(axis="x", visible=False)
    return _svg(figure, "languages")


def _lengths(rows: Sequence[Row]) -> str:
    """Histogram of the length of texts, by language, on a logarithmic axis."""
    figure, axes = _axes(6.2, 2.7)
    texts = {language: [len(r["text"]) for r in rows if r["modality"] == "text" and r["language"] == language]
             for language in ("ja", "en")}
    longest = max([10, *(max(values) for values in texts.values() if values)])
    bins = np.geomspace(2, longest * 1.05, 40)
    for language, colour in (("en", "#7ea6c9"), ("ja", "#3d5a80")):
        if texts[language]:
            axes.hist(texts[language], bins=bins, color=colour, alpha=0.85, edgecolor="white", linewidth=0.4,
                      label=f"{language}: median {np.median(texts[language]):.0f}")
    axes.set(xscale="log", xlabel="characters", ylabel="texts")
    ticks = [t for t in (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if t <= longest * 1.05]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", visible=False)
    axes.legend(handlelength=1, handleheight=1)
    return _svg(figure, "lengths")


def _groups(rows: Sequence[Row]) -> str:
    """How many groups of related samples have how many members, by split."""
    figure, axes = _axes(6.2, 2.7)
    sizes = Counter(row["group_id"] for row in rows)
    split = {row["group_id"]: row["split"] for row in rows}
    top = max(sizes.values())
    bins = np.arange(0.5, top + 1.5) if top <= 40 else np.linspace(0.5, top + 0.5, 41)
    axes.hist([[n for group, n in sizes.items() if split[group] == name] for name in SPLITS], bins=bins, stacked=True,
              color=[SPLIT_COLOURS[name] for name in SPLITS], label=SPLITS, edgecolor="white", linewidth=0.4)
    axes.set(xlabel="samples in a group", ylabel="groups")
    axes.grid(axis="x", visible=False)
    axes.legend(handlelength=1, handleheight=1)
    return _svg(figure, "groups")


def _rejected(rejected: Sequence[Row]) -> str:
    counts = sorted(Counter(row["reason"] for row in rejected).items(), key=lambda item: (item[1], item[0]))
    figure, axes = _axes(6.2, 0.8 + 0.32 * len(counts))
    names, values = [reason.replace("_", " ") for reason, _ in counts], [n for _, n in counts]
    bars = axes.barh(names, values, color=COLOURS["unlabelled"], height=0.6)
    axes.bar_label(bars, padding=4)
    axes.set(xlabel="samples left out")
    axes.margins(x=0.1)
    axes.grid(axis="y", visible=False)
    return _svg(figure, "rejected")
