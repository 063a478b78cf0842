"""A step whose first instruction writes down what time it is."""

from __future__ import annotations

import time

from so8t_fsm.step import Step, StepContext


class FirstStep(Step):
    """``out/at`` holds the time at which the step's own code began, in seconds since the epoch."""

    name, state = "first_step", "collecting"

    def run(self, ctx: StepContext) -> None:
        at = time.time()
        (ctx.out / "at").write_text(repr(at))
