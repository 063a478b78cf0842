"""A run that stands at a failure, without a runner and without children: the machine's own code in the test's process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from so8t_fsm import answer, artifacts, attend, config, events, lease, registry, runs, schema, service
from so8t_fsm.actions import Scene
from so8t_fsm.handle import RunHandle
from so8t_fsm.rules import RuleSet, load_rules
from so8t_fsm.statedir import open_state
from so8t_fsm.stopping import StopSignals
from so8t_fsm.store import Run, Store

QUICK = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
"""Where a test that makes many homes makes them."""


class Rules:
    """A rule book that nobody changes."""

    def __init__(self, rules: RuleSet) -> None:
        self.rules = rules

    def current(self) -> RuleSet:
        return self.rules


@dataclass
class Quiet:
    """A reporter that remembers."""

    said: list[str] = field(default_factory=list)

    def say(self, message: str) -> None:
        self.said.append(message)

    def progress(self, step: str, progress: dict[str, Any]) -> None: ...

    def entered(self, run: Run, reason: str) -> None:
        self.said.append(f"{run.state}: {reason}")


@dataclass
class Ended:
    """What is left of a child: its last lines."""

    lines: Sequence[str] = ()
    progress: dict[str, Any] = field(default_factory=dict)

    def last_lines(self) -> list[tuple[int, float, str]]:
        return [(n, 0.0, line) for n, line in enumerate(self.lines, 1)]


def rule(
    name: str, then: Sequence[Any], kind: str = "MemoryError", state: str = "out_of_memory", **more: Any,
) -> dict[str, Any]:
    """A rule for one type of exception."""
    return {"id": name, "title": f"Answer {kind}", "state": state, "match": {"it": {"exception": kind}, "condition": "it"},
            "then": list(then), "max_attempts": 3, "backoff": {"initial": 0.01, "max": 0.02}, **more}


def rule_set(folder: Path, *rules: Mapping[str, Any], **limits: Any) -> RuleSet:
    """Write rules as YAML (JSON is), and read them as the machine does."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {"version": 1, "rules": list(rules), **({"limits": limits} if limits else {})}
    (folder / "rules.yaml").write_text(json.dumps(body), encoding="utf-8")
    return load_rules([("test", folder)])


@dataclass
class Stage:
    """A home with one run, and the rules that it goes by."""

    home: Path
    rules: RuleSet
    told: list[tuple[str, str, str]] = field(default_factory=list)
    reporter: Quiet = field(default_factory=Quiet)

    def build(self, step: str = "training", **sections: Mapping[str, Any]) -> Stage:
        """A run whose attempt 1 of a step has begun."""
        path = self.home / "configs" / "complete_so8t_pipeline.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        base: dict[str, dict[str, Any]] = {"automation": {"backoff": {"initial": "10ms", "max": "50ms"}}}
        for name, values in sections.items():
            base.setdefault(name, {}).update(values)
        path.write_text(json.dumps(base), encoding="utf-8")
        loaded = config.load(path, registry.sections, environ={}, home=self.home)
        with self.store() as store:
            run = runs.create(store, loaded, str(path))
            with store.write() as connection:
                connection.execute(sa.update(schema.run).where(schema.run.c.id == run.id).values(
                    step=step, state=registry.step_class(step).state))
        self.begin()
        return self

    @contextmanager
    def store(self) -> Iterator[Store]:
        store = open_state(self.home)
        try:
            yield store
        finally:
            store.close()

    @contextmanager
    def handle(self, observe_only: bool = False) -> Iterator[RunHandle]:
        """The run as a runner has it that has just taken over."""
        with self.store() as store:
            held = lease.acquire(store, 60.0)
            run = store.latest_run()
            assert run is not None
            with store.fenced(held.epoch, held.seconds) as tx:
                run = tx.adopt(run)
            try:
                yield RunHandle(
                    store, held, self.home, run, service.snapshot_of(run), self.reporter, StopSignals(), lambda line: None,
                    lambda *told: self.told.append(told), Rules(self.rules), observe_only)  # type: ignore[arg-type]
            finally:
                lease.release(store, held)

    def begin(self) -> None:
        """The next attempt of the run's step, by its rows alone."""
        with self.handle() as handle:
            begin(handle)

    def fail(self, error: BaseException, *lines: str) -> None:
        """The attempt that is running ends with an exception."""
        with self.handle() as handle:
            fail(handle, error, *lines)

    def answer(self, observe_only: bool = False) -> str:
        """What a runner does at a failure.  Returns the state the run is in then."""
        with self.handle(observe_only) as handle:
            answer.Answer(handle).give()
            return handle.run.state

    @contextmanager
    def scene(self) -> Iterator[Scene]:
        with self.handle() as handle:
            yield answer.scene_of(handle, "a test")

    def run(self) -> Run:
        with self.store() as store:
            found = store.latest_run()
        assert found is not None
        return found

    def rows(self, table: sa.Table) -> list[dict[str, Any]]:
        with self.store() as store, store.read() as connection:
            return [dict(row) for row in connection.execute(sa.select(table)).mappings()]

    def overrides(self) -> dict[str, Any]:
        return {row["key"]: row["value"] for row in self.rows(schema.override)}

    def commit(self, step: str, n: int, files: Mapping[str, bytes], run_id: str | None = None) -> Path:
        """A committed directory of a step, with its row."""
        return self._sealed("artifact", step, n, files, run_id)

    def checkpoint(self, n: int, files: Mapping[str, bytes]) -> Path:
        """A checkpoint of the run's step, with its row."""
        return self._sealed("checkpoint", str(self.run().step), n, files, None)

    def _sealed(self, kind: str, step: str, n: int, files: Mapping[str, bytes], run_id: str | None) -> Path:
        with self.handle() as handle:
            below = "checkpoints/" if kind == "checkpoint" else ""
            place = handle.commits.directory(handle.run.id, step) / f"{below}{n}"
            for name, content in files.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)
            identity = artifacts.seal(place).identity
            path = handle.commits.relative(place)
            with handle.fenced() as tx:
                if kind == "checkpoint":
                    tx.add_checkpoint(handle.run.id, step, n, 1, path, identity, float(n))
                else:
                    tx.add_artifact(run_id or handle.run.id, step, n, path, identity, {}, {})
        return place


def begin(handle: RunHandle) -> None:
    n = handle.run.attempt + 1
    handle.move("begin", "again", also=lambda tx: tx.open_attempt(handle.run, str(handle.run.step), n), attempt=n)


def fail(handle: RunHandle, error: BaseException, *lines: str) -> None:
    assert handle.step is not None
    try:
        raise error
    except BaseException as raised:  # for its traceback
        record = events.describe(raised)
    failure = events.from_exception(record)
    attendance, ended = attend.Attendance(handle, handle.step), Ended(lines)
    attendance._failed(failure, ended, attendance._seen(failure, ended))  # type: ignore[arg-type]


def files_below(folder: Path) -> dict[str, int]:
    """Every plain file and its size."""
    return {p.relative_to(folder).as_posix(): p.lstat().st_size
            for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()}
