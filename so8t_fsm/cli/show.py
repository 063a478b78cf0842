"""``state``, ``history``, ``graph``: the commands that look.  They load neither rich nor a step unless a person looks."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from so8t_fsm import views
from so8t_fsm.cli.common import emit, find_home
from so8t_fsm.reader import Reader, database_url, latest_run, sqlite_path

NO_RUN = "no run yet; `so8t resume` starts one"
NOTHING: dict[str, Any] = {
    "run": None, "state": "idle", "step": None, "attempt": 0, "rev": 0, "epoch": 0, "runner_alive": False,
    "progress": None, "checkpoint": None, "incident": None, "next_retry_at": None, "overrides": [], "steps": [],
    "watchers": [],
}


def _open(ctx: click.Context, run_id: str | None) -> tuple[Reader | None, dict[str, Any] | None]:
    """The database and the row of the run to show; nothing is created by looking."""
    url = database_url(find_home(ctx.obj))
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return None, None
    reader = Reader(url)
    run = latest_run(reader, run_id)
    if run is None and run_id:
        raise click.UsageError(f"there is no run {run_id!r}; `so8t history --runs` lists them")
    return reader, run


@click.command()
@click.option("--run", "run_id", metavar="ID", help="Which run. Default: the unfinished one, else the last.")
@click.option("--watch", is_flag=True, help="Keep the picture live until Ctrl+C.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
@click.pass_context
def state(ctx: click.Context, run_id: str | None, watch: bool, as_json: bool) -> int:
    """Show where the run is: steps, progress, last checkpoint, overrides, incident, next retry.

    Example: so8t state --watch
    """
    reader, run = _open(ctx, run_id)
    if reader is None or run is None:
        emit(NOTHING) if as_json else click.echo(NO_RUN)
        return 0
    with reader:
        if as_json:
            emit(views.picture(reader, run))
        elif watch:
            _watch(reader, run, run_id)
        else:
            from rich.console import Console

            from so8t_fsm.cli.picture import render

            Console().print(render(views.picture(reader, run)))
    return 0


def _watch(reader: Reader, run: dict[str, Any], run_id: str | None) -> None:
    from rich.live import Live

    from so8t_fsm.cli.picture import render

    with suppress(KeyboardInterrupt), Live(render(views.picture(reader, run)), refresh_per_second=4) as live:
        while True:
            time.sleep(0.5)
            run = latest_run(reader, run_id) or run
            live.update(render(views.picture(reader, run)))


@click.command()
@click.option("--run", "run_id", metavar="ID", help="Which run. Default: the unfinished one, else the last.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the last N rows.")
@click.option("--runs", is_flag=True, help="List the runs instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.pass_context
def history(ctx: click.Context, run_id: str | None, last: int | None, runs: bool, as_json: bool) -> int:
    """Tell the run as a story: when, from where to where, why, and who said so.

    Example: so8t history --last 20
    """
    reader, run = _open(ctx, run_id)
    if reader is None or run is None:
        emit([]) if as_json else click.echo(NO_RUN)
        return 0
    with reader:
        if runs:
            _list_runs(reader, as_json)
            return 0
        rows = views.history(reader, run["id"], last)
    if as_json:
        emit(rows)
        return 0
    click.echo(f"run {run['id']}" + (f", from {run['parent']}" if run["parent"] else ""))
    for row in rows:
        click.echo(_sentence(row))
    return 0


def _sentence(row: dict[str, Any]) -> str:
    at = str(row["at"])[:19].replace("T", " ")
    moved = row["to_state"] if row["from_state"] == row["to_state"] else f"{row['from_state']} -> {row['to_state']}"
    line = f"{row['rev']:>4}  {at}  {moved:<36}  {row['reason']}"
    overridden = (row.get("detail") or {}).get("overridden")
    if overridden:
        line += f" [overrides: {'; '.join(overridden)}]"
    return line if str(row["who"]).startswith("runner ") else f"{line}  ({row['who']})"


def _list_runs(reader: Reader, as_json: bool) -> None:
    columns = "id, state, step, created_at, finished_at, parent, config_path"
    rows = reader.rows(f"SELECT {columns} FROM run ORDER BY created_at")
    for row in rows:
        row["created_at"], row["finished_at"] = views.iso(row["created_at"]), views.iso(row["finished_at"])
    if as_json:
        emit(rows)
        return
    for row in rows:
        origin = f"  from {row['parent']}" if row["parent"] else ""
        click.echo(f"{row['id']}  {row['state']:<21}  {str(row['created_at'])[:19]}  {row['config_path'] or ''}{origin}")


@click.command()
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write a picture instead.")
@click.option("--run", "run_id", metavar="ID", help="Which run's state to light up.")
@click.option("--json", "as_json", is_flag=True, help="Print states and edges as JSON.")
@click.pass_context
def graph(ctx: click.Context, svg: Path | None, run_id: str | None, as_json: bool) -> int:
    """Draw the machine: Mermaid text, or an SVG picture, with the current state lit.

    Example: so8t graph --svg machine.svg
    """
    from so8t_fsm import diagram, states

    current = None
    try:
        reader, run = _open(ctx, run_id)
    except click.UsageError:
        if run_id:
            raise
        reader, run = None, None  # the machine can be drawn without a home
    if reader is not None:
        current = run["state"] if run else None
        reader.__exit__(None, None, None)
    if as_json:
        emit({"states": states.STATES, "current": current,
              "edges": [{"trigger": e.trigger, "from": e.source, "to": e.dest, "guards": e.guards} for e in states.edges()]})
    elif svg is not None:
        try:
            svg.write_text(diagram.svg(current), encoding="utf-8")
        except OSError as error:
            raise click.UsageError(f"{svg}: {error.strerror}") from error
        click.echo(f"{svg} written")
    else:
        click.echo(diagram.mermaid(current))
    return 0
