"""The step's own memory across interruptions: which phase it is in, what is finished, what the curves were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from so8t_fsm.step import StepContext

FINISHED = ("base", "warm")
"""Directories of earlier phases; a checkpoint carries them, so that it needs nothing but itself."""

Curve = list[dict[str, float]]


@dataclass
class Journal:
    """Where the step is.

    Attributes:
        phase: the phase that runs, or runs next: ``base``, ``warm`` or ``ppo``.
        curves: the finished phases' measurements, by phase: one mapping per optimizer step.
        position: optimizer steps and PPO updates done in finished phases; only ever grows.
    """

    ctx: StepContext
    phase: str = "base"
    curves: dict[str, Curve] = field(default_factory=dict)
    position: float = 0.0
    inside: Path | None = None

    @classmethod
    def open(cls, ctx: StepContext) -> Journal:
        """A new journal, or the one in the newest verified checkpoint with its finished parts put back in place."""
        journal = cls(ctx)
        if ctx.checkpoint is None:
            return journal
        kept = json.loads((ctx.checkpoint / "journal.json").read_text(encoding="utf-8"))
        journal.phase, journal.curves, journal.position = kept["phase"], kept["curves"], kept["position"]
        for name in FINISHED:
            if (ctx.checkpoint / "finished" / name).is_dir():
                shutil.copytree(ctx.checkpoint / "finished" / name, ctx.out / name, dirs_exist_ok=True)
        state = ctx.checkpoint / "state"
        journal.inside = state if state.is_dir() else None
        return journal

    def save(self, write_state: Callable[[Path], None] | None, steps: float) -> None:
        """Keep everything: the finished parts, the curves, and the running phase's own state.

        ``steps`` are those of the running phase.

        Raises:
            StopRequested: a stop was asked for and the checkpoint is safe.
        """

        def write(directory: Path) -> None:
            facts = {"phase": self.phase, "curves": self.curves, "position": self.position}
            (directory / "journal.json").write_text(json.dumps(facts, sort_keys=True), encoding="utf-8", newline="\n")
            for name in FINISHED:
                if (self.ctx.out / name).is_dir():
                    shutil.copytree(self.ctx.out / name, directory / "finished" / name)
            if write_state is not None:
                (directory / "state").mkdir()
                write_state(directory / "state")

        self.ctx.save_checkpoint(write, self.position + steps)

    def finish(self, phase: str, following: str, curve: Curve, steps: float) -> None:
        """Close a phase: keep its curve, name the next one and save.  What it made lies in ``ctx.out`` by now."""
        self.curves[phase] = curve
        self.phase, self.inside = following, None
        self.position += steps
        self.save(None, 0)


def plain(value: Any) -> Any:
    """A number as JSON holds it without loss."""
    return cast(Any, value).item() if hasattr(value, "item") else value
