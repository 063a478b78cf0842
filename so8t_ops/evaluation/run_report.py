"""The run on one page: what came of it, how long it took, what broke, and where everything is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from so8t_ops.evaluation import plots
from so8t_ops.evaluation.pages import environment
from so8t_ops.evaluation.timeline import STEPS, Segment, spoken, spoken_bytes

KINDS = {"working": ("working", "#0072B2"), "failed": ("failed", "#D55E00"), "waiting": ("waiting", "#E69F00"),
         "person": ("waiting for a person", "#999999")}
UNITS = ((172_800, 86_400, "days"), (7_200, 3_600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))


def gantt(found: Sequence[Segment]) -> str:
    """The segments as lanes, one a step, over the time since the first of them; an empty text for none."""
    if not found:
        return ""
    from matplotlib.patches import Patch

    begin, end = min(s.start for s in found), max(s.end for s in found)
    span = (end - begin).total_seconds()
    divisor, unit = next((divisor, unit) for least, divisor, unit in UNITS if span >= least)
    lanes = [step for step in STEPS if any(s.step == step for s in found)]
    lanes += sorted({s.step for s in found} - set(lanes))
    least = max(span / 400, 1e-6)  # so that what was over in a moment can still be seen
    with plots.figure(8.0, 1.1 + 0.34 * len(lanes)) as fig:
        axes = fig.add_subplot()
        for segment in found:
            start, length = (segment.start - begin).total_seconds(), max(segment.seconds, least)
            axes.broken_barh([(start / divisor, length / divisor)], (lanes.index(segment.step) - 0.32, 0.64),
                             facecolors=KINDS[segment.kind][1])
        axes.set_yticks(range(len(lanes)), [lane.replace("_", " ") for lane in lanes])
        axes.set_ylim(len(lanes) - 0.4, -0.6)
        axes.set_xlim(0, max(span, least) / divisor * 1.01)
        axes.set_xlabel(f"{unit} since {begin:%Y-%m-%d %H:%M} UTC")
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        shown = [kind for kind in KINDS if any(s.kind == kind for s in found)]
        fig.legend([Patch(color=KINDS[kind][1]) for kind in shown], [KINDS[kind][0] for kind in shown],
                   loc="outside upper right", ncols=len(shown), frameon=False)
        return plots.inline_svg(fig, "timeline", "When each step ran, failed and waited")


def run_report(completion: Mapping[str, Any], found: Sequence[Segment], outputs: Mapping[str, str]) -> str:
    """The page.

    Args:
        completion: what goes to ``logs/pipeline_completion_<run>.json``.
        found: the run as segments of time.
        outputs: where things are: a name to a place.
    """
    from markupsafe import Markup

    page: str = environment().get_template("run_report.html.j2").render(
        c=completion, timeline=Markup(gantt(found)), outputs=outputs, spoken=spoken, spoken_bytes=spoken_bytes)
    return page
