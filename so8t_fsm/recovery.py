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
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from so8t_fsm import journal, registry, runs
from so8t_fsm.actions import Intent, Interrupted, Outcome, Scene, vocabulary
from so8t_fsm.schema import action as action_table
from so8t_fsm.schema import incident as incident_table
from so8t_fsm.schema import override
from so8t_fsm.store import Fenced, Tx, now

NOT_OURS = (Fenced, Interrupted, SQLAlchemyError)
"""What an action can't be blamed for: the runner itself has to stop."""


@dataclass(frozen=True)
class Done:
    """One action of an incident, as its row says."""

    name: str
    status: str
    words: str
    needs_person: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.words}" + ("" if self.status == "done" else f" ({self.status})")


def store_decision(tx: Tx, incident: int, decision: Mapping[str, Any]) -> None:
    """Write a decision to its incident; from now on it is carried out, not made again."""
    detail = tx.connection.execute(sa.select(incident_table.c.detail).where(incident_table.c.id == incident)).scalar()
    status = {"status": "observed", "closed_at": now()} if decision["observe_only"] else {"status": "recovering"}
    tx.connection.execute(
        sa.update(incident_table).where(incident_table.c.id == incident)
        .values(detail={**(detail or {}), "decision": dict(decision)}, **status))


def plan(scene: Scene, name: str, arguments: Mapping[str, Any]) -> Intent:
    """What an action would do now; nothing is written.

    One that can't be worked out, or would leave settings that no step accepts, has nothing to do, and says why.
    """
    try:
        intent = vocabulary()[name][0](scene, arguments)
    except NOT_OURS:
        raise
    except Exception as error:
        return Intent(f"it can't be planned: {_told(error)}", skip=True)
    problem = _refused(scene, intent)
    return intent if problem is None else Intent(f"{intent.words} is not possible: {problem}", skip=True)


def _refused(scene: Scene, intent: Intent) -> str | None:
    """Why the settings would not load with these changes."""
    changes = [{"key": key, "value": value} for key, (_, value) in intent.settings.items()]
    values, sections = runs.overlaid(scene.values, changes), registry.sections(scene.run.steps)
    for name in {change["key"].split(".")[0] for change in changes} & sections.keys():
        try:
            sections[name].model_validate(values[name])
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return f"{'.'.join(map(str, (name, *first['loc'])))}: {first['msg']}"
    return None


def carry_out(
    scene: Scene, incident: int, actions: Sequence[Mapping[str, Any]], say: Callable[[str], None] = lambda line: None,
) -> list[Done]:
    """Do the actions of a decision in order, going on after the last outcome that was journalled.

    An action that fails does not stop the others, unless it needs a person: then the rest is left.

    Raises:
        Interrupted: a stop was asked for; the next call goes on where this one stopped.
    """
    results: list[Done] = []
    for seq, entry in enumerate(actions):
        done = _journalled(scene, incident, seq, str(entry["name"]), dict(entry["arguments"]))
        results.append(done)
        say(str(done))
        if done.needs_person:
            break
    return results


def _journalled(scene: Scene, incident: int, seq: int, name: str, arguments: dict[str, Any]) -> Done:
    """One action: its intent, its doing, its outcome, each of them once."""
    key = sa.and_(action_table.c.incident_id == incident, action_table.c.seq == seq)
    with scene.store.read() as connection:
        row = connection.execute(sa.select(action_table).where(key)).mappings().first()
    if row is not None and row["status"] != "intent":
        kept = row["outcome"] or {}
        return Done(name, row["status"], kept.get("words", ""), bool(kept.get("needs_person")))
    if row is not None:
        intent = Intent.from_json(row["args"]["intent"])
    else:
        scene.beat()
        intent = plan(scene, name, arguments)
        with scene.store.fenced(*scene.lease) as tx:
            tx.connection.execute(sa.insert(action_table).values(
                incident_id=incident, seq=seq, name=name, status="intent", intent_at=now(),
                args={"arguments": arguments, "intent": intent.to_json()}))
    outcome = _performed(scene, name, intent)
    words = journal.storable(outcome.words)
    with scene.store.fenced(*scene.lease) as tx:
        if outcome.status == "done":
            for setting, (was, value) in intent.settings.items():
                set_override(tx, scene.run.id, setting, was, value, scene.by)
        tx.connection.execute(sa.update(action_table).where(key).values(
            status=outcome.status, outcome_at=now(),
            outcome={**outcome.data, "words": words, "needs_person": outcome.needs_person}))
    return Done(name, outcome.status, words, outcome.needs_person)


def _performed(scene: Scene, name: str, intent: Intent) -> Outcome:
    """Carry an intent out; whatever an action breaks of, the recovery goes on with the next one."""
    if intent.skip:
        return Outcome("skipped", intent.words, needs_person=bool(intent.data.get("person")))
    try:
        return vocabulary()[name][1](scene, intent)
    except NOT_OURS:
        raise
    except Exception as error:
        return Outcome("failed", _told(error))


def _told(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def set_override(tx: Tx, run_id: str, key: str, was: Any, value: Any, by: str) -> None:
    """Lay one setting over the run's snapshot; a second change of the same setting remembers the first value."""
    mine = sa.and_(override.c.run_id == run_id, override.c.key == key)
    first = tx.connection.execute(sa.select(override.c.was).where(mine)).first()
    tx.connection.execute(sa.delete(override).where(mine))
    tx.connection.execute(sa.insert(override).values(
        run_id=run_id, key=key, value=value, was=was if first is None else first[0], by=by, at=now()))
