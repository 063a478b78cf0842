"""From directories of YAML to a :class:`RuleSet`: layers, order, overriding by id, provenance.

The files of all layers stand in the order of their names; of two with one name the earlier layer's comes first.  A
rule with the ``id`` of an earlier layer's takes that rule's place and replaces it whole; the last ``limits`` wins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from so8t_fsm.config_problems import suggestion
from so8t_fsm.located import ConfigError, KeyPath, Located, load_yaml_located
from so8t_fsm.rules.examples import read_tests
from so8t_fsm.rules.gates import gate
from so8t_fsm.rules.model import Backoff, Escalate, Limits, Rule, RuleSet
from so8t_fsm.rules.schema import FILE_KEYS, LimitsModel, Reader, RuleModel
from so8t_fsm.states import WORKING

PACKAGE = Path(__file__).resolve().parents[1]
VERSION = 1
OWN_STEPS = {state: state for state in WORKING}
"""Each shipped step is called what the state is called that it works in."""
PACKAGED, HOME = "packaged", "home"


class RulesError(ConfigError):
    """Rule files that cannot be used; every problem is in ``all``, one line each."""


def packaged_directory() -> Path:
    """The rules that are shipped: inside an installed wheel, or in the checkout."""
    inside = PACKAGE / "defaults" / "recovery_rules"
    return inside if inside.is_dir() else PACKAGE.parent / "recovery_rules"


def layers_of(home: Path | None) -> list[tuple[str, Path]]:
    """The directories to read, earliest first: the shipped ones, then those of the home."""
    layers = [(PACKAGED, packaged_directory())]
    own = home / "recovery_rules" if home is not None else None
    if own is not None and own.is_dir() and own.resolve() != layers[0][1].resolve():
        layers.append((HOME, own))
    return layers


def load_rules(directories: Iterable[tuple[str, Path]] | Iterable[Path], *,
               steps: Mapping[str, str] = OWN_STEPS) -> RuleSet:
    """Read every ``*.yaml`` below the directories (a file may stand for a directory).

    Args:
        directories: layers, earliest first, as ``(name, path)`` or paths.
        steps: the names that ``on: {steps: …}`` may hold, each with the state that the step works in.  A rule about a
            state holds for every step that works in it.

    Raises:
        RulesError: a file, a key, a value, an expression or a pattern is wrong; all problems of all files at once.
    """
    layers = [entry if isinstance(entry, tuple) else (HOME if i else PACKAGED, entry)
              for i, entry in enumerate(directories)]
    files = [(path.name, i, layer, path) for i, (layer, where) in enumerate(layers) for path in _files(where)]
    rules: dict[str, Rule] = {}
    ranks: dict[str, int] = {}
    limits: tuple[int, Limits] = (-1, Limits())
    problems: list[str] = []
    digest = hashlib.sha256(repr(sorted(steps.items())).encode())
    read: list[tuple[str, str]] = []
    for _name, rank, layer, path in sorted(files, key=lambda entry: entry[:2]):
        try:
            located = load_yaml_located(path)
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        except ConfigError as error:
            problems += error.all
            continue
        read.append((layer, path.as_posix()))
        found, own_limits, wrong = _read_file(located, layer, steps)
        problems += wrong
        for rule in found:
            other = rules.get(rule.id)
            if other is not None and ranks[rule.id] == rank:
                problems.append(f"{rule.where}: the id '{rule.id}' is already used at {other.where}; choose another")
                continue
            if other is not None and ranks[rule.id] > rank:
                rules[rule.id] = replace(other, replaces=rule.where)
                continue
            rules[rule.id] = replace(rule, replaces=other.where if other else None)
            ranks[rule.id] = rank
        if own_limits is not None and rank >= limits[0]:
            limits = (rank, own_limits)
    problems += _unknown_expectations(rules)
    if problems:
        raise RulesError(*problems)
    return RuleSet(tuple(rules.values()), limits[1], digest.hexdigest(), tuple(read))


def _files(where: Path) -> Sequence[Path]:
    if where.is_dir():
        return sorted(p for p in where.iterdir() if p.suffix in (".yaml", ".yml") and not p.name.startswith("."))
    if not where.exists():
        raise RulesError(f"{where.as_posix()}: there is no such file or directory; name one with rules")
    return [where]


def _unknown_expectations(rules: dict[str, Rule]) -> list[str]:
    return [f"{test.where}: the test '{test.name}' expects the rule '{test.expect}', which there is not"
            f"{suggestion(test.expect, rules)}"
            for rule in rules.values() for test in rule.tests if test.expect is not None and test.expect not in rules]


def _read_file(located: Located, layer: str, steps: Mapping[str, str]) -> tuple[list[Rule], Limits | None, list[str]]:
    reader = Reader(located)
    top = reader.keys(located.value, (), FILE_KEYS, "a rule file")
    if "version" not in top:
        reader.say((), "version is missing; write 'version: 1' at the top")
    elif top["version"] != VERSION or isinstance(top["version"], bool):
        reader.say(("version",), f"version {top['version']!r} is not known; this program reads version {VERSION}")
    rules: list[Rule] = []
    listed = top.get("rules", [])
    if not isinstance(listed, list):
        reader.say(("rules",), "rules must be a list; begin each rule with '- id: …'")
        listed = []
    for i, value in enumerate(listed):
        rule = _read_rule(reader, value, ("rules", i), layer, steps)
        if rule is not None:
            rules.append(rule)
    limits = None
    if "limits" in top and (checked := reader.model(LimitsModel, top["limits"], ("limits",))) is not None:
        limits = Limits(checked.same_root_without_progress, checked.per_hour, checked.per_run,
                        {str(state): n for state, n in checked.roots.items()})
    return rules, limits, reader.problems


def _read_rule(reader: Reader, value: Any, path: KeyPath, layer: str, steps: Mapping[str, str]) -> Rule | None:
    before = len(reader.problems)
    plain: RuleModel | None = reader.model(RuleModel, value, path)
    if not isinstance(value, dict):
        return None
    selections, condition, text = reader.match(value["match"], (*path, "match")) if "match" in value else ({}, None, "")
    when = reader.when(value.get("when"), (*path, "when"))
    then = reader.actions(value.get("then"), (*path, "then"))
    tests = read_tests(reader, value.get("tests"), (*path, "tests"), str(value.get("id", "")), tuple(steps))
    if plain is not None:
        for i, name in enumerate(plain.on.steps):
            if name not in steps:
                reader.say((*path, "on", "steps", i), f"unknown step '{name}'{suggestion(name, steps)}")
        _agree(reader, plain, then, path)
    if len(reader.problems) > before or plain is None or condition is None:
        return None
    rule = Rule(
        plain.id, " ".join(plain.title.split()), plain.state, plain.severity, plain.status, frozenset(plain.on.source),
        _working_in(plain.on.steps, steps), selections, condition, text, plain.role, when, then, plain.max_attempts,
        Backoff(**plain.backoff.model_dump()), plain.reset_after, Escalate(plain.escalate.to, plain.escalate.notify),
        " ".join(plain.explain.split()), plain.references, tests, reader.located.at(path), layer,
        takes_back={str(state): lines for state, lines in plain.takes_back.items()}, covers=frozenset(plain.covers))
    return replace(rule, gate=gate(rule))


def _working_in(named: Iterable[str], steps: Mapping[str, str]) -> frozenset[str]:
    """The steps that are named, and those that work in a state that is named: a third party's training is training."""
    return frozenset(named) | {step for step, state in steps.items() if state in named}


def _agree(reader: Reader, plain: RuleModel, then: tuple[Any, ...], path: KeyPath) -> None:
    """What is right by itself but not together."""
    names = [action.name for action in then]
    if plain.state == "none" and names:
        reader.say((*path, "then"), "a rule with 'state: none' says that nothing happened; leave it out", key=True)
    for key in ("takes_back", "covers"):
        if plain.state != "none" and getattr(plain, key):
            reader.say((*path, key), "only a rule with 'state: none' says that other lines count no more; leave it out",
                       key=True)
    if "pause" in names and names[-1] != "pause":
        reader.say((*path, "then", names.index("pause")), "nothing happens after 'pause'; put it last")
