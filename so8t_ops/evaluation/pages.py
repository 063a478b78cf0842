"""Pages from templates: everything a page shows is escaped, and a page needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from so8t_ops.evaluation import plots
from so8t_ops.evaluation.compare import METRIC_NAMES, detectable_text
from so8t_ops.evaluation.predictions import Answer, Item

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_TEXT = 200


@cache
def environment() -> Any:
    """The jinja2 environment of the reports: autoescape on, an undefined name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                      trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    env.filters["percent"] = lambda x: "–" if x is None else f"{100 * x:.1f}%"
    env.filters["share"] = share
    return env


def share(proportion: Mapping[str, Any]) -> str:
    """A proportion with its interval and counts, in words; a dash where there was nothing to count."""
    if not proportion["n"]:
        return "–"
    return (f"{100 * proportion['value']:.1f}% [{100 * proportion['low']:.1f}, {100 * proportion['high']:.1f}] "
            f"({proportion['right']}/{proportion['n']})")


def abc_report(
    summary: Mapping[str, Any], items: Sequence[Item], answers: Mapping[str, Sequence[Answer]], shown: int,
) -> str:
    """The comparison as one self-contained page, English and Japanese headings, pictures as inline SVG.

    Args:
        summary: what :func:`so8t_ops.evaluation.compare.summarise` gives.
        answers: per variant that was run, one answer per item in the order of ``items``.
        shown: how many items on which the models disagree to print.
    """
    from markupsafe import Markup

    disagreements = [
        {"item": item, "text": _shortened(item.text), "answers": {v: given[k].label for v, given in answers.items()}}
        for k, item in enumerate(items) if len({given[k].label for given in answers.values()}) > 1
    ]
    run = {v: s for v, s in summary["variants"].items() if s["status"] == "run"}
    figures = {
        "accuracy": Markup(plots.accuracy_plot(summary)) if run else "",
        "recall": Markup(plots.recall_plot(summary)) if run else "",
        "difference": Markup(plots.difference_plot(summary)) if summary["comparisons"] else "",
    }
    page: str = environment().get_template("abc_report.html.j2").render(
        summary=summary, run=run, figures=figures, disagreements=disagreements, shown=shown,
        metric=METRIC_NAMES[summary["declared"]["primary_metric"]], detectable_text=detectable_text)
    return page


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 1] + "…"
