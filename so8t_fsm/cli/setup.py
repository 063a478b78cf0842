"""``init``, ``config show``, ``doctor``: before a run begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from so8t_fsm import config as configuration
from so8t_fsm import registry, runs
from so8t_fsm.cli.common import emit, find_home
from so8t_fsm.service import DEFAULT_CONFIG
from so8t_fsm.statedir import open_state

PACKAGE = Path(__file__).resolve().parents[1]


def defaults() -> Path:
    """Where the shipped configurations are: inside an installed wheel, or the checkout itself."""
    inside = PACKAGE / "defaults"
    return inside if inside.is_dir() else PACKAGE.parent


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
def init(directory: Path, as_json: bool) -> int:
    """Make a home in DIRECTORY: configurations, recovery rules, an empty state.

    What is there already is kept as it is.

    Example: so8t init ~/so8t
    """
    made, kept = [], []
    try:
        for folder in ("configs", "recovery_rules"):
            for source in sorted((defaults() / folder).iterdir()):
                target = directory / folder / source.name
                if target.exists():
                    kept.append(str(target))
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                made.append(str(target))
        for folder in ("state", "logs"):
            (directory / folder).mkdir(exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"{error.filename or directory}: {error.strerror}") from error
    open_state(directory.absolute()).close()
    if as_json:
        emit({"home": str(directory.absolute()), "made": made, "kept": kept})
    else:
        click.echo(f"{directory} is ready: {len(made)} files made, {len(kept)} kept")
        click.echo(f"next: cd {directory} && so8t resume --config configs/quickstart.yaml")
    return 0


@click.group()
def config() -> None:
    """Look at the configuration.

    Example: so8t config show training
    """


@config.command("show")
@click.argument("prefix", required=False, default="")
@click.option("--config", "path", type=click.Path(path_type=Path), help="The file. Default: the run's, else the default.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="As it would be with this setting.")
@click.option("--run", "run_id", metavar="ID", help="What a run started with, and what has been overridden since.")
@click.option("--json", "as_json", is_flag=True, help="Print values and provenance as JSON.")
@click.pass_context
def show(
    ctx: click.Context, prefix: str, path: Path | None, sets: tuple[str, ...], run_id: str | None, as_json: bool,
) -> int:
    """Print every effective setting and where it comes from.

    PREFIX narrows it down, e.g. `training` or `training.ppo`.

    Example: so8t config show training --config configs/rtx3060.yaml
    """
    home = find_home(ctx.obj)
    values, provenance = _of_run(home, run_id) if run_id else _of_file(home, path, sets)
    flat = configuration.flatten(values)
    chosen = {key: value for key, value in flat.items() if not prefix or key == prefix or key.startswith(prefix + ".")}
    if not chosen:
        raise click.UsageError(f"no setting begins with {prefix!r}{registry.suggestion(prefix, list(flat) + list(values))}")
    if as_json:
        emit({key: {"value": value, "from": provenance.get(key, "default")} for key, value in chosen.items()})
        return 0
    width = max(len(key) for key in chosen)
    for key, value in chosen.items():
        shown = configuration.format_value(value, 60)
        click.echo(f"{key:<{width}}  {shown:<24}  {click.style(provenance.get(key, 'default'), dim=True)}")
    return 0


def _of_file(home: Path, path: Path | None, sets: tuple[str, ...]) -> tuple[dict[str, dict[str, object]], dict[str, str]]:
    loaded = configuration.load(path or home / DEFAULT_CONFIG, registry.sections, sets=sets, home=home)
    return loaded.values, loaded.provenance


def _of_run(home: Path, run_id: str) -> tuple[dict[str, dict[str, object]], dict[str, str]]:
    store = open_state(home)
    try:
        run = store.run(run_id)
        if run is None:
            raise click.UsageError(f"there is no run {run_id!r}; `so8t history --runs` lists them")
        provenance = {**run.config.get("provenance", {}), **{
            row["key"]: f"{row['by']}, was {row['was']}" for row in runs.overrides(store, run.id)}}
        return runs.effective(store, run), provenance
    finally:
        store.close()


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="The configuration to check the machine against.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.pass_context
def doctor(ctx: click.Context, path: Path | None, as_json: bool) -> int:
    """Check this machine: Python, torch and CUDA, VRAM, disk, paths, token, llama.cpp, autostart.

    Each line says what to do. Exit 0 when nothing stands in the way, else 2.

    Example: so8t doctor --config configs/rtx3060.yaml
    """
    from so8t_fsm import doctor as checks

    home = find_home(ctx.obj)
    values = None
    problem = None
    try:
        values = _of_file(home, path, ())[0]
    except (configuration.ConfigError, registry.StepUnknown) as error:
        problem = str(error)
    found = list(checks.checks(home, values))
    if problem:
        found.append(checks.Check("configuration", "fail", problem, "mend it, then run `so8t doctor` again"))
    if as_json:
        emit(checks.as_json(found))
    else:
        checks.render(found)
    return 2 if any(check.status == "fail" for check in found) else 0


