"""``rules lint|test|explain|simulate`` and ``scan``: the rules on trial.  Nothing here acts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from so8t_fsm import registry
from so8t_fsm.cli.common import EXIT_USAGE, emit, find_home
from so8t_fsm.located import ConfigError, parse_value
from so8t_fsm.rules.load import PACKAGED, RulesError, layers_of, load_rules
from so8t_fsm.rules.model import Rule, RuleSet

EXIT_FOUND = 1
SEVERITY_COLOURS = {"critical": "red", "warning": "yellow", "info": "cyan"}


def _layers(ctx: click.Context, paths: tuple[Path, ...]) -> list[tuple[str, Path]]:
    """The shipped rules and those of the home, or only what the command line names."""
    if paths:
        return [("named", path) for path in paths]
    try:
        return layers_of(find_home(ctx.obj))
    except click.UsageError:
        if ctx.obj is not None:
            raise
        return layers_of(None)


def _load(ctx: click.Context) -> RuleSet:
    """The rules, or all that is wrong with them and exit code 2."""
    try:
        return load_rules(_layers(ctx, ()), steps=registry.working_states())
    except RulesError as error:
        for line in error.all:
            click.echo(f"so8t: {line}", err=True)
        raise click.exceptions.Exit(EXIT_USAGE) from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror or error}") from error


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, dir_okay=False), metavar="[FILE…]")
@click.option("--json", "as_json", is_flag=True, help="Print the incidents as JSON.")
@click.pass_context
def scan(ctx: click.Context, files: tuple[Path, ...], as_json: bool) -> int:
    """Look for incidents in log FILEs; by default in the log of the newest run.

    One failed attempt is one incident, however many lines it left behind. Exit code 0: none; 1: some.

    Example: so8t scan logs/complete_pipeline_1a2b3c.log
    """
    from so8t_fsm.rules.prefilter import Prefilter
    from so8t_fsm.rules.scan import MOVES, current_logs, facts_of
    from so8t_fsm.rules.scan import scan as scan_stream

    rule_set = _load(ctx)
    prefilter = Prefilter(rule_set, MOVES)
    found = []
    for path in files or current_logs(find_home(ctx.obj) / "logs"):
        with _opened(path) as stream:
            found += [facts_of(incident, rule_set) for incident in scan_stream(rule_set, stream, str(path), prefilter)]
    if as_json:
        emit({"incidents": found})
    else:
        for incident in found:
            _show(incident)
        click.echo(f"{len(found)} incident{'' if len(found) == 1 else 's'}" if found else "no incidents")
    return EXIT_FOUND if found else 0


def _show(incident: dict[str, Any]) -> None:
    state = click.style(incident["state"], fg=SEVERITY_COLOURS[incident["severity"]])
    unsure = "" if incident["confirmed"] else ", not confirmed"
    click.echo(f"{incident['file']}:{incident['line']}: {state} ({incident['rule']}{unsure})")
    click.echo(f"    {incident['text'][:160]}")
    click.echo(f"    answer: {', '.join(incident['actions']) or 'none'}")


@click.group()
def rules() -> None:
    """Check, try and understand the recovery rules.

    Example: so8t rules explain cuda-out-of-memory
    """


@rules.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[PATH…]")
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
@click.pass_context
def lint(ctx: click.Context, paths: tuple[Path, ...], as_json: bool) -> int:
    """Check rule files: every problem on one line, with its place and what to do.

    Without PATH, the shipped rules and those of the home together. Exit code 0: good; 2: problems.

    Example: so8t rules lint recovery_rules/50-mine.yaml
    """
    from so8t_fsm.rules.prefilter import slow_rules

    problems: list[str] = []
    notes: list[str] = []
    count = 0
    try:
        rule_set = load_rules(_with_packaged(_layers(ctx, paths)), steps=registry.working_states())
        count = sum(1 for rule in rule_set.rules if not paths or rule.layer == "named")
        notes = [f"{rule.where}: '{rule.id}' has no text that every match must hold; scans of large logs get slow"
                 for rule in slow_rules(rule_set)]
        notes += [f"{rule.where}: '{rule.id}' has no tests; write one that matches and one that does not"
                  for rule in rule_set.rules if not rule.tests]
    except ConfigError as error:
        problems = list(error.all)
    if as_json:
        emit({"ok": not problems, "rules": count, "problems": problems, "notes": notes})
    else:
        for line in problems:
            click.echo(line)
        for line in notes:
            click.echo(f"note: {line}")
        click.echo(f"{len(problems)} problems" if problems else f"{count} rules, no problems")
    return EXIT_USAGE if problems else 0


def _with_packaged(layers: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """A file that is checked alone may name shipped rules in its tests; those are read first, unless it is one."""
    packaged = layers_of(None)
    directory = packaged[0][1].resolve()
    alone = all(name != PACKAGED and path.resolve() != directory and path.resolve().parent != directory
                for name, path in layers)
    return [*packaged, *layers] if alone else layers


@rules.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[PATH…]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.pass_context
def test(ctx: click.Context, paths: tuple[Path, ...], as_json: bool) -> int:
    """Run the examples that the rules carry; all rules take part, so that their order is tried too.

    Exit code 0: all as expected; 1: some are not.

    Example: so8t rules test recovery_rules/50-mine.yaml
    """
    from so8t_fsm.rules.selftest import run_tests

    try:
        rule_set = load_rules(_with_packaged(_layers(ctx, paths)), steps=registry.working_states())
    except RulesError as error:
        for line in error.all:
            click.echo(f"so8t: {line}", err=True)
        return EXIT_USAGE
    chosen = [rule for rule in rule_set.rules if not paths or rule.layer == "named"]
    results = run_tests(rule_set, chosen)
    failed = [result for result in results if result.problem]
    if as_json:
        emit({"tests": len(results), "failed": [vars(result) for result in failed]})
    else:
        for result in failed:
            click.echo(f"{result.where}: {result.rule}: {result.test}: {result.problem}")
        click.echo(f"{len(results)} tests, {len(failed)} failed")
    return EXIT_FOUND if failed else 0


@rules.command()
@click.argument("rule_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the rule as JSON.")
@click.pass_context
def explain(ctx: click.Context, rule_id: str, as_json: bool) -> int:
    """Say what the rule ID looks for, what it does, why, and where it was read.

    Example: so8t rules explain cuda-out-of-memory
    """
    from so8t_fsm.config_problems import suggestion

    rule_set = _load(ctx)
    rule = rule_set.rule(rule_id)
    if rule is None:
        raise click.UsageError(f"there is no rule '{rule_id}'{suggestion(rule_id, (r.id for r in rule_set.rules))}")
    if as_json:
        emit(_as_json(rule))
        return 0
    for name, value in _lines(rule, rule_set):
        if value:
            click.echo(f"{name:<10} {value}")
    return 0


def _lines(rule: Rule, rule_set: RuleSet) -> Iterator[tuple[str, str]]:
    yield rule.id, rule.title
    yield "from", f"{rule.where} ({rule.layer}{f', in place of {rule.replaces}' if rule.replaces else ''})"
    watched = ", only watched" if rule.status == "experimental" else ""
    yield "state", f"{rule.state} ({rule.severity}, {rule.role}{watched})"
    everywhere = "any step" if not rule.steps else ", ".join(sorted(rule.steps))
    yield "seen in", f"{', '.join(sorted(rule.sources))}; {everywhere}"
    yield "matches", rule.condition_text
    if rule.takes_back:
        yield "takes back", ", ".join(f"{state} of {n} lines above" for state, n in rule.takes_back.items())
    if rule.covers:
        yield "covers", f"a traceback just below, of {', '.join(sorted(rule.covers))}"
    yield "when", "; ".join(f"{fact} {c.operator} {c.value!r}" for fact, all_of in rule.when.items() for c in all_of)
    yield "then", "; ".join(map(str, rule.then)) or "nothing"
    if not rule.harmless:
        backoff, limits = rule.backoff, rule_set.limits
        yield "budget", (f"{rule.max_attempts} attempts, and {limits.of_root(rule.state)} recoveries from {rule.state} "
                         "without progress over all rules")
        yield "waits", f"{backoff.initial:g} s, then ×{backoff.multiplier:g}, at most {backoff.max:g} s"
        yield "in the end", f"{rule.escalate.to}, notifying: {', '.join(rule.escalate.notify)}"
    yield "because", rule.explain
    yield "see", ", ".join(rule.references)
    yield "tests", str(len(rule.tests))


def _as_json(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id, "title": rule.title, "state": rule.state, "severity": rule.severity, "status": rule.status,
        "role": rule.role, "where": rule.where, "layer": rule.layer, "replaces": rule.replaces,
        "sources": sorted(rule.sources), "steps": sorted(rule.steps), "condition": rule.condition_text,
        "when": {fact: [{c.operator: c.value} for c in all_of] for fact, all_of in rule.when.items()},
        "takes_back": dict(rule.takes_back), "covers": sorted(rule.covers),
        "then": [action.to_json() for action in rule.then], "max_attempts": rule.max_attempts,
        "backoff": vars(rule.backoff), "reset_after": rule.reset_after, "escalate": vars(rule.escalate),
        "explain": rule.explain, "references": rule.references, "tests": [test.name for test in rule.tests],
    }


@rules.command()
@click.argument("log", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--fact", "given", multiple=True, metavar="NAME=VALUE",
              help="What was true then, such as training.batch_size=8. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print the story as JSON.")
@click.pass_context
def simulate(ctx: click.Context, log: Path, given: tuple[str, ...], as_json: bool) -> int:
    """Replay an old LOG under today's rules: what would have been seen, and what done.

    Example: so8t rules simulate logs/complete_pipeline_1a2b3c.log --fact training.batch_size=8
    """
    from so8t_fsm.rules.simulate import simulate as replay
    from so8t_fsm.rules.simulate import unknown_facts

    facts = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--fact {entry}: write it as NAME=VALUE, such as training.batch_size=8")
        facts[name] = parse_value(value, f"--fact {name}")
    rule_set = _load(ctx)
    with _opened(log) as stream:
        story = list(replay(rule_set, stream, str(log), facts))
    if as_json:
        emit({"incidents": [
            {**found.incident.to_json(), "decision": found.decision.to_json(), "facts": dict(found.facts)}
            for found in story]})
        return 0
    missing: set[str] = set()
    for found in story:
        incident = found.incident
        click.echo(f"{incident.event.file}:{incident.event.line}: {incident.state} ({incident.rule})")
        click.echo(f"    {incident.event.text[:160]}")
        click.echo(f"    {found.decision.rule or 'no rule'}: {found.decision}")
        missing |= set(unknown_facts(rule_set, incident, facts))
    plural = "" if len(story) == 1 else "s"
    click.echo(f"{len(story)} incident{plural}, {sum(1 for s in story if s.decision.escalate)} for a person")
    if missing:
        click.echo(f"rules ask for facts that were not given: --fact {'=… --fact '.join(sorted(missing))}=…")
    return 0
