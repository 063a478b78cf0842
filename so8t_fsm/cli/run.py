"""``resume`` and ``rerun``: the commands that work."""

from __future__ import annotations

from pathlib import Path

import click

from so8t_fsm import registry, service
from so8t_fsm.cli.common import find_home
from so8t_fsm.cli.reporters import reporter
from so8t_fsm.statedir import open_state


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help=f"Settings of a new run. Default: {service.DEFAULT_CONFIG}.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting of a new run, e.g. training.seed=7.")
@click.option("--new", is_flag=True, help="Start another run even if one is unfinished.")
@click.option("--run", "run_id", metavar="ID", help="Go on with this run.")
@click.option("--retry", is_flag=True, help="After `needs_attention`: the cause is mended, try again.")
@click.option("--unattended", is_flag=True, help="Called by autostart: leave a paused run paused.")
@click.option("--observe-only", is_flag=True, help="Diagnose failures and say what the rules would do, but do none of it.")
@click.option("--json", "as_json", is_flag=True, help="Print what happens as one JSON object a line.")
@click.pass_context
def resume(
    ctx: click.Context, config: Path | None, sets: tuple[str, ...], new: bool, run_id: str | None, retry: bool,
    unattended: bool, observe_only: bool, as_json: bool,
) -> int:
    """Go on with the unfinished run; with none, start one.

    Safe to call at any time and after anything: a finished step is never done again, and the step that was
    interrupted goes on from its last verified checkpoint.

    Example: so8t resume --config configs/quickstart.yaml
    """
    if run_id and new:
        raise click.UsageError("--run goes on with a run and --new starts one: give only one of them")
    home = find_home(ctx.obj)
    wish = service.Wish(
        _absolute(config), sets, new, run_id, retry, unattended, observe_only=observe_only)
    with reporter(as_json) as watching:
        return service.resume(home, wish, watching)


@click.command()
@click.option("--from", "step", required=True, metavar="STEP", help="The first step to do again, e.g. training.")
@click.option("--run", "run_id", metavar="ID", help="The run to start from. Default: the last one.")
@click.option("--config", type=click.Path(path_type=Path), help="Other settings. Default: the run's own file as it is now.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting of the new run.")
@click.option("--json", "as_json", is_flag=True, help="Print what happens as one JSON object a line.")
@click.pass_context
def rerun(
    ctx: click.Context, step: str, run_id: str | None, config: Path | None, sets: tuple[str, ...], as_json: bool,
) -> int:
    """Start a run that takes over the committed steps before STEP and does the rest again.

    The old run is left as it is; the new one is linked to it.

    Example: so8t rerun --from training --set training.learning_rate=1e-5
    """
    home = find_home(ctx.obj)
    store = open_state(home)
    try:
        origin = store.run(run_id) if run_id else store.latest_run()
    finally:
        store.close()
    if origin is None:
        raise service.Unusable(f"there is no run {run_id!r}" if run_id else "there is no run yet; `so8t resume` starts one")
    chosen = registry.resolve(step, origin.steps)
    wish = service.Wish(_absolute(config), sets, rerun=(origin.id, chosen))
    with reporter(as_json) as watching:
        return service.resume(home, wish, watching)


def _absolute(path: Path | None) -> Path | None:
    return path.absolute() if path else None
