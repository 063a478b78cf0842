"""The database: what is written is wholly there or not at all, and only by the one who may write."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from so8t_fsm import host, lease, schema
from so8t_fsm.states import Facts, Plan, plan
from so8t_fsm.store import Conflict, Fenced, Run, Store, get_run

RUN = {
    "id": "r1", "state": "idle", "step": "s", "steps": ["s"], "config": {"values": {"a": {"ß": "日本"}}},
    "created_at": 1.0,
}


@pytest.fixture
def run(store: Store) -> Run:
    with store.write() as connection:
        connection.execute(sa.insert(schema.run).values(**RUN))
    found = store.run("r1")
    assert found is not None
    return found


def step(trigger: str = "start", state: str = "idle") -> Plan:
    planned = plan(state, trigger, Facts())
    assert isinstance(planned, Plan)
    return planned


def adopted(store: Store, run: Run) -> tuple[lease.Lease, Run]:
    held = lease.acquire(store, 30)
    with store.fenced(held.epoch) as tx:
        return held, tx.adopt(run)


def rows(store: Store, table: sa.Table) -> list[sa.RowMapping]:
    with store.read() as connection:
        return list(connection.execute(sa.select(table)).mappings())


def test_a_transition_is_one_row_and_one_line_of_history(store: Store, run: Run) -> None:
    held, current = adopted(store, run)
    with store.fenced(held.epoch) as tx:
        after = tx.transition(current, step(), who="me", reason="because")
    assert (after.state, after.rev, after.epoch) == ("collecting", 1, held.epoch)
    assert store.run("r1") == after  # the object says what the row says, JSON and all
    (line,) = rows(store, schema.history)
    assert (line["rev"], line["from_state"], line["to_state"], line["trigger"], line["who"], line["reason"]) == (
        1, "idle", "collecting", "start", "me", "because")


def test_a_stale_revision_is_a_conflict_and_writes_nothing(store: Store, run: Run) -> None:
    held, current = adopted(store, run)
    with store.fenced(held.epoch) as tx:
        tx.transition(current, step(), who="me", reason="first")
    with pytest.raises(Conflict, match="revision 0"), store.fenced(held.epoch) as tx:
        tx.open_attempt(current, "s", 1)
        tx.transition(current, step(), who="me", reason="again")
    assert [row["reason"] for row in rows(store, schema.history)] == ["first"]
    assert rows(store, schema.attempt) == []


def test_a_run_that_another_epoch_adopted_is_a_conflict(store: Store, run: Run) -> None:
    """The second fence: the run's own row names its runner's epoch."""
    held, current = adopted(store, run)
    with store.write() as connection:
        connection.execute(sa.update(schema.run).values(epoch=held.epoch + 1))
    with pytest.raises(Conflict), store.fenced(held.epoch) as tx:
        tx.transition(current, step(), who="me", reason="mine")


def test_a_replaced_runner_can_write_nothing(store: Store, run: Run) -> None:
    held, current = adopted(store, run)
    lease.release(store, held)
    successor = lease.acquire(store, 30)
    assert successor.epoch == held.epoch + 1
    before = rows(store, schema.lease)
    with pytest.raises(Fenced, match=f"epoch {held.epoch}"), store.fenced(held.epoch) as tx:
        pytest.fail(f"it got a transaction: {tx}")
    assert rows(store, schema.lease) == before  # not even the heartbeat was touched
    lease.release(store, held)
    assert rows(store, schema.lease) == before  # nor can it give away what it has not


def test_an_exception_takes_everything_back(store: Store, run: Run) -> None:
    held, current = adopted(store, run)
    with pytest.raises(ZeroDivisionError), store.fenced(held.epoch) as tx:
        tx.transition(current, step(), who="me", reason="because")
        tx.add_checkpoint("r1", "s", 1, 1, "p", "i", 1.0)
        raise ZeroDivisionError
    assert store.run("r1") == current
    assert rows(store, schema.history) == rows(store, schema.checkpoint) == []


def test_a_lost_connection_takes_everything_back(store: Store, run: Run) -> None:
    """What a crash leaves: a transaction whose connection is gone."""
    held, current = adopted(store, run)
    with pytest.raises(ZeroDivisionError), store.fenced(held.epoch) as tx:
        tx.transition(current, step(), who="me", reason="because")
        tx.connection.invalidate()
        raise ZeroDivisionError
    assert store.run("r1") == current


def test_two_writers_at_once_make_one_winner(store: Store, run: Run) -> None:
    """Eight threads hold the same revision; one transition is committed."""
    held, current = adopted(store, run)
    start, outcomes = threading.Barrier(8), []

    def write() -> None:
        start.wait()
        try:
            with store.fenced(held.epoch) as tx:
                tx.transition(current, step(), who="me", reason="race")
            outcomes.append("won")
        except Conflict:
            outcomes.append("lost")

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    assert len(rows(store, schema.history)) == 1


def test_a_state_that_is_not_in_the_table_is_refused(store: Store, run: Run) -> None:
    with pytest.raises(IntegrityError), store.write() as connection:
        connection.execute(sa.update(schema.run).values(state="sleeping"))


def test_a_row_needs_its_run(store: Store) -> None:
    with pytest.raises(IntegrityError), store.write() as connection:
        connection.execute(sa.insert(schema.ledger).values(run_id="nobody", key="k", failures=1, updated_at=1.0))


def test_a_reader_sees_one_moment(store: Store, run: Run) -> None:
    held, current = adopted(store, run)
    with store.read() as connection:
        first = get_run(connection, "r1")
        if not store.sqlite:
            return  # PostgreSQL reads what is committed; no reader of ours asks twice for one answer
        with store.fenced(held.epoch) as tx:
            tx.transition(current, step(), who="me", reason="meanwhile")
        assert get_run(connection, "r1") == first


def test_one_live_commit_a_step_and_its_checkpoints_go(store: Store, run: Run) -> None:
    held, _ = adopted(store, run)
    with store.fenced(held.epoch) as tx:
        tx.add_checkpoint("r1", "s", 1, 1, "c1", "i", 5.0)
        tx.add_artifact("r1", "s", 1, "p1", "i1", {}, {})
        tx.add_artifact("r1", "s", 2, "p2", "i2", {}, {})
    assert {(r["n"], r["status"]) for r in rows(store, schema.artifact)} == {(1, "superseded"), (2, "live")}
    assert [r["status"] for r in rows(store, schema.checkpoint)] == ["pruned"]


def test_the_ledger_forgets_only_by_real_progress(store: Store, run: Run) -> None:
    held, _ = adopted(store, run)
    with store.fenced(held.epoch) as tx:
        assert tx.count_failure("r1", "s/k", None) == 1
        assert tx.count_failure("r1", "s/k", 10.0) == 2
        tx.observe_progress("r1", "s", 10.0)  # as far as before is not further
        assert tx.count_failure("r1", "s/k", 4.0) == 3
        tx.observe_progress("r1", "s", 9.0)
        assert tx.count_failure("r1", "s/k", 9.0) == 4
        tx.observe_progress("r1", "s", 10.5)
        assert tx.count_failure("r1", "s/k", 10.5) == 1
        tx.observe_progress("r1", "s", None)
        assert tx.count_failure("r1", "s/k") == 1


def test_a_step_clears_its_own_ledgers_only(store: Store, run: Run) -> None:
    """All of its own, and none of a step whose name merely looks alike."""
    held, _ = adopted(store, run)
    keys = ("a_b/rule x", "a_b/root y", "axb/rule x", "a_b_c/rule x")
    with store.fenced(held.epoch) as tx:
        for key in keys:
            tx.count_failure("r1", key)
        tx.observe_progress("r1", "a_b", 1.0)
        assert [tx.count_failure("r1", key) for key in keys] == [1, 1, 2, 2]


def test_the_lease_is_held_by_a_living_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    held = lease.acquire(store, 30)
    with pytest.raises(lease.AlreadyRunning, match="already at work"):
        lease.acquire(store, 30)
    monkeypatch.setattr(host, "alive", lambda pid, started: False)
    assert lease.acquire(store, 30).epoch == held.epoch + 1  # a dead owner on this machine: at once


def test_a_silent_host_keeps_the_lease_until_it_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(lease, "now", lambda: clock[0])
    monkeypatch.setattr(host, "host_name", lambda: "elsewhere")
    held = lease.acquire(store, 30)
    monkeypatch.setattr(host, "host_name", lambda: "here")
    monkeypatch.setattr(host, "alive", lambda pid, started: False)  # this machine's processes say nothing of it
    clock[0] += 29.9
    with pytest.raises(lease.AlreadyRunning, match="elsewhere"):
        lease.acquire(store, 30)
    clock[0] += 0.2
    assert lease.acquire(store, 30).epoch == held.epoch + 1


def test_a_write_renews_the_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import so8t_fsm.store as module

    clock = [1000.0]
    monkeypatch.setattr(module, "now", lambda: clock[0])
    monkeypatch.setattr(lease, "now", lambda: clock[0])
    held = lease.acquire(store, 30)
    clock[0] += 25
    with store.fenced(held.epoch, 30):
        pass
    (row,) = rows(store, schema.lease)
    assert (row["heartbeat_at"], row["expires_at"]) == (1025.0, 1055.0)


def test_sqlite_is_set_up_to_survive(tmp_path: Path) -> None:
    """WAL, FULL on every connection, and DDL that rolls back: the recipe, not the driver's defaults."""
    store = Store(sa.URL.create("sqlite", database=str(tmp_path / "x.db")))
    for _ in range(2):
        with store.read() as one, store.read() as other:
            for connection in (one, other):
                pragmas = {p: connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in (
                    "journal_mode", "synchronous", "foreign_keys", "mmap_size")}
                assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "mmap_size": 0}
    with pytest.raises(ZeroDivisionError), store.write() as connection:
        connection.exec_driver_sql("CREATE TABLE leak (x)")
        raise ZeroDivisionError
    with store.read() as connection:
        assert sa.inspect(connection).get_table_names() == []
    store.close()


def test_a_writer_that_reads_first_is_not_overtaken(tmp_path: Path) -> None:
    """BEGIN IMMEDIATE: with a plain BEGIN the second of two writers would die of a stale snapshot."""
    store = Store(sa.URL.create("sqlite", database=str(tmp_path / "x.db")))
    with store.write() as connection:
        connection.exec_driver_sql("CREATE TABLE counter AS SELECT 0 AS n")
    errors: list[Exception] = []

    def count() -> None:
        try:
            with store.write() as connection:
                n = connection.exec_driver_sql("SELECT n FROM counter").scalar_one()
                time.sleep(0.05)
                connection.exec_driver_sql("UPDATE counter SET n = ?", (n + 1,))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as connection:
        assert (connection.exec_driver_sql("SELECT n FROM counter").scalar_one(), errors) == (4, [])
    store.close()
