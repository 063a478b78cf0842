"""A step whose first instruction writes down what time it is."""

from __future__ import annotations

import os
import time

from so8t_fsm.step import Step, StepContext


class FirstStep(Step):
    """``at`` in the home holds the time at which the step's own code began, in seconds since the epoch."""

    name, state = "first_step", "collecting"

    def run(self, ctx: StepContext) -> None:
        at = time.time()
        (ctx.home / "at").write_text(repr(at))
        if "FIRST_STEP_HANGS" in os.environ:
            time.sleep(600)
