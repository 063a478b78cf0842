"""What every command shares: the home, the one-line errors, JSON output."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

EXIT_USAGE, EXIT_INTERNAL = 2, 70


def find_home(given: Path | None) -> Path:
    """``--home`` or ``SO8T_HOME``, else the working directory if it holds ``configs/``, else the checkout.

    Raises:
        click.UsageError: none of these is there.
    """
    if given is not None:
        if not given.is_dir():
            raise click.UsageError(f"{given} is not a directory; `so8t init {given}` makes a home there")
        return given.absolute()
    here = Path.cwd()
    if (here / "configs").is_dir():
        return here
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "configs").is_dir():
        return checkout
    raise click.UsageError("this directory is no home of so8t (it has no configs/); `so8t init DIR` makes one")


def emit(value: Any) -> None:
    """Print facts as JSON."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def guarded(command: click.Command) -> int:
    """Run the command line; every failure becomes one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A cp932 console must not end the run because of a character that it can't show.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return _run(command)
    finally:
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            # The reader of the pipe left; the interpreter would complain about it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(command: click.Command) -> int:
    try:
        result = command.main(standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        click.echo(f"so8t: {error.format_message()}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("so8t: stopped", err=True)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """One line for the errors we know; for one of ours a line too, with the details in a file."""
    from so8t_fsm.reader import Unreadable

    if isinstance(error, Unreadable):
        click.echo(f"so8t: {error}" + ("; `so8t resume` puts it right" if error.damaged else ""), err=True)
        return EXIT_USAGE
    from sqlalchemy.exc import SQLAlchemyError

    from so8t_fsm.commands import CommandRefused
    from so8t_fsm.located import ConfigError
    from so8t_fsm.registry import StepUnknown
    from so8t_fsm.schema import StateTooNew
    from so8t_fsm.store import StateUnusable, one_line

    expected: tuple[type[Exception], ...] = (CommandRefused, ConfigError, StepUnknown, StateTooNew, StateUnusable)
    if "so8t_fsm.service" in sys.modules:
        from so8t_fsm.service import Unusable

        expected += (Unusable,)
    if isinstance(error, expected):
        click.echo(f"so8t: {error}", err=True)
        return EXIT_USAGE
    if isinstance(error, SQLAlchemyError):
        from so8t_fsm.statedir import explain

        click.echo(f"so8t: {explain(error, None)}", err=True)
        return EXIT_USAGE
    where = _keep_traceback(error)
    click.echo(f"so8t: a fault of so8t itself: {type(error).__name__}: {one_line(error)}{where}", err=True)
    return EXIT_INTERNAL


def _keep_traceback(error: Exception) -> str:
    import tempfile

    try:
        with tempfile.NamedTemporaryFile("w", prefix="so8t-fault-", suffix=".log", delete=False, encoding="utf-8") as out:
            traceback.print_exception(error, file=out)
        return f"; please report it with {out.name}"
    except OSError:
        return ""
