"""Conditions over selections: read as Python reads them, or refused in one line."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from so8t_fsm.rules.conditions import Condition, ConditionError, parse

TREES = st.recursive(st.sampled_from("abc").map(lambda n: Condition("name", n)), lambda inner: st.one_of(
    inner.map(lambda c: Condition("not", parts=(c,))),
    st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)).map(
        lambda t: Condition(t[0], parts=tuple(t[1])))), max_leaves=8)


def written(condition: Condition) -> str:
    if condition.kind == "name":
        return condition.name
    if condition.kind == "not":
        return f"not ({written(condition.parts[0])})"
    return "(" + f" {condition.kind} ".join(written(part) for part in condition.parts) + ")"


@settings(max_examples=100, deadline=None)
@given(TREES, st.sets(st.sampled_from("abc")))
def test_conditions_mean_what_python_means(tree: Condition, true: set[str]) -> None:
    text = written(tree)
    names = {name: name in true for name in "abc"}
    assert parse(text).holds(names.__getitem__) == eval(text, {"__builtins__": {}}, names)  # noqa: S307


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab ()andornt", max_size=30))
def test_conditions_are_read_or_refused(text: str) -> None:
    try:
        assert set(parse(text).names())
    except ConditionError as error:
        assert 0 <= error.column <= len(text)


def test_precedence() -> None:
    assert parse("a or b and not c").holds({"a": True, "b": False, "c": True}.__getitem__)
    assert not parse("(a or b) and not c").holds({"a": True, "b": False, "c": True}.__getitem__)
