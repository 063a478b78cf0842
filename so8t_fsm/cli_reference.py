"""The page about every command, made from the commands' own ``--help``: ``python -m so8t_fsm.cli_reference [PAGE]``.

With a PAGE it writes that file, else it prints.  A test fails when ``docs/cli.md`` is not what is printed here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from so8t_fsm.cli import cli
from so8t_fsm.cli.common import EXIT_INTERNAL
from so8t_fsm.supervisor import EXIT_OK, EXIT_PERSON, EXIT_STOPPED, EXIT_USAGE

WIDTH = 100
EXITS = {
    EXIT_OK: "done, nothing to do, or already running",
    EXIT_USAGE: "usage or configuration: one line says what to mend",
    EXIT_INTERNAL: "a fault of so8t itself: the line names a file with the details",
    EXIT_STOPPED: "stopped, and `so8t resume` goes on from there",
    EXIT_PERSON: "a person is needed; `so8t resume --retry` once the cause is mended",
}
HEAD = """# Command line

<!-- Made by `python -m so8t_fsm.cli_reference docs/cli.md`; change the commands, not this page. -->

Every command answers `--help` with its options and an example; those that print facts take `--json`.

The home is where `configs/`, `recovery_rules/`, `state/` and `logs/` are: `--home`, else `SO8T_HOME`, else the working
directory if it holds `configs/`, else the checkout.

| Exit code | Meaning |
| --- | --- |
{exits}
"""


def commands(command: click.Command = cli, name: str = "so8t") -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, groups before what they hold."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            if found is not None:
                yield from commands(found, f"{name} {each}")


def help_of(name: str, command: click.Command) -> str:
    """What ``--help`` prints, at a fixed width, whatever terminal this is."""
    context = click.Context(
        command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=["-h", "--help"])
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines())


def reference() -> str:
    """The whole page as Markdown."""
    exits = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXITS.items())
    parts = [HEAD.format(exits=exits)]
    parts += [f"## {name}\n\n```text\n{help_of(name, command)}\n```\n" for name, command in commands()]
    return "\n".join(parts)


def main() -> None:
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(reference(), encoding="utf-8", newline="\n")
    else:
        sys.stdout.write(reference())


if __name__ == "__main__":
    main()
