"""Where a person watches a run: a terminal with a live bar, plain lines for a file or a service, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from so8t_fsm.handle import Reporter
from so8t_fsm.store import Run


@contextmanager
def reporter(as_json: bool) -> Iterator[Reporter]:
    """The reporter that suits standard output."""
    if as_json:
        yield JsonLines()
    elif sys.stdout.isatty():
        with Terminal() as live:
            yield live
    else:
        yield PlainLines()


def tell(line: str) -> None:
    """Print a line.  A terminal that was closed, or a pipe whose reader left, must not end a run of days."""
    with suppress(OSError, ValueError):
        click.echo(line)


class JsonLines:
    """One JSON object a line, for programs."""

    def _emit(self, **fact: Any) -> None:
        tell(json.dumps({"at": round(time.time(), 3), **fact}, ensure_ascii=False, default=str))

    def say(self, message: str) -> None:
        self._emit(event="message", message=message)

    def entered(self, run: Run, reason: str) -> None:
        self._emit(event="entered", run=run.id, state=run.state, step=run.step, attempt=run.attempt, rev=run.rev,
                   reason=reason)

    def progress(self, step: str, progress: dict[str, Any]) -> None:
        pass


class PlainLines:
    """A line for every transition, and for every tenth of a step's progress."""

    def __init__(self) -> None:
        self._told: tuple[str, int] = ("", 0)

    def say(self, message: str) -> None:
        tell(f"{time.strftime('%H:%M:%S')} {message}")

    def entered(self, run: Run, reason: str) -> None:
        self.say(f"{run.state:<21} {reason}")

    def progress(self, step: str, progress: dict[str, Any]) -> None:
        total, done = progress.get("total"), progress.get("done") or 0
        if not total:
            return
        tenth = int(10 * done / total)
        if (step, tenth) != self._told:
            self._told = (step, tenth)
            words = f"{amount(done)}/{amount(total)} {progress.get('unit') or ''} {progress.get('note') or ''}"
            self.say(f"{'':<21} {step} {words}".rstrip())


def amount(value: float) -> str:
    """A count as people write it: ``0.5``, ``12``, ``26,768,200``."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


class Terminal:
    """Lines above, one live bar with elapsed and remaining time below."""

    def __enter__(self) -> Terminal:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = Console()
        self._bars = Progress(
            SpinnerColumn(), TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn(),
            console=self._console, transient=True,
        )
        self._bars.start()
        self._task: Any = None
        self._step = ""
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, message: str) -> None:
        from rich.markup import escape

        with suppress(OSError):
            self._bars.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {escape(message)}")

    def entered(self, run: Run, reason: str) -> None:
        from rich.markup import escape

        from so8t_fsm.cli.style import colour

        self._bars.console.print(
            f"[dim]{time.strftime('%H:%M:%S')}[/] [{colour(run.state)}]{run.state:<21}[/] {escape(reason)}")

    def progress(self, step: str, progress: dict[str, Any]) -> None:
        if step != self._step:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._step = step
            self._task = self._bars.add_task(step, total=None, unit="", note="")
        if progress:
            self._bars.update(self._task, completed=progress.get("done") or 0, total=progress.get("total"),
                              unit=progress.get("unit") or "", note=progress.get("note") or "")
