"""Regular expressions a stranger may write and a night may depend on: checked before they are used.  Pure.

Python's engine backtracks, so a pattern like ``(a+)+$`` needs exponential time on a line that almost matches.  Rather
than a timeout, which would make a match depend on how busy the machine is, patterns that could do so are refused
when the rules are loaded: the standard library's own parser gives the tree, and three shapes are looked for in it.
What passes needs little more than quadratic time, and no line longer than :data:`LONGEST_LINE` is ever matched.

The tree also says which literal text must be in every match; the scan looks for that before it tries any rule.
"""

from __future__ import annotations

import math
import re
import re._constants as op  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Iterable
from typing import Any

LONGEST_PATTERN = 1000
LONGEST_LINE = 4096
"""Characters of a line, or of an exception's text, that are looked at."""
MOST_REPEATED = 1000
MOST_STEPS = 4 * LONGEST_LINE**2
"""Ways to try on the longest line: some tenths of a second, for a line made for the purpose."""

Node = tuple[Any, Any]
Characters = frozenset[int]
"""ASCII codes; 128 stands for all the rest."""

ALL: Characters = frozenset(range(129))
DIGITS = frozenset(map(ord, "0123456789"))
SPACES = frozenset(map(ord, " \t\n\r\f\v"))
WORD = frozenset(c for c in range(128) if chr(c).isalnum() or c == ord("_")) | {128}
CATEGORIES = {
    op.CATEGORY_DIGIT: DIGITS | {128}, op.CATEGORY_SPACE: SPACES | {128}, op.CATEGORY_WORD: WORD,
    op.CATEGORY_NOT_DIGIT: ALL - DIGITS, op.CATEGORY_NOT_SPACE: ALL - SPACES,
    op.CATEGORY_NOT_WORD: ALL - (WORD - {128}),
}
REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)
LOOKS = (op.ASSERT, op.ASSERT_NOT)


class PatternRefused(ValueError):
    """The pattern is wrong or could take for ever; the message is one line."""


def compile_pattern(text: str) -> re.Pattern[str]:
    """Compile with ``^`` and ``$`` at every line's ends.

    Raises:
        PatternRefused: it is no regular expression, or its running time could explode.
    """
    if not text:
        raise PatternRefused("an empty pattern matches everything; write what the line must hold")
    if "\b" in text:
        raise PatternRefused(r"in double quotes \b is a backspace; write \\b, or use single quotes")
    if len(text) > LONGEST_PATTERN:
        raise PatternRefused(f"{len(text)} characters are too many for one pattern (most: {LONGEST_PATTERN}); split it")
    try:
        tree = parser.parse(text, re.MULTILINE)
        _check(list(tree), [])
        return re.compile(text, re.MULTILINE)
    except re.error as error:
        raise PatternRefused(f"no regular expression: {error}") from None
    except (OverflowError, RecursionError):
        raise PatternRefused("no regular expression: too large; split it") from None


# -- running time ---------------------------------------------------------------------------------------------------


Open = list[tuple[Characters, int]]
"""Repetitions that might have ended elsewhere: what each accepts, and in how many places it might end."""


def _check(nodes: list[Node], open_ended: Open, anchored: bool = False) -> Open:
    """Refuse what backtracks too much; returns the repetitions still open at the end of ``nodes``."""
    for at, (kind, value) in enumerate(nodes):
        anchored = anchored or (at == 0 and kind is op.AT and value is op.AT_BEGINNING)
        if kind is op.GROUPREF or kind is op.GROUPREF_EXISTS:
            raise PatternRefused("back-references can take for ever; write the text out")
        if not _may_be_empty(kind, value):
            # Where the next character is none that it accepts, a repetition can only have ended in one place.
            begins = _class(kind, value)
            open_ended = [entry for entry in open_ended if entry[0] & begins]
        if kind in REPEATS:
            low, high, body = value
            inner = list(body)
            if low > MOST_REPEATED:
                raise PatternRefused(f"a repetition of at least {low} times; at most {MOST_REPEATED} are allowed")
            if high > 1:
                _check_repeated(inner)
            _check(inner, [], anchored)
            if low != high:
                width = LONGEST_LINE if high is op.MAXREPEAT else int(high) - int(low) + 1
                open_ended = [*open_ended, (_class(kind, value), width)]
                _refuse_slow(open_ended, anchored)
        elif kind is op.BRANCH:
            ends = [_check(list(branch), list(open_ended), anchored) for branch in value[1]]
            open_ended = max(ends, key=_product)
        elif kind is op.SUBPATTERN or kind is op.ATOMIC_GROUP:
            open_ended = _check(_children(kind, value)[0], open_ended, anchored)
        elif kind in LOOKS:
            _check(list(value[1]), list(open_ended), anchored)
    return open_ended


