"""The picture of the machine, drawn from the table: Mermaid text and a self-contained SVG.  Pure.

Edges are collapsed before they are drawn: the eleven failure states are one group, and an edge that leaves every
working state leaves the group.  Each trigger has one letter; a trigger without a meaning here, or an edge without a
place on the page, is an error, so that the picture can't fall behind the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from html import escape

from so8t_fsm.states import FAILURES, GUARDS, PERSON, STATES, WAITING, WORKING, edges

FAIL = "fail_…"
MEANINGS: Mapping[str, str] = {
    "start": "A run begins.",
    "begin": "An attempt of the state's step starts, in a child process of its own.",
    "advance": "The step's result is committed: on to the next state.",
    "next_step": "The same, where the following step works in the same state.",
    "interrupt": "A signal, a person or a reboot stopped it; so8t resume goes on.",
    "wait": "The step can't start yet.",
    "resources_ready": "What was missing is there.",
    FAIL: "The attempt failed; the name says how. The run remembers its step.",
    "back_off": "The step will be tried again: wait first, each time longer.",
    "retry": "The wait is over.",
    "give_up": "No try is left: a person is asked, and notified if they set that up.",
    "pause": "so8t pause: the step saves a checkpoint, and the run stays where it is.",
    "resume": "so8t resume after a pause; so8t resume --retry once the cause is mended.",
    "roll_back": "A committed result does not verify: back to the step that made it.",
}
FORCED = ("By hand: so8t force-transition goes to any state, names what it overrides, and keeps the reason; "
          "completed is never left.")

JAPANESE: Mapping[str, str] = {
    "idle": "開始前", "collecting": "収集", "preprocessing": "前処理", "training": "学習", "integrating": "統合",
    "evaluating": "評価", "uploading": "公開", "cleaning_up": "後片付け", "completed": "完了",
    "waiting_for_resources": "リソース待ち", "backing_off": "再試行待ち",
    "paused": "一時停止", "needs_attention": "人の対応待ち",
}


@dataclass(frozen=True)
class Entry:
    """One letter of the picture: the triggers it stands for, what they mean, and the guards of their edges."""

    letter: str
    name: str
    triggers: tuple[str, ...]
    meaning: str
    guards: tuple[str, ...]


@cache
def legend() -> tuple[Entry, ...]:
    """Every trigger of the table under its letter.

    Raises:
        KeyError: a trigger has no meaning here.
    """
    triggers: dict[str, dict[str, None]] = {name: {} for name in MEANINGS}
    guards: dict[str, dict[str, None]] = {name: {} for name in MEANINGS}
    for edge in edges():
        name = _name(edge.trigger)
        triggers[name][edge.trigger] = None
        guards[name].update({
            "the run's step belongs to that state" if guard.startswith("at_") else GUARDS[guard]: None
            for guard in edge.guards
        })
    return tuple(
        Entry(letter, name, tuple(triggers[name]), MEANINGS[name], tuple(guards[name]))
        for letter, name in zip("abcdefghijklmnopqrstuvwxyz", MEANINGS, strict=False)
    )


def legend_table() -> str:
    """The legend as rows of a Markdown table, for the documentation."""
    return "\n".join(f"| **{entry.letter}** | `{entry.name}` | {entry.meaning} | {'; '.join(entry.guards)} |"
                     for entry in legend())


def _name(trigger: str) -> str:
    return FAIL if trigger.startswith("fail_") else trigger


@cache
def collapsed() -> Mapping[tuple[str, str], str]:
    """The edges between groups, each with its letters: ``{("working", "failures"): "h", …}``.

    ``working`` to ``working`` is every state to itself, ``working`` to ``earlier`` is back along the row; the edges
    along the row stay between states.
    """
    letters = {trigger: entry.letter for entry in legend() for trigger in entry.triggers}
    backwards = {e.trigger for e in edges() if e.source in WORKING and e.dest in WORKING[: WORKING.index(e.source)]}
    found: dict[tuple[str, str], set[str]] = {}
    for edge in edges():
        source, dest = _group(edge.source), _group(edge.dest)
        if edge.source in WORKING and edge.dest in WORKING:
            if edge.trigger in backwards:
                dest = "earlier"
            elif edge.source != edge.dest:
                source, dest = edge.source, edge.dest
        elif dest == "completed":
            source = edge.source
        elif source == "idle":
            dest = edge.dest
        found.setdefault((source, dest), set()).add(letters[edge.trigger])
    return {pair: "".join(sorted(found[pair])) for pair in found}


def _group(state: str) -> str:
    return "working" if state in WORKING else "failures" if state in FAILURES else state


def _check(current: str | None) -> None:
    if current is not None and current not in STATES:
        raise ValueError(f"no state is called {current!r}")


# Mermaid ------------------------------------------------------------------------------------------------------------


def mermaid(current: str | None) -> str:
    """A Mermaid flowchart; the legend is in its comments.

    Args:
        current: the state to light up, or None.

    Raises:
        ValueError: there is no such state.
    """
    _check(current)
    lines = ["flowchart LR", '  idle(["idle"])', *_subgraph("working", WORKING), '  completed(["completed"])']
    lines += _subgraph("failures", FAILURES)
    lines += [f'  {state}["{state}"]' for state in (*WAITING, *PERSON)]
    lines += [f'  {source} -- "{_named(letters)}" --> {dest}' for (source, dest), letters in collapsed().items()
              if dest not in (source, "earlier")]
    lines += [
        "  classDef failure fill:#fee2e2,stroke:#dc2626,color:#7f1d1d", f"  class {','.join(FAILURES)} failure",
        "  classDef waiting fill:#fef3c7,stroke:#d97706,color:#78350f", f"  class {','.join(WAITING)} waiting",
        "  classDef person fill:#ede9fe,stroke:#7c3aed,color:#4c1d95", f"  class {','.join(PERSON)} person",
    ]
    if current is not None:
        lines += ["  classDef current fill:#0ea5e9,stroke:#0369a1,stroke-width:4px,color:#ffffff",
                  f"  class {current} current"]
    lines += [f"  %% {source}, {'to an earlier one' if dest == 'earlier' else 'to itself'}: {_named(letters)}"
              for (source, dest), letters in collapsed().items() if dest in (source, "earlier")]
    lines += [f"  %% {entry.letter}  {', '.join(entry.triggers)}: {entry.meaning}"
              + (f" Only if {'; '.join(entry.guards)}." if entry.guards else "") for entry in legend()]
    return "\n".join(lines)


def _subgraph(name: str, members: tuple[str, ...]) -> list[str]:
    own = {dest: _named(letters) for (source, dest), letters in collapsed().items() if source == name}
    title = name + (f" — each to itself: {own[name]}" if name in own else "") \
        + (f" — to an earlier one: {own['earlier']}" if "earlier" in own else "")
    return [f'  subgraph {name}["{title}"]', "    direction LR", *(f'    {m}["{m}"]' for m in members), "  end"]


def _named(letters: str) -> str:
    names = {entry.letter: entry.name for entry in legend()}
    return ", ".join(f"{letter} {names[letter]}" for letter in letters)


# SVG ----------------------------------------------------------------------------------------------------------------

WIDTH = 1254
CELL, GAP, ROW = 112, 26, 150
LEGEND_TOP, LEGEND_ROW = 756, 60

Box = tuple[int, int, int, int]


def _boxes() -> dict[str, Box]:
    """Where each state is: x, y, width, height."""
    found = {state: (150 + i * (CELL + GAP), ROW, CELL, 58) for i, state in enumerate(WORKING)}
    found |= {state: (460 + (i % 2) * 166, 372 + (i // 2) * 33, 156, 26) for i, state in enumerate(FAILURES)}
    return found | {
        "idle": (18, ROW + 8, 82, 42), "completed": (1140, ROW + 8, 96, 42),
        "waiting_for_resources": (172, 346, 178, 56), "backing_off": (172, 482, 178, 56),
        "needs_attention": (868, 426, 150, 56), "paused": (90, 656, 1020, 50),
    }


def _routes() -> dict[tuple[str, str], tuple[str, str, tuple[int, int], str]]:
    """How each collapsed edge runs: its kind, its path, where its letters are, and their direction."""
    row = (*WORKING, "completed")
    middle = ROW + 29
    steps = {
        (here, following): ("go", f"M{150 + i * (CELL + GAP) + CELL + 2} {middle}h{GAP - 6}" if following != "completed"
                            else f"M1090 {middle}h46", (150 + i * (CELL + GAP) + CELL + GAP // 2, middle - 18)
                            if following != "completed" else (1122, middle - 18), "h")
        for i, (here, following) in enumerate(zip(row, row[1:], strict=False))
    }
    return steps | {
        ("idle", "collecting"): ("go", f"M102 {middle}H146", (117, middle - 18), "h"),
        ("working", "working"): ("go", "M1066 102c-8 -44 -104 -44 -112 -5", (1010, 70), "h"),
        ("working", "earlier"): ("back", "M880 102c-16 -44 -224 -44 -240 -5", (760, 69), "h"),
        ("working", "waiting_for_resources"): ("wait", "M222 246V340", (222, 288), "v"),
        ("waiting_for_resources", "working"): ("wait", "M300 346V252", (300, 288), "v"),
        ("waiting_for_resources", "waiting_for_resources"): ("wait", "M172 354c-40 0 -40 24 -6 24", (137, 366), "h"),
        ("waiting_for_resources", "paused"): ("person", "M172 392H120a12 12 0 0 0 -12 12V650", (108, 560), "v"),
        ("backing_off", "working"): ("wait", "M350 500H384a12 12 0 0 0 12 -12V252", (396, 288), "v"),
        ("backing_off", "backing_off"): ("wait", "M172 498c-40 0 -40 24 -6 24", (137, 510), "h"),
        ("backing_off", "paused"): ("person", "M261 538V650", (261, 592), "v"),
        ("working", "failures"): ("fail", "M566 246V326", (566, 284), "v"),
        ("failures", "working"): ("back", "M678 332V252", (678, 288), "v"),
        ("failures", "backing_off"): ("wait", "M440 522H356", (400, 522), "h"),
        ("failures", "needs_attention"): ("fail", "M802 454H862", (830, 454), "h"),
        ("failures", "paused"): ("person", "M621 582V650", (621, 614), "v"),
        ("needs_attention", "working"): ("person", "M943 426V252", (943, 330), "v"),
        ("working", "paused"): ("person", "M1054 246V650", (1054, 440), "v"),
        ("paused", "working"): ("person", "M1086 656V252", (1086, 470), "v"),
    }


KINDS = {"go": ("#0f766e", "#2dd4bf"), "fail": ("#dc2626", "#f87171"), "wait": ("#b45309", "#fbbf24"),
         "person": ("#7c3aed", "#a78bfa"), "back": ("#64748b", "#94a3b8")}
FILLS = {"go": ("#ecfdf5", "#06302c"), "fail": ("#fef2f2", "#3b1114"), "wait": ("#fffbeb", "#33230a"),
         "person": ("#f5f3ff", "#251a45"), "back": ("#f8fafc", "#1b2433")}


def _style() -> str:
    """Plain classes, dark ones behind a media query: readers without CSS variables draw it too."""
    def rules(shade: int, page: str, line: str, ink: str, dim: str, halo: str) -> str:
        kinds = "".join(
            f".e-{kind}{{stroke:{KINDS[kind][shade]}}}.a-{kind}{{fill:{KINDS[kind][shade]}}}"
            f".n-{kind}{{fill:{FILLS[kind][shade]};stroke:{KINDS[kind][shade]}}}" for kind in KINDS)
        return (f".page{{fill:{page};stroke:{line}}}.panel{{fill:none;stroke:{line}}}.t{{fill:{ink}}}.d{{fill:{dim}}}"
                f".badge{{fill:{page}}}.halo{{fill:{halo};stroke:{halo}}}{kinds}")
    light = rules(0, "#ffffff", "#cbd5e1", "#0f172a", "#64748b", "#38bdf8")
    dark = rules(1, "#0d1420", "#3b475a", "#e8eef6", "#93a1b5", "#0ea5e9")
    return ("text{font:13px system-ui,'Segoe UI','Yu Gothic UI','Hiragino Sans','Noto Sans CJK JP',sans-serif}"
            ".m{font:12px ui-monospace,'Cascadia Mono',Consolas,'DejaVu Sans Mono',monospace}"
            ".b{font-weight:600}.s{font-size:11px}.c{text-anchor:middle}.edge{fill:none;stroke-width:1.8}"
            ".e-back{stroke-dasharray:5 4}.panel{stroke-dasharray:2 4}.node,.badge{stroke-width:1.4}"
            f".halo{{opacity:.45;stroke-width:10}}{light}@media (prefers-color-scheme:dark){{{dark}}}")


def _kind(state: str) -> str:
    return ("fail" if state in FAILURES or state == "needs_attention" else "wait" if state in WAITING
            else "person" if state in PERSON else "go")


def _text(x: float, y: float, words: str, classes: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{classes}">{escape(words)}</text>'


def _title(x: int, y: int, words: str, more: str) -> str:
    return (f'<text x="{x}" y="{y}" class="b t">{escape(words)}<tspan dx="9" class="s d" style="font-weight:400">'
            f'{escape(more)}</tspan></text>')


def _badge(x: float, y: float, letter: str, kind: str) -> str:
    return (f'<circle cx="{x:g}" cy="{y:g}" r="9.5" class="badge e-{kind}" style="stroke-dasharray:none"/>'
            + _text(x, y + 4.2, letter, "m b c t"))


def _nodes(current: str | None) -> Iterator[str]:
    for state, (x, y, w, h) in _boxes().items():
        kind, small = _kind(state), state in FAILURES
        radius = h / 2 if state in ("idle", "completed") else 7 if small else 10
        if state == current:
            yield f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{radius:g}" class="halo"/>'
        yield (f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{radius:g}" class="node n-{kind}"'
               f'{" style=" + chr(34) + "stroke-width:3.2" + chr(34) if state == current else ""}/>')
        middle = x + w / 2
        if state in JAPANESE:
            yield _text(middle, y + h / 2 - 2, state, "c b t")
            yield _text(middle, y + h / 2 + 14, JAPANESE[state], "c s d")
        else:
            yield _text(middle, y + h / 2 + 4, state, "c m t" if small else "c b t")


def _edges() -> Iterator[str]:
    routes = _routes()
    for pair, letters in collapsed().items():
        kind, path, (x, y), direction = routes[pair]
        yield f'<path d="{path}" class="edge e-{kind}" marker-end="url(#{kind})"/>'
        for i, letter in enumerate(letters):
            away = (i - (len(letters) - 1) / 2) * 21
            yield _badge(x + (away if direction == "h" else 0), y + (away if direction == "v" else 0), letter, kind)


def _legend() -> Iterator[str]:
    entries = legend()
    half = (len(entries) + 1) // 2
    pairs = sorted(collapsed(), key=lambda pair: pair[0] == "working")  # what leaves the row gives a letter its colour
    kinds = {letter: _routes()[pair][0] for pair in pairs for letter in collapsed()[pair]}
    for i, entry in enumerate(entries):
        x, y = 30 + (i // half) * 606, LEGEND_TOP + (i % half) * LEGEND_ROW
        yield _badge(x + 6, y, entry.letter, kinds[entry.letter])
        yield _text(x + 26, y + 4.5, entry.name, "m b t")
        if entry.name == FAIL:
            yield _text(x + 84, y + 4.5, "one for each of the failure states", "s d")
        yield _text(x + 26, y + 21, entry.meaning, "t")
        if entry.guards:
            yield _text(x + 26, y + 37, "only if " + "; ".join(entry.guards), "s d")


def svg(current: str | None) -> str:
    """The picture as one SVG file without outside resources, readable on light and dark pages.

    Args:
        current: the state to light up, or None.

    Raises:
        ValueError: there is no such state.
        KeyError: the table has an edge that has no place on the page.
    """
    _check(current)
    rows = (len(legend()) + 1) // 2
    foot = LEGEND_TOP + rows * LEGEND_ROW
    height = foot + 36
    markers = "".join(
        f'<marker id="{kind}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7.5" markerHeight="7.5" '
        f'orient="auto-start-reverse"><path d="M0 0.8L10 5L0 9.2z" class="a-{kind}"/></marker>' for kind in KINDS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title">',
        "<title id=\"title\">The states of an SO8T run and the transitions between them</title>",
        f"<style>{_style()}</style><defs>{markers}</defs>",
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="14" class="page"/>',
        '<text x="30" y="44" class="t b" style="font-size:20px">The states of a run</text>',
        _text(30, 66, f"{len(STATES)} states, {len(edges())} edges · 実行の状態と遷移", "d"),
        '<rect x="130" y="104" width="980" height="140" rx="16" class="panel"/>',
        _title(150, 130, "working", "an edge of this frame holds for each state in it · 作業中"),
        _text(1010, 97, "each to itself", "c s d"), _text(760, 97, "to an earlier one", "c s d"),
        '<rect x="442" y="334" width="358" height="246" rx="16" class="panel"/>',
        _title(460, 358, "failed", "and remembers the step · 失敗"),
        *_edges(), *_nodes(current), *_legend(),
        _text(30, foot + 6, FORCED, "s d"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
