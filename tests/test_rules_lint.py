"""Rule files that are wrong: one clear line for each problem, with its place and what to do."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from so8t_fsm.rules import RulesError, load_rules
from so8t_fsm.rules.patterns import LONGEST_LINE, PatternRefused, compile_pattern

GOOD = """version: 1
rules:
  - id: my-rule
    title: A rule of my own
    state: disk_full
    match:
      full: {message|contains: no more paper}
    then:
      - cleanup_temp_files: {keep_checkpoints: 2}
"""


def rule(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


# What is wrong, where it is (line:column), and words that must be in the message.
WRONG = {
    "not YAML": ("version: 1\nrules: [\n", "3:1", "never closed"),
    "no version": (rule("version: 1\n", ""), "1:1", "version is missing"),
    "a version of the future": (rule("version: 1", "version: 9"), "1:10", "reads version 1"),
    "unknown key of the file": (rule("rules:", "rule:"), "2:1", "did you mean 'rules'?"),
    "unknown key of a rule": (rule("title:", "titel:"), "4:5", "did you mean 'title'?"),
    "no title": (rule("    title: A rule of my own\n", ""), "3:5", "title is missing"),
    "an id with spaces": (rule("my-rule", "my rule"), "3:9", "joined by hyphens"),
    "unknown state": (rule("disk_full", "disk_ful"), "5:12", "disk_full"),
    "unknown severity": (rule("    state:", "    severity: bad\n    state:"), "5:15", "critical"),
    "unknown role": (rule("    state:", "    role: boss\n    state:"), "5:11", "cascade"),
    "unknown source": (rule("    state:", "    on: {source: [logs]}\n    state:"), "5:19", "exception"),
    "unknown step": (rule("    state:", "    on: {steps: [trainig]}\n    state:"), "5:18", "did you mean 'training'?"),
    "unknown selector": (rule("message|contains", "mesage|contains"), "7:14", "did you mean 'message|contains'?"),
    "unknown modifier": (rule("message|contains", "message|has"), "7:14", "message|"),
    "a selector in place of a name": (rule("      full: {message|contains: no more paper}", "      message|re: x"),
                                      "7:7", "a selection's name should"),
    "an empty selection": (rule("{message|contains: no more paper}", "{}"), "7:13", "is empty"),
    "a number where text belongs": (rule("no more paper", "12"), "7:32", "must be text"),
    "a broken pattern": (rule("message|contains: no more paper", "message|re: '(x'"), "7:26", "no regular expression"),
    "a pattern that takes for ever": (rule("message|contains: no more paper", "message|re: '(a+)+$'"),
                                      "7:26", "for ever"),
    "a word boundary in double quotes": (rule("message|contains: no more paper", 'message|re: "paper\\b"'),
                                         "7:26", "is a backspace"),
    "a type with its module": (rule("message|contains: no more paper", "exception: requests.Timeout"), "7:25",
                               "without its module"),
    "a family of types that is nearly all": (rule("message|contains: no more paper", "exception: 'E*'"), "7:25",
                                             "says too little"),
    "an exit code in words": (rule("message|contains: no more paper", "exit_code: one"), "7:25", "whole number"),
    "unknown signal": (rule("message|contains: no more paper", "signal: SIGKIL"), "7:22", "did you mean 'SIGKILL'?"),
    "a silence without a length": (rule("message|contains: no more paper", "silence: long"), "7:23", "duration"),
    "two selections and no condition": (rule("no more paper}", "x}\n      b: {errno: 28}"),
                                        "6:5", "condition is missing"),
    "a condition about nothing": (rule("no more paper}", "x}\n      condition: ful"), "8:18", "did you mean 'full'?"),
    "a condition that stops": (rule("no more paper}", "x}\n      condition: full and"),
                               "8:18", "name is missing at the end"),
    "a parenthesis left open": (rule("no more paper}", "x}\n      condition: (full"), "8:18", "never closed"),
    "a selection nobody uses": (rule("no more paper}", "x}\n      b: {errno: 28}\n      condition: full"), "8:7",
                                "in no condition"),
    "unknown action": (rule("cleanup_temp_files", "cleanup_tmp_files"), "9:9", "did you mean 'cleanup_temp_files'?"),
    "unknown argument": (rule("keep_checkpoints", "keep_checkpoint"), "9:30", "did you mean 'keep_checkpoints'?"),
    "an argument out of range": (rule("keep_checkpoints: 2", "keep_checkpoints: 0"),
                                 "9:48", "greater than or equal to 1"),
    "an action twice": (rule("    then:\n", "    then:\n      - cleanup_temp_files\n"), "10:9", "there twice"),
    "something after a pause": (rule("    then:\n", "    then:\n      - pause\n"), "9:9", "put it last"),
    "then that is no list": (rule("    then:\n      - cleanup", "    then:\n      cleanup"), "9:7", "must be a list"),
    "a comparison of no kind": (rule("    match:", "    when: {training.batch_size: {above: 1}}\n    match:"), "6:34",
                                "unknown key 'above'"),
    "a comparison with text": (rule("    match:", "    when: {training.batch_size: {gt: many}}\n    match:"), "6:38",
                               "must be a number"),
    "a backoff that shrinks": (rule("    match:", "    backoff: {initial: 10m, max: 5s}\n    match:"), "6:5",
                               "shorter than initial"),
    "an unknown end": (rule("    match:", "    escalate: {to: completed}\n    match:"), "6:20", "needs_attention"),
    "attempts below nothing": (rule("    match:", "    max_attempts: -1\n    match:"),
                               "6:19", "greater than or equal to 0"),
    "a harmless rule that acts": (rule("disk_full", "none"), "8:5", "nothing happened"),
    "an alarm that takes back": (rule("    match:", "    takes_back: {network_failed: 2}\n    match:"), "6:5", "leave it out"),
    "an alarm that covers": (rule("    match:", "    covers: [crashed]\n    match:"), "6:5", "leave it out"),
    "covering what is no failure": (rule("disk_full", "none").replace("    match:", "    covers: [none]\n    match:"), "6:14",
                                    "'crashed'"),
    "taking back for ever": (rule("    match:", "    takes_back: {network_failed: 99}\n    match:"), "6:34",
                             "less than or equal"),
    "a test without an event": (GOOD + "    tests: [{name: x, given: {}, expect: none}]\n", "10:30", "no event"),
    "a test of an unknown rule": (GOOD + "    tests: [{name: x, given: {log: x}, expect: {rule: my-rul}}]\n", "10:13",
                                  "did you mean 'my-rule'?"),
    "a test that expects a number": (GOOD + "    tests: [{name: x, given: {log: x}, expect: 3}]\n",
                                     "10:48", "'none' or"),
    "an id twice": (GOOD + GOOD.split("rules:\n")[1], "10:5", "already used at"),
    "limits of nothing": (GOOD + "limits: {per_hour: 0}\n", "10:20", "greater than or equal to 1"),
    "limits of an unknown state": (GOOD + "limits: {roots: {network: 3}}\n", "10:27", "'stalled'"),
}


def problems(directory: Path, text: str) -> list[str]:
    path = directory / "50-mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RulesError) as caught:
        load_rules([directory])
    return [line.replace(directory.as_posix() + "/", "") for line in caught.value.all]


def test_the_good_one_is_good(tmp_path: Path) -> None:
    (tmp_path / "50-mine.yaml").write_text(GOOD, encoding="utf-8")
    assert [r.id for r in load_rules([tmp_path]).rules] == ["my-rule"]


@pytest.mark.parametrize("name", WRONG)
def test_one_clear_line(name: str, tmp_path: Path) -> None:
    text, where, words = WRONG[name]
    lines = problems(tmp_path, text)
    hit = [line for line in lines if words in line]
    assert len(lines) <= 2 and len(hit) == 1, lines
    assert hit[0].startswith(f"50-mine.yaml:{where}: "), hit
    assert "\n" not in hit[0] and len(hit[0]) < 400


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("disk_full", "disc_full").replace("cleanup_temp_files", "clean")
    text = text.replace("message|contains", "text")
    (tmp_path / "60-more.yaml").write_text("version: 1\nrulez: []\n", encoding="utf-8")
    lines = problems(tmp_path, text)
    assert len(lines) == 4 and all(re.match(r"\S+\.yaml:\d+:\d+: .", line) for line in lines), lines


EVIL = [r"(a+)+$", r"(a|a)*b", r"(a|ab)*c", r"(.*a){20}", r"(\w+\s?)*$", r"(x+x+)+y", r".*.*.*.*=.*", r"^(\d+)*$",
        r"(?:a?){30}a{30}", r"(a*)*", r"((a{1,5}){1,50})*b", r"(\w+)\1", r"a{5000}", r"(foo|foobar)+!", r"([a-z]+)*x",
        r"(.|\s)*x", r"a.*b.*c", r"(foo|bar.*) .*x", r"\s*\s*\s*x", "x" * 2000, ""]


@pytest.mark.parametrize("pattern", EVIL, ids=lambda p: p[:20])
def test_evil_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(PatternRefused) as caught:
        compile_pattern(pattern)
    assert "\n" not in str(caught.value)


ALLOWED = [r"\w+Error: .*x", r"^a.*b.*c", r"a.{0,80}b.{0,80}c", r"(?:foo|bar)+x", r"\d+ vs \d+",
           r"\[[^\]]*\] \[[^\]]*\] x"]


@pytest.mark.parametrize("pattern", ALLOWED)
def test_what_is_allowed_is_quick_on_the_worst_line(pattern: str) -> None:
    compiled = compile_pattern(pattern)
    worst = 0.0
    for unit in ("a", "ab", "foobar", "xError: ", "1 vs ", "[x] ", " "):
        line = (unit * LONGEST_LINE)[:LONGEST_LINE]
        began = time.process_time()
        compiled.search(line)
        worst = max(worst, time.process_time() - began)
    assert worst < 2.0
