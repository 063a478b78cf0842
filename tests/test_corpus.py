"""Incident accuracy on real excerpts: every positive in its state, no negative flagged."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from so8t_fsm.events import Event
from so8t_fsm.rules import load_rules
from so8t_fsm.rules.lines import clean
from so8t_fsm.rules.load import packaged_directory
from so8t_fsm.rules.match import Match, heard, matches
from so8t_fsm.rules.model import RuleSet
from so8t_fsm.rules.prefilter import Prefilter, slow_rules
from so8t_fsm.rules.scan import MOVES, scan

HERE = Path(__file__).parent / "data"
CORPORA = {name: [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
           for name in ("log_corpus.jsonl", "log_corpus_own.jsonl", "log_corpus_run.jsonl")}
MISSED = pytest.mark.xfail(strict=True, reason="known to be answered wrongly; take `miss` out of the row when it is not")
ALL = [pytest.param(row, id=f"{name.split('.')[0]}-{i}-{row['state']}", marks=MISSED if row.get("miss") else ())
       for name, rows in CORPORA.items() for i, row in enumerate(rows, 1)]


@pytest.fixture(scope="module")
def rules() -> RuleSet:
    return load_rules([packaged_directory()])


@pytest.fixture(scope="module")
def prefilter(rules: RuleSet) -> Prefilter:
    return Prefilter(rules, MOVES)


@pytest.mark.parametrize("row", ALL)
def test_state(row: dict[str, str], rules: RuleSet, prefilter: Prefilter) -> None:
    """``crashed`` is the state of what fits nowhere: there any incident will do."""
    found = list(scan(rules, io.BytesIO(row["text"].encode()), "log", prefilter))
    states = [incident.state for incident in found]
    if row["state"] == "none":
        assert not found, f"{found[0].rule} saw: {found[0].event.text}"
    elif row["state"] == "crashed":
        assert len(states) == 1
    else:
        assert states == [row["state"]], [incident.rule for incident in found]


def test_excerpts_are_many_and_each_set_its_own() -> None:
    given, own, run = ({row["text"] for row in rows} for rows in CORPORA.values())
    assert len(own) >= 120 and sum(row["state"] == "none" for row in CORPORA["log_corpus_own.jsonl"]) >= 50
    assert len(own & given) <= 6  # one-line classics such as "MemoryError"
    assert len(run) > 800 and not run & (own | given)


def test_no_rule_quotes_an_excerpt(rules: RuleSet) -> None:
    """Rules are written for causes: no pattern holds half of any line of the corpus, if that is more than a phrase."""
    texts = [text for rule in rules.rules if rule.gate for text in rule.gate]
    lines = [line for row in CORPORA["log_corpus.jsonl"] for line in row["text"].splitlines() if len(line) > 60]
    assert not [(text, line) for line in lines for text in texts if text in line and len(text) > len(line) / 2]


def test_gates_and_prefilter_lose_nothing(rules: RuleSet, prefilter: Prefilter) -> None:
    """Looking for texts first gives what trying every rule on every line would give."""
    from dataclasses import replace

    slow = replace(rules, rules=tuple(replace(rule, gate=None) for rule in rules.rules))
    tried = 0
    for row in (row for rows in CORPORA.values() for row in rows):
        for raw in row["text"].splitlines():
            event = Event("log", text=clean(raw).text)
            first: Match | None = next(matches(slow, event), None)
            gated = next(matches(rules, event), None)
            assert (first and first.rule.id) == (gated and gated.rule.id), raw
            seen = heard(rules, event)
            alarm = first if first and not first.rule.harmless else None
            assert (seen.rule.id if seen and not seen.rule.harmless else None) == (alarm and alarm.rule.id), raw
            if alarm is not None:
                tried += 1
                assert prefilter.wanted(raw.encode()), raw
    assert tried > 250
    assert not slow_rules(rules)


@pytest.mark.parametrize("encoding", ["cp932", "utf-16", "utf-8-sig"])
def test_encodings(encoding: str, rules: RuleSet, prefilter: Prefilter) -> None:
    text = "学習を始めます\nOSError: [WinError 112] ディスクに十分な空き領域がありません。\n終わり\n"
    found = list(scan(rules, io.BytesIO(text.encode(encoding)), "log", prefilter))
    assert [(i.state, i.event.line) for i in found] == [("disk_full", 2)]
    assert "空き領域" in found[0].event.text


def test_lines_without_an_end_and_rewritten_lines(rules: RuleSet, prefilter: Prefilter) -> None:
    bar = "\r".join(f" {i}%|####" for i in range(5000))
    body = f"{bar}\rtorch.OutOfMemoryError: CUDA out of memory. Tried to".encode()
    assert [i.rule for i in scan(rules, io.BytesIO(body), "log", prefilter)] == ["cuda-out-of-memory"]


class Endless(io.RawIOBase):
    """A log made while it is read, with one failure at its end."""

    def __init__(self, size: int) -> None:
        self.left, self.position = size, 0
        self.line = b"2026-11-22T03:14:15.926Z [training#1] INFO so8t.train: step 1200/40000 loss 0.4812 reward 0.31\n"
        self.last = b"2026-11-22T03:14:16.926Z [training#1] RuntimeError: CUDA out of memory. Tried to allocate 2 GiB\n"

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.left <= 0:
            return b""
        n = max(1, min(size, self.left) // len(self.line))
        self.left -= n * len(self.line)
        return self.line * n if self.left > 0 else self.line * n + self.last


def test_memory_stays_flat(rules: RuleSet, prefilter: Prefilter) -> None:
    import tracemalloc

    list(scan(rules, Endless(1 << 20), "log", prefilter))  # what is made once
    tracemalloc.start()
    try:
        found = list(scan(rules, Endless(48 << 20), "log", prefilter))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [i.state for i in found] == ["out_of_memory"] and found[0].event.line > 400_000
    assert peak < 32 << 20
