"""Runners come, freeze, crash and wake up again in any order: there is never more than one that can write.

A model beside the real store: hypothesis plays the runners, the operator, the power cut and the clock.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from so8t_fsm import commands, host, lease, schema
from so8t_fsm import store as store_module
from so8t_fsm.statedir import open_state
from so8t_fsm.states import FAILURES, PERSON, WAITING, WORKING, Facts, Plan, plan
from so8t_fsm.step import Step, StepContext
from so8t_fsm.store import Conflict, Fenced, Run, Store

LEASE_SECONDS = 30.0
RUN_ID = "r1"


class Sole(Step):
    """The one step of the modelled run."""

    name, state = "sole", "training"

    def run(self, ctx: StepContext) -> None:
        raise NotImplementedError


@dataclass
class Runner:
    """A process that thinks it holds the lease, and what it last saw of the run."""

    pid: int
    store: Store
    epoch: int
    run: Run | None = None


class LeaseMachine(RuleBasedStateMachine):
    """Any interleaving of runners over one database."""

    make: Callable[[], Store]

    def __init__(self) -> None:
        super().__init__()
        self.clock = 1_000_000.0
        self.alive: set[int] = set()
        self.runners: list[Runner] = []
        self.pids = 0
        self.epochs_given: list[int] = []
        self.expires: float | None = None
        self.state, self.rev = "idle", 0
        self.patches = [
            mock.patch.object(store_module, "now", lambda: self.clock),
            mock.patch.object(lease, "now", lambda: self.clock),
            mock.patch.object(host, "alive", lambda pid, started: pid in self.alive),
            mock.patch.object(lease, "own_identity", lambda: (self.pids, 1.0)),
        ]
        for patch in self.patches:
            patch.start()
        self.observer = self.make()
        with self.observer.write() as connection:
            connection.execute(sa.insert(schema.run).values(
                id=RUN_ID, state="idle", step="sole", steps=["sole"], config={"values": {}}, created_at=self.clock))

    def teardown(self) -> None:
        for runner in self.runners:
            runner.store.close()
        self.observer.close()
        for patch in self.patches:
            patch.stop()

    # What the model expects ---------------------------------------------------------------------------------------

    def holder(self) -> Runner | None:
        """Who may write: the one with the newest epoch, as long as it has not given it back."""
        newest = [r for r in self.runners if self.epochs_given and r.epoch == self.epochs_given[-1]]
        return newest[0] if newest else None

    def occupied(self) -> bool:
        """Must a newcomer keep away?"""
        holder = self.holder()
        return (holder is not None and holder.pid in self.alive and self.expires is not None
                and self.expires > self.clock)

    def acquire(self, store: Store) -> lease.Lease | None:
        expected = self.occupied()
        self.pids += 1
        try:
            held = lease.acquire(store, LEASE_SECONDS)
        except lease.AlreadyRunning:
            assert expected, "kept away although nobody is there"
            return None
        assert not expected, "let in although a runner is alive"
        assert held.epoch > max(self.epochs_given, default=0)
        self.epochs_given.append(held.epoch)
        self.expires = self.clock + LEASE_SECONDS
        return held

    def wrote(self) -> None:
        self.expires = self.clock + LEASE_SECONDS

    # What happens ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.runners) < 5)
    @rule()
    def a_runner_starts(self) -> None:
        store = self.make_again()
        held = self.acquire(store)
        if held is None:
            store.close()
            return
        self.alive.add(self.pids)
        runner = Runner(self.pids, store, held.epoch)
        self.runners.append(runner)
        with store.fenced(held.epoch, LEASE_SECONDS) as tx:
            before = store_module.get_run(tx.connection, RUN_ID)
            assert before is not None
            runner.run = tx.adopt(before)
        self.wrote()
        assert (runner.run.state, runner.run.rev) == (self.state, self.rev)

    @precondition(lambda self: self.runners)
    @rule(data=st.data(), crash=st.sampled_from(["no", "no", "no", "exception", "connection"]))
    def a_runner_writes(self, data: st.DataObject, crash: str) -> None:
        """Any of them, the rightful one or a zombie; it may die at the last moment before the commit."""
        runner = data.draw(st.sampled_from(self.runners))
        assert runner.run is not None
        planned = data.draw(st.sampled_from(ways_out(runner.run.state)))
        rightful = runner is self.holder()
        current = runner.run.rev == self.rev
        try:
            with runner.store.fenced(runner.epoch, LEASE_SECONDS) as tx:
                assert rightful, "a zombie got a transaction"
                after = tx.transition(runner.run, planned, who=f"runner {runner.pid}", reason="work")
                assert current, "a stale revision was accepted"
                if crash == "connection":
                    tx.connection.invalidate()
                if crash != "no":
                    raise InterruptedError
        except Fenced:
            assert not rightful
        except Conflict:
            assert rightful and not current
            runner.run = runner.store.run(RUN_ID)
        except InterruptedError:
            self.dies(runner)
        else:
            runner.run = after
            self.state, self.rev = planned.dest, self.rev + 1
            self.wrote()

    @precondition(lambda self: self.runners)
    @rule(data=st.data())
    def a_runner_beats(self, data: st.DataObject) -> None:
        runner = data.draw(st.sampled_from(self.runners))
        try:
            with runner.store.fenced(runner.epoch, LEASE_SECONDS):
                assert runner is self.holder()
            self.wrote()
        except Fenced:
            assert runner is not self.holder()

    @precondition(lambda self: self.runners)
    @rule(data=st.data(), orderly=st.booleans())
    def a_runner_ends(self, data: st.DataObject, orderly: bool) -> None:
        """It gives the lease back, or is killed and gives nothing back."""
        runner = data.draw(st.sampled_from(self.runners))
        if orderly:
            lease.release(runner.store, lease.Lease(runner.epoch, LEASE_SECONDS))
            if runner is self.holder():
                self.expires = None
        self.dies(runner)

    @precondition(lambda self: self.runners)
    @rule(data=st.data())
    def a_runner_reopens(self, data: st.DataObject) -> None:
        """Its connections are lost and made anew; what it knows of the run stays."""
        runner = data.draw(st.sampled_from(self.runners))
        runner.store.close()
        runner.store = self.make_again()

    @rule(dest=st.sampled_from(["collecting", "training", "paused", "needs_attention", "backing_off", "idle", "nil"]))
    def an_operator_forces(self, dest: str) -> None:
        """With nobody at work the operator takes the lease for a moment, as `so8t force-transition` does."""
        store = self.make_again()
        try:
            held = self.acquire(store)
            if held is None:
                return
            current = store.run(RUN_ID)
            assert current is not None
            with store.fenced(held.epoch, LEASE_SECONDS) as tx:
                _, answer = commands.finish(
                    tx, tx.adopt(current), [Sole], commands.Request("force", {"state": dest}, "me", "by hand"), {})
            allowed = dest in ("training", "paused", "needs_attention", "backing_off")
            assert answer.startswith("done" if allowed else "refused"), answer
            if allowed:
                self.state, self.rev = dest, self.rev + 1
            lease.release(store, held)
            self.expires = None
        finally:
            store.close()

    @rule(seconds=st.sampled_from([1.0, 29.0, 31.0, 86_400.0, -1.0, -60.0, -86_400.0]))
    def the_clock_moves(self, seconds: float) -> None:
        """Forward as time does, or by a jump: a PC that also boots Windows has its clock moved by hours."""
        self.clock += seconds

    def dies(self, runner: Runner) -> None:
        self.alive.discard(runner.pid)
        self.runners.remove(runner)
        runner.store.close()

    def make_again(self) -> Store:
        return Store(self.observer.url)

    # What must always hold ------------------------------------------------------------------------------------------

    @invariant()
    def the_history_tells_the_whole_run(self) -> None:
        with self.observer.read() as connection:
            run = store_module.get_run(connection, RUN_ID)
            lines = connection.execute(sa.select(schema.history).order_by(schema.history.c.rev)).all()
        assert run is not None
        assert (run.state, run.rev) == (self.state, self.rev)
        assert [line.rev for line in lines] == list(range(1, run.rev + 1))
        path = ["idle", *(line.to_state for line in lines)]
        assert [line.from_state for line in lines] == path[:-1] and path[-1] == run.state

    @invariant()
    def there_is_one_holder_at_most(self) -> None:
        with self.observer.read() as connection:
            row = lease.holder(connection)
            run = store_module.get_run(connection, RUN_ID)
        assert self.epochs_given == sorted(set(self.epochs_given))
        assert run is not None and run.epoch <= (row.epoch if row else 0)
        if row is None:
            assert self.epochs_given == []
            return
        assert row.epoch == self.epochs_given[-1]
        assert len([r for r in self.runners if r.epoch == row.epoch]) <= 1
        assert row.expires_at == self.expires


def ways_out(state: str) -> list[Plan]:
    """Plans that a runner could make; a working state always has one that keeps it."""
    if state == "idle":
        wanted = [plan("idle", "start", Facts())]
    elif state in WORKING:
        wanted = [plan(state, trigger, Facts()) for trigger in ("interrupt", "fail_crashed", "pause")]
    elif state in FAILURES:
        wanted = [plan(state, "back_off", Facts(budget_left=True)), plan(state, "give_up", Facts())]
    elif state in WAITING:
        wanted = [plan(state, "interrupt", Facts()), plan("backing_off", "retry", Facts("training", retry_due=True))]
        wanted = wanted[: 2 if state == "backing_off" else 1]
    else:
        assert state in PERSON
        wanted = [plan(state, "resume", Facts("training"))]
    return [p for p in wanted if isinstance(p, Plan)]


def check(make: Callable[[], Store], examples: int) -> None:
    machine = type("Bound", (LeaseMachine,), {"make": staticmethod(make)})
    run_state_machine_as_test(machine, settings=settings(
        max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)))


def test_one_writer_on_sqlite() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        pattern, count = Path(folder) / "pattern.db", 0
        # Migrated once, then copied: a migration takes longer than a whole example.
        open_state(Path(folder), str(sa.URL.create("sqlite", database=str(pattern)))).close()

        def make() -> Store:
            nonlocal count
            count += 1
            copy = shutil.copyfile(pattern, Path(folder) / f"{count}.db")
            return Store(sa.URL.create("sqlite", database=str(copy)))

        check(make, examples=25)


@pytest.mark.postgres
def test_one_writer_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    open_state(tmp_path, postgres_url).close()

    def make() -> Store:
        store = Store(postgres_url)
        with store.write() as connection:
            for table in reversed(schema.metadata.sorted_tables):
                connection.execute(sa.delete(table))
        return store

    check(make, examples=6)
