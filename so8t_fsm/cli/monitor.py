"""``monitor``: the command that watches and never acts."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from so8t_fsm import views
from so8t_fsm.cli.common import emit, find_home
from so8t_fsm.cli.reporters import tell
from so8t_fsm.journal import Kept
from so8t_fsm.monitor import Monitor
from so8t_fsm.settings import parse_duration
from so8t_fsm.statedir import open_state
from so8t_fsm.stopping import StopSignals

WORDS = {
    "open": "still open", "incident": "", "reranked": "rather", "withdrawn": "withdrawn: it came through",
    "observed": "closed: nothing more was heard of it",
}


def _duration(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    try:
        seconds = float(parse_duration(value))  # type: ignore[arg-type]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not 0.1 <= seconds <= 86400:
        raise click.BadParameter("must be between 0.1s and 1d")
    return seconds


class Lines:
    """A line for each thing that is told."""

    def say(self, event: str, message: str) -> None:
        tell(f"{time.strftime('%H:%M:%S')} {message}")

    def incident(self, event: str, kept: Kept) -> None:
        words = f" ({WORDS[event]})" if WORDS[event] else ""
        self.say(event, f"{kept.state}{words}: {sentence(kept)}")


class JsonLines:
    """One JSON object a line."""

    def _emit(self, **fact: Any) -> None:
        tell(json.dumps({"at": views.iso(time.time()), **fact}, ensure_ascii=False, default=str))

    def say(self, event: str, message: str) -> None:
        self._emit(event=event, message=message)

    def incident(self, event: str, kept: Kept) -> None:
        self._emit(event=event, **facts(kept))


class Silence:
    """Says nothing; ``--once --json`` prints one object at the end."""

    def say(self, event: str, message: str) -> None:
        pass

    def incident(self, event: str, kept: Kept) -> None:
        pass


def facts(kept: Kept) -> dict[str, Any]:
    """What a program is told of an incident."""
    seen = (kept.detail.get("incident") or {}).get("event") or {}
    return {
        "id": kept.id, "run": kept.run_id, "step": kept.step, "attempt": kept.attempt, "state": kept.state,
        "rule": kept.rule, "severity": kept.severity, "status": kept.status, "opened_at": views.iso(kept.opened_at),
        "file": seen.get("file"), "line": seen.get("line"), "text": seen.get("text") or kept.detail.get("message"),
        "events": kept.detail.get("count"),
    }


def sentence(kept: Kept) -> str:
    """What a person is told of an incident."""
    fact = facts(kept)
    where = f"{fact['step']}, attempt {fact['attempt']}" if fact["step"] else ""
    place = f"{fact['file']}:{fact['line']}" if fact["file"] else ""
    said = " ".join(str(fact["text"] or "").split())[:200]
    return " · ".join(part for part in (where, said, f"rule {fact['rule']}" if fact["rule"] else "", place) if part)


@click.command()
@click.option("--interval", callback=_duration, default="5m", show_default=True, metavar="DURATION",
              help="How often all logs are looked at, besides whenever the system tells of a change.")
@click.option("--once", is_flag=True, help="Take in what is new, print what is open, and end; exit code 1 if any is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line; with --once, one for all.")
@click.pass_context
def monitor(ctx: click.Context, interval: float, once: bool, as_json: bool) -> int:
    """Watch the logs without a runner, and tell of incidents the moment they happen.

    It never acts: what is done about an incident is the runner's business. It may run beside one, and on a home whose
    runner is elsewhere. Killed and started again, it goes on where it was, and tells nothing twice but what is open.

    Example: so8t monitor --json | tee incidents.jsonl
    """
    home = find_home(ctx.obj)
    store = open_state(home)
    try:
        if once:
            seen = Monitor(store, home, Silence() if as_json else Lines(), interval)
            live = seen.once()
            if as_json:
                emit({"blind": seen.blind, "incidents": [facts(one) for one in live]})
            elif not live and seen.blind is None:
                click.echo("no incident is open")
            return 1 if live or seen.blind is not None else 0
        with StopSignals() as signals:
            Monitor(store, home, JsonLines() if as_json else Lines(), interval).watch(
                lambda: signals.requested is not None)
        return 0
    finally:
        store.close()
