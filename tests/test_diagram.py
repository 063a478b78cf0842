"""The picture of the machine says what the table says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from so8t_fsm import diagram
from so8t_fsm.states import FAILURES, GUARDS, STATES, TRIGGERS, WORKING, Edge, edges

ROOT = Path(__file__).resolve().parents[1]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget what was drawn before and after."""
    for cached in (diagram.legend, diagram.collapsed):
        cached.cache_clear()
    yield
    for cached in (diagram.legend, diagram.collapsed):
        cached.cache_clear()


def texts(current: str | None = None) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(diagram.svg(current)).iter(f"{SVG}text")]


def test_every_trigger_has_one_letter_and_every_guard_is_explained() -> None:
    triggers = [trigger for entry in diagram.legend() for trigger in entry.triggers]
    assert sorted(triggers) == sorted(TRIGGERS)
    assert len({entry.letter for entry in diagram.legend()}) == len(diagram.legend())
    for entry in diagram.legend():
        guards = {guard for edge in edges() if edge.trigger in entry.triggers for guard in edge.guards}
        said = {GUARDS[guard] for guard in guards if not guard.startswith("at_")}
        assert said <= set(entry.guards)
        at_its_step = any(guard.startswith("at_") for guard in guards)
        assert at_its_step == ("the run's step belongs to that state" in entry.guards)


def test_the_svg_names_every_state_every_trigger_and_every_guard() -> None:
    drawn = texts()
    for state in STATES:
        assert state in drawn
    for entry in diagram.legend():
        assert entry.name in drawn and entry.meaning in drawn
        assert not entry.guards or "only if " + "; ".join(entry.guards) in drawn


def test_collapsing_loses_no_edge() -> None:
    letters = {trigger: entry.letter for entry in diagram.legend() for trigger in entry.triggers}

    def shown(edge: Edge) -> bool:
        inside = edge.source in WORKING and edge.dest in WORKING
        source, dest = (
            "working" if s in WORKING else "failures" if s in FAILURES else s for s in (edge.source, edge.dest))
        pairs = [(edge.source, edge.dest), (source, dest), (edge.source, dest)]
        if inside and WORKING.index(edge.dest) <= WORKING.index(edge.source):
            pairs.append(("working", "earlier"))
        return any(letters[edge.trigger] in diagram.collapsed().get(pair, "") for pair in pairs)

    assert [edge for edge in edges() if not shown(edge)] == []


def test_the_svg_draws_each_collapsed_edge_with_its_letters() -> None:
    tree = ElementTree.fromstring(diagram.svg(None))
    paths = [node for node in tree.iter(f"{SVG}path") if "edge" in (node.get("class") or "").split()]
    assert len(paths) == len(diagram.collapsed())
    assert all(path.get("marker-end") for path in paths)
    on_edges = sum(len(letters) for letters in diagram.collapsed().values())
    assert len(list(tree.iter(f"{SVG}circle"))) == on_edges + len(diagram.legend())


def test_mermaid_has_every_state_edge_and_trigger() -> None:
    text = diagram.mermaid(None)
    for state in STATES:
        assert re.search(rf'^ +{state}(\["|\(\["){state}"', text, re.M), state
    for trigger in TRIGGERS:
        assert re.search(rf"%% .*\b{trigger}\b", text), trigger
    for (source, dest), letters in diagram.collapsed().items():
        if dest not in (source, "earlier"):
            assert re.search(rf'^  {source} -- "{letters[0]} .*" --> {dest}$', text, re.M), (source, dest)


@pytest.mark.parametrize("state", STATES)
def test_exactly_the_current_state_is_lit(state: str) -> None:
    rectangles = ElementTree.fromstring(diagram.svg(state)).iter(f"{SVG}rect")
    lit = [tuple(int(node.get(k, "0")) for k in ("x", "y", "width", "height"))
           for node in rectangles if node.get("class") == "halo"]
    assert lit == [diagram._boxes()[state]]
    assert re.findall(r"^  class (\S+) current$", diagram.mermaid(state), re.M) == [state]


def test_without_a_current_state_nothing_is_lit() -> None:
    assert 'class="halo"' not in diagram.svg(None)
    assert "current" not in diagram.mermaid(None)


@pytest.mark.parametrize("draw", [diagram.svg, diagram.mermaid])
def test_an_unknown_state_is_refused(draw: object) -> None:
    with pytest.raises(ValueError, match="no state is called 'trainning'"):
        draw("trainning")  # type: ignore[operator]


def test_the_svg_needs_nothing_beside_itself() -> None:
    text = diagram.svg("training").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|href|@import|<image|<script|<foreignObject", text)
    assert "prefers-color-scheme:dark" in text
    assert "var(--" not in text  # not every reader of SVG knows them


def test_nothing_on_the_page_overlaps_or_leaves_it() -> None:
    boxes = diagram._boxes()
    assert set(boxes) == set(STATES)
    for (one, (x, y, w, h)), (other, (x2, y2, w2, h2)) in combinations(boxes.items(), 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y, (one, other)
    for pair in diagram.collapsed():
        _, _, (bx, by), _ = diagram._routes()[pair]
        for state, (x, y, w, h) in boxes.items():
            assert not (x - 4 < bx < x + w + 4 and y - 4 < by < y + h + 4), (pair, state)
    for x, y, w, h in boxes.values():
        assert x >= 10 and x + w <= diagram.WIDTH - 10 and y + h < diagram.LEGEND_TOP
    for entry in diagram.legend():  # what fits the column in a wide font
        assert len(entry.meaning) <= 75 and len("; ".join(entry.guards)) <= 95, entry.name


def test_a_new_trigger_without_a_meaning_is_an_error(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagram, "edges", lambda: (*edges(), Edge("teleport", "idle", "completed", ())))
    with pytest.raises(KeyError, match="teleport"):
        diagram.mermaid(None)


def test_a_new_edge_without_a_place_is_an_error(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagram, "edges", lambda: (*edges(), Edge("pause", "idle", "paused", ())))
    with pytest.raises(KeyError, match="idle"):
        diagram.svg(None)


def test_the_picture_in_the_documentation_is_this_one() -> None:
    kept = (ROOT / "docs" / "states.svg").read_text(encoding="utf-8")
    assert kept == diagram.svg(None), "run `make docs`"


def test_the_legend_in_the_documentation_is_this_one() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    _, begin, rest = page.partition("| --- | --- | --- | --- |\n")
    table, end, _ = rest.partition("\n<!-- end of legend -->")
    assert begin and end
    assert table == diagram.legend_table(), f"the table should be\n{diagram.legend_table()}"


def test_the_picture_does_not_depend_on_the_hash_seed() -> None:
    def drawn(seed: str) -> bytes:
        script = ("import sys; from so8t_fsm import diagram; "
                  "sys.stdout.buffer.write((diagram.svg(None) + diagram.mermaid('training')).encode())")
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, check=True, cwd=ROOT).stdout
    assert drawn("1") == drawn("2") == (diagram.svg(None) + diagram.mermaid("training")).encode()
