"""What a line says of others counts the same wherever they are heard: in a file, in pieces, in a flood."""

from __future__ import annotations

import functools
import io
import itertools

import pytest
from conftest import Home
from hypothesis import given
from hypothesis import strategies as st
from monitoring import OOM, a_run, look, shipped_rules, tell, write

from so8t_fsm.ears import Ears
from so8t_fsm.events import Event
from so8t_fsm.incidents import Incident, arbitrate
from so8t_fsm.retracted import FURTHEST_BACK
from so8t_fsm.rules.lines import clean
from so8t_fsm.rules.prefilter import Prefilter
from so8t_fsm.rules.scan import KEPT, MOVES, scan
from so8t_fsm.store import Store

IGNORED = (
    "Exception ignored in: <function Reader.__del__ at 0x7f5fff886200>",
    "Traceback (most recent call last):",
    '  File "reader.py", line 409, in __del__',
    "    raise ConnectionResetError(errno.ECONNRESET)",
    "ConnectionResetError: [Errno 104] Connection reset by peer",
)
LOST = "wget: read error: Connection reset by peer"
WORDS = (*IGNORED, "--- Logging error ---", "TypeError: not all arguments converted", "RuntimeError: no such layer", LOST,
         "Retrying in 1 s", "step 12 loss 0.5", OOM, "make: [Makefile:6: check] Error 127 (ignored)", "done")


pytestmark = pytest.mark.usefixtures("rules_read_once")


@functools.cache
def prefilter() -> Prefilter:
    return Prefilter(shipped_rules(), MOVES)


def scanned(lines: list[str] | tuple[str, ...]) -> list[Incident]:
    log = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
    return list(scan(shipped_rules(), log, "a.log", prefilter()))


@given(st.lists(st.sampled_from(WORDS), max_size=40))
def test_a_log_read_line_by_line_gives_what_all_its_lines_give(lines: list[str]) -> None:
    whole = arbitrate(shipped_rules(), [Event("log", text=clean(line).text, file="a.log", line=number)
                                        for number, line in enumerate(lines, 1)])
    found = scanned(lines)
    assert [(one.rule, one.event.line) for one in found] == ([] if whole is None else [(whole.rule, whole.event.line)])


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.lists(st.sampled_from(WORDS), max_size=12))
def test_a_covered_traceback_takes_nothing_else_with_it(before: list[str], after: list[str]) -> None:
    """Lines of one log, with and without the traceback between them: the failures named are the same."""
    def named(lines: list[str]) -> list[tuple[str, str]]:
        return [(one.rule, one.event.text) for one in scanned(lines)]

    filled = [*before, "done", "done", "done"], ["done", "done", "done", *after]
    assert named([*filled[0], *IGNORED, *filled[1]]) == named([*filled[0], *["done"] * len(IGNORED), *filled[1]])


@pytest.mark.parametrize("noise", [IGNORED, (LOST, "Retrying in 1 s")])
def test_a_flood_of_it_crowds_out_no_failure(noise: tuple[str, ...]) -> None:
    (found,) = scanned([OOM, *noise * 2, *["done"] * FURTHEST_BACK, *itertools.islice(itertools.cycle(noise), 4 * KEPT)])
    assert found.state == "out_of_memory"


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("cuts", [(1,), (2, 4), (1, 2, 3, 4)])
def test_the_monitor_reads_a_covered_traceback_in_pieces(
    opened: Store, home: Home, cuts: tuple[int, ...], own: bool,
) -> None:
    """As it is written, and each piece by another process: nothing is told, and what really fails after it is."""
    a_run(opened, ("training", 1, "running"))

    def say(*lines: str) -> None:
        if own:
            tell(home, "training", 1, *lines)
        else:
            write(home, "reader.log", *lines)

    for begin, end in itertools.pairwise((0, *cuts, len(IGNORED))):
        say(*IGNORED[begin:end])
        assert look(opened, home).short() == []
    say("step 12 loss 0.5", IGNORED[-1])
    assert look(opened, home).short() == [("incident", "network_failed", *(("training", 1) if own else (None, None)))]


def test_the_runner_hears_a_covered_traceback_in_pieces(home: Home) -> None:
    (home.path / "logs").mkdir()
    write(home, "reader.log", "begin")
    rules = shipped_rules()
    ears = Ears(home.path / "logs", lambda: rules)
    try:
        ears.attend("training", 1)
        for line in IGNORED:
            write(home, "reader.log", line)
            ears.listen(last=True)
        assert [event.text for event in ears.heard] == [*IGNORED[:2], IGNORED[-1]]
        assert arbitrate(rules, ears.heard) is None
        write(home, "reader.log", IGNORED[-1])
        ears.listen(last=True)
        found = arbitrate(rules, ears.heard)
        assert found is not None and found.state == "network_failed"
    finally:
        ears.close()


def test_another_attempt_has_nothing_to_do_with_it(opened: Store, home: Home) -> None:
    a_run(opened, ("training", 1, "running"), ("training", 2, "running"))
    tell(home, "training", 1, *IGNORED[:2])
    tell(home, "training", 2, *IGNORED[2:])
    assert look(opened, home).short() == [("incident", "network_failed", "training", 2)]
