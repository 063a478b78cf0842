"""Carrying out what was decided, once, whatever dies in the middle.

A decision is stored with its incident before anything is done.  Each action is journalled as an intent (what it will
do, worked out now) and then as an outcome; an intent without an outcome is carried out again from its own words.  What
an action changes in the settings is written in the same transaction as its outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from so8t_fsm.actions import Intent, Outcome, Scene, vocabulary
from so8t_fsm.schema import action as action_table
from so8t_fsm.schema import incident as incident_table
from so8t_fsm.schema import override
from so8t_fsm.store import Tx, now


@dataclass(frozen=True)
class Done:
    """One action of an incident, as its row says."""

    name: str
    status: str
    words: str
    needs_person: bool = False


def stored_decision(scene: Scene, incident: int) -> dict[str, Any] | None:
    """The decision that was made for an incident, if one was."""
    with scene.store.read() as connection:
        detail = connection.execute(
            sa.select(incident_table.c.detail).where(incident_table.c.id == incident)).scalar()
    return (detail or {}).get("decision")


def store_decision(tx: Tx, incident: int, decision: Mapping[str, Any]) -> None:
    """Write a decision to its incident; from now on it is carried out, not made again."""
    detail = tx.connection.execute(sa.select(incident_table.c.detail).where(incident_table.c.id == incident)).scalar()
    tx.connection.execute(
        sa.update(incident_table).where(incident_table.c.id == incident)
        .values(status="recovering", detail={**(detail or {}), "decision": dict(decision)}))


def dry_run(scene: Scene, actions: Sequence[Mapping[str, Any]]) -> list[Intent]:
    """What each action would do now; nothing is written."""
    words = vocabulary()
    return [words[entry["name"]][0](scene, entry["arguments"]) for entry in actions]


def carry_out(scene: Scene, incident: int, actions: Sequence[Mapping[str, Any]], say: Callable[[str], None]) -> list[Done]:
    """Do the actions of a decision in order, going on after the last outcome that was journalled.

    An action that fails does not stop the others, unless it needs a person: then the rest is left.
    """
    results: list[Done] = []
    for seq, entry in enumerate(actions):
        done = _one(scene, incident, seq, str(entry["name"]), dict(entry["arguments"]))
        results.append(done)
        say(f"{done.name}: {done.words}" + ("" if done.status == "done" else f" ({done.status})"))
        if done.needs_person:
            break
    return results


def _one(scene: Scene, incident: int, seq: int, name: str, arguments: dict[str, Any]) -> Done:
    plan, perform = vocabulary()[name]
    key = sa.and_(action_table.c.incident_id == incident, action_table.c.seq == seq)
    with scene.store.read() as connection:
        row = connection.execute(sa.select(action_table).where(key)).mappings().first()
    if row is not None and row["status"] != "intent":
        kept = row["outcome"] or {}
        return Done(name, row["status"], kept.get("words", ""), bool(kept.get("needs_person")))
    if row is not None:
        intent = Intent.from_json(row["args"]["intent"])
    else:
        intent = plan(scene, arguments)
        with scene.store.fenced(*scene.lease) as tx:
            tx.connection.execute(sa.insert(action_table).values(
                incident_id=incident, seq=seq, name=name, status="intent", intent_at=now(),
                args={"arguments": arguments, "intent": intent.to_json()}))
    if intent.skip:
        outcome = Outcome("skipped", intent.words, needs_person=bool(intent.data.get("person")))
    else:
        outcome = _perform(perform, scene, intent)
    with scene.store.fenced(*scene.lease) as tx:
        if outcome.status == "done":
            for setting, (was, value) in intent.settings.items():
                set_override(tx, scene.run.id, setting, was, value, scene.by)
        tx.connection.execute(sa.update(action_table).where(key).values(
            status=outcome.status, outcome_at=now(),
            outcome={"words": outcome.words, "needs_person": outcome.needs_person, **outcome.data}))
    return Done(name, outcome.status, outcome.words, outcome.needs_person)


def _perform(perform: Callable[[Scene, Intent], Outcome], scene: Scene, intent: Intent) -> Outcome:
    from so8t_fsm.store import Fenced

    try:
        return perform(scene, intent)
    except Fenced:
        raise
    except OSError as error:
        return Outcome("failed", f"{error.filename or intent.words}: {error.strerror or error}")


def set_override(tx: Tx, run_id: str, key: str, was: Any, value: Any, by: str) -> None:
    """Lay one setting over the run's snapshot; a second change of the same setting remembers the first value."""
    mine = sa.and_(override.c.run_id == run_id, override.c.key == key)
    first = tx.connection.execute(sa.select(override.c.was).where(mine)).first()
    tx.connection.execute(sa.delete(override).where(mine))
    tx.connection.execute(sa.insert(override).values(
        run_id=run_id, key=key, value=value, was=was if first is None else first[0], by=by, at=now()))