def _product(open_ended: Open) -> int:
    return math.prod(width for _, width in open_ended)


def _refuse_slow(open_ended: Open, anchored: bool) -> None:
    newest = open_ended[-1][0]
    ways = _product([entry for entry in open_ended if entry[0] & newest])
    if ways * (1 if anchored else LONGEST_LINE) > MOST_STEPS:
        raise PatternRefused("open repetitions that accept the same characters are slow on long lines; "
                             "bound them, as in .{0,80}, or begin with ^")


def _check_repeated(body: list[Node]) -> None:
    """What is repeated must match in one way only: no open repetition, no two branches with the same beginning."""
    for kind, value in body:
        if kind in REPEATS:
            low, most, _ = value
            if low != most:
                raise PatternRefused("a repetition inside a repetition can take for ever; leave the outer one out")
        if kind is op.BRANCH:
            seen: set[int] = set()
            for branch in value[1]:
                first = _first(list(branch))
                if seen & first:
                    raise PatternRefused("repeated alternatives that begin alike can take for ever; "
                                         "take the common beginning out")
                seen |= first
        for inner in _children(kind, value):
            _check_repeated(inner)


def _children(kind: Any, value: Any) -> list[list[Node]]:
    if kind is op.SUBPATTERN:
        return [list(value[3])]
    if kind is op.BRANCH:
        return [list(branch) for branch in value[1]]
    if kind in LOOKS:
        return [list(value[1])]
    if kind is op.ATOMIC_GROUP:
        return [list(value)]
    if kind in REPEATS:
        return [list(value[2])]
    return []


def _first(nodes: list[Node]) -> Characters:
    """Characters a match of these nodes may begin with; everything when it may be empty."""
    found: Characters = frozenset()
    for kind, value in nodes:
        if kind is op.AT or kind in LOOKS:
            continue
        here = _class(kind, value)
        found |= here
        if not _may_be_empty(kind, value):
            return found
    return ALL


def _class(kind: Any, value: Any) -> Characters:
    if kind is op.LITERAL:
        return frozenset((_code(value),))
    if kind is op.NOT_LITERAL:
        return ALL - ({value} if value < 128 else set())
    if kind is op.ANY:
        return ALL
    if kind is op.IN:
        return _set(value)
    if kind is op.BRANCH:
        return frozenset().union(*(_first(list(branch)) for branch in value[1]))
    if kind in REPEATS:
        return _first(list(value[2]))
    if kind is op.SUBPATTERN:
        return _first(list(value[3]))
    if kind is op.ATOMIC_GROUP:
        return _first(list(value))
    return ALL


def _set(members: list[Node]) -> Characters:
    negated, found = False, set()
    for kind, value in members:
        if kind is op.NEGATE:
            negated = True
        elif kind is op.LITERAL:
            found.add(_code(value))
        elif kind is op.RANGE:
            found.update(range(value[0], min(value[1], 127) + 1))
            found.update({128} if value[1] > 127 else ())
        else:
            found |= CATEGORIES.get(value, ALL)
    return frozenset((ALL - (found - {128})) if negated else found)


def _code(character: int) -> int:
    return min(character, 128)


def _may_be_empty(kind: Any, value: Any) -> bool:
    if kind in REPEATS:
        return bool(value[0] == 0) or all(_may_be_empty(k, v) for k, v in value[2])
    if kind is op.SUBPATTERN:
        return all(_may_be_empty(k, v) for k, v in value[3])
    if kind is op.BRANCH:
        return any(all(_may_be_empty(k, v) for k, v in branch) for branch in value[1])
    return kind is op.AT or kind in LOOKS


# -- text that must be there ----------------------------------------------------------------------------------------

