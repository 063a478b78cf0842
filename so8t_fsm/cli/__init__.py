"""The command line: thin.  Each command's module is loaded only when it is used, so that ``so8t state`` stays quick."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path

import click

from so8t_fsm import __version__

COMMANDS = {
    "init": "setup", "resume": "run", "rerun": "run", "state": "show", "history": "show", "graph": "show",
    "force-transition": "steer", "pause": "steer", "config": "setup", "doctor": "setup", "recover": "recover",
    "monitor": "monitor", "scan": "rules", "rules": "rules",
}


class LazyGroup(click.Group):
    """Finds its commands in :data:`COMMANDS` and imports them on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found = getattr(importlib.import_module(f"so8t_fsm.cli.{module}"), cmd_name.replace("-", "_"))
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            close = difflib.get_close_matches(args[0], COMMANDS, 1)
            known = f"did you mean {close[0]!r}?" if close else f"commands: {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command is called {args[0]!r}; {known}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--home", type=click.Path(path_type=Path), envvar="SO8T_HOME",
              help="Where configs/, state/ and logs/ are. Default: this directory if it holds configs/, else the checkout.")
@click.version_option(__version__, prog_name="so8t")
@click.pass_context
def cli(ctx: click.Context, home: Path | None) -> None:
    """SO8T: the pipeline you switch on and walk away from.

    \b
    so8t init ~/so8t && cd ~/so8t                       make a home
    so8t resume --config configs/quickstart.yaml        start, or go on after any interruption
    so8t state --watch                                  watch it

    Exit codes: 0 done, nothing to do, or already running; 2 usage or configuration; 75 stopped, will resume;
    78 a person is needed.
    """
    ctx.obj = home


def main() -> None:
    """The entry point ``so8t``: whatever goes wrong ends in one line and an exit code."""
    from so8t_fsm.cli.common import guarded

    sys.exit(guarded(cli))
