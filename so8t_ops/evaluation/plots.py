"""Pictures for the reports, as SVG text to be put inside a page.  The same numbers give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = {"A": "#0072B2", "B": "#E69F00", "C": "#009E73"}
INK = "#333333"


@contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure (inches) under fixed settings, whatever the user's own matplotlibrc says."""
    import matplotlib
    from matplotlib.figure import Figure

    defaults: Any = matplotlib.rcParamsDefault
    style = {
        **defaults, "backend": "svg", "svg.hashsalt": "so8t", "svg.fonttype": "none", "font.size": 9.0,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK, "axes.labelcolor": INK,
        "text.color": INK, "xtick.color": INK, "ytick.color": INK}
    with matplotlib.rc_context(style):
        yield Figure(figsize=(width, height), layout="constrained")


def inline_svg(fig: Any, name: str, title: str) -> str:
    """The figure as one ``<svg>`` element, its ids prefixed with ``name`` so that several share a page."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()


def accuracy_plot(summary: Mapping[str, Any]) -> str:
    """One dot and Wilson interval per model that was run, percent."""
    run = {v: s for v, s in summary["variants"].items() if s["status"] == "run"}
    with figure(6.4, 0.6 + 0.42 * len(run)) as fig:
        axes = fig.add_subplot()
        for y, (variant, score) in enumerate(run.items()):
            _whisker(axes, score["accuracy"], y, COLOURS[variant])
        axes.set_yticks(range(len(run)), [f"{v} ({s['name']})" for v, s in run.items()])
        axes.set_ylim(len(run) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy, %")
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        return inline_svg(fig, "accuracy", "Accuracy of each model with its interval")


def recall_plot(summary: Mapping[str, Any]) -> str:
    """Recall by class, one dot and Wilson interval per model, percent."""
    run = {v: s for v, s in summary["variants"].items() if s["status"] == "run"}
    labels = summary["labels"]
    step = 0.8 / max(1, len(run))
    with figure(6.4, 0.6 + 0.55 * len(labels)) as fig:
        axes = fig.add_subplot()
        for k, (variant, score) in enumerate(run.items()):
            for y, label in enumerate(labels):
                recall = score["per_class"][label]["recall"]
                if recall["n"]:
                    _whisker(axes, recall, y - 0.4 + step * (k + 0.5), COLOURS[variant],
                             label=variant if y == 0 else None)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("recall, %")
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        fig.legend(*_legend(run), loc="outside right upper", frameon=False)
        return inline_svg(fig, "recall", "Recall of each model by class with its interval")


def difference_plot(summary: Mapping[str, Any]) -> str:
    """The difference of every pair with its interval, in points; right of the line the second model is better."""
    rows = summary["comparisons"]
    with figure(6.4, 0.6 + 0.42 * len(rows)) as fig:
        axes = fig.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8)
        for y, row in enumerate(rows):
            colour = "#D55E00" if row["significant"] else "#777777"
            axes.plot([row["low_points"], row["high_points"]], [y, y], color=colour, linewidth=2)
            axes.plot([row["points"]], [y], "o", color=colour, markersize=6)
        axes.set_yticks(range(len(rows)), ["{1} − {0}".format(*row["pair"].split("-")) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        reach = max([10.0] + [abs(row[k]) for row in rows for k in ("low_points", "high_points")]) * 1.05
        axes.set_xlim(-reach, reach)
        axes.set_xlabel("difference, points")
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        return inline_svg(fig, "difference", "Difference of each pair of models with its interval")


def _whisker(axes: Any, share: Mapping[str, Any], y: float, colour: str, label: str | None = None) -> None:
    axes.plot([100 * share["low"], 100 * share["high"]], [y, y], color=colour, linewidth=2, clip_on=False)
    axes.plot([100 * share["value"]], [y], "o", color=colour, markersize=6, label=label, clip_on=False)


def _legend(run: Mapping[str, Any]) -> tuple[Sequence[Any], Sequence[str]]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=COLOURS[v], marker="o") for v in run], list(run)