MOST_VARIANTS = 12
EVERY_STEP = """
2026-11-22T03:14:15.926Z [training#1] INFO so8t.train: step 1200/40000 loss 0.4812 reward 0.31 kl 0.02, 812 tokens/s
{'loss': 0.4812, 'grad_norm': 1.23, 'learning_rate': 1.2e-05, 'epoch': 0.31, 'rewards/mean': 0.2} for the next steps
 42%|####      | 1200/40000 [10:12<5:12:11,  2.07it/s, loss=0.48] Loading checkpoint shards: 100% 2/2 files found
INFO:httpx:HTTP Request: GET https://huggingface.co/api/models/a/b "HTTP/1.1 200 OK"
"""
NOW_AND_THEN = """
[00:00:01] llama_model_loader: - kv 16 : general.output type u32 = 32064 rows hash memory limit 4096 MB is 0x7f00000000
training epoch 3 of 10 is done, it did not take long; preprocessing text 12, no more data; 137 GB free, -9.8 != 1.2e-9
it could have been better, see information: the signal module has no limit, the disk is /dev/sda1, error is 0.02 (404)
exit code 0, the file model-00001-of-00002.safetensors is read with 4 workers or more; device cuda:0 port 443 connect
git make gcc full hash error=0 errors: 0 failed: 0 output; time left, GPU memory in use 9.8 of 12 GB, out of 10 builds
a package or library module is installed by a script; build the binary, run the command, log in, set PATH, export CUDA
"""
ORDINARY = 20 * EVERY_STEP + NOW_AND_THEN
"""Lines of runs that go well: what stands in them is no good sign of trouble."""

Literals = frozenset[str] | None
"""At least one of these is in every match; None when nothing of the kind is known."""


def literals(pattern: re.Pattern[str]) -> Literals:
    """Literal text of which some is in every match, or None."""
    flags = pattern.flags
    if flags & re.IGNORECASE:
        return None
    return _of_sequence(list(parser.parse(pattern.pattern, flags & ~re.UNICODE)))


def _of_sequence(nodes: list[Node]) -> Literals:
    options: list[Literals] = []
    runs = {""}
    for kind, value in [*nodes, (None, None)]:
        here = _letters(kind, value)
        if here and len(runs) * len(here) <= MOST_VARIANTS:
            runs = {run + letter for run in runs for letter in here}
            continue
        if runs != {""}:
            options.append(frozenset(runs))
        runs = here or {""}
        if here:
            continue
        if kind is op.SUBPATTERN:
            if not value[1] & re.IGNORECASE:
                options.append(_of_sequence(list(value[3])))
        elif kind is op.BRANCH:
            options.append(either(_of_sequence(list(branch)) for branch in value[1]))
        elif kind in REPEATS and value[0] > 0:
            options.append(_of_sequence(list(value[2])))
        elif kind is op.ATOMIC_GROUP:
            options.append(_of_sequence(list(value)))
    return best(options)


def _letters(kind: Any, value: Any) -> set[str]:
    """The few texts that a node may be; nothing for a node that may be many."""
    if kind is op.LITERAL:
        return {chr(value)}
    if kind is op.SUBPATTERN and not value[1] & re.IGNORECASE:
        return _spelled(list(value[3]))
    if kind is op.BRANCH:
        branches = [_spelled(list(branch)) for branch in value[1]]
        found = set().union(*branches)
        return found if all(branches) and len(found) <= MOST_VARIANTS else set()
    if kind is op.IN and len(value) <= 3 and all(k is op.LITERAL for k, _ in value):
        return {chr(v) for _, v in value}
    return set()


def _spelled(nodes: list[Node]) -> set[str]:
    """All texts that these nodes may be, if they are few."""
    runs = {""}
    for kind, value in nodes:
        letters = _letters(kind, value)
        if not letters or len(runs) * len(letters) > MOST_VARIANTS:
            return set()
        runs = {run + letter for run in runs for letter in letters}
    return runs


def either(options: Iterable[Literals]) -> Literals:
    """What an alternation needs: one from any of its branches."""
    found: set[str] = set()
    for option in options:
        if option is None:
            return None
        found |= option
    return frozenset(found)


def best(options: Iterable[Literals]) -> Literals:
    """Of several that must all be there, the one that ordinary lines hold least often; the longest where none does."""
    known = [option for option in options if option is not None]
    return min(known, key=lambda option: (sum(map(ORDINARY.count, option)), sum(8.0 ** -len(t) for t in option)),
               default=None)
