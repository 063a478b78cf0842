"""What the tests of the monitor share: a listener, and runners that only write."""

from __future__ import annotations

import functools

import sqlalchemy as sa
from conftest import Home

from so8t_fsm import schema
from so8t_fsm.journal import Kept
from so8t_fsm.monitor import Monitor
from so8t_fsm.rules import RuleSet, layers_of, load_rules
from so8t_fsm.store import Store

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11.99 GiB"
CASCADE = "subprocess.CalledProcessError: Command '['python', 'train.py']' returned non-zero exit status 1."
FULL = "OSError: [Errno 28] No space left on device: 'model.safetensors'"
RUN = "20261122-100000-abcd"


class Heard:
    """What was told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.incidents: list[tuple[str, Kept]] = []

    def say(self, event: str, message: str) -> None:
        self.said.append((event, message))

    def incident(self, event: str, kept: Kept) -> None:
        self.incidents.append((event, kept))

    def short(self) -> list[tuple[str, str, str | None, int | None]]:
        return [(event, kept.state, kept.step, kept.attempt) for event, kept in self.incidents]


@functools.cache
def shipped_rules() -> RuleSet:
    return load_rules(layers_of(None))


def a_run(store: Store, *attempts: tuple[str, int, str], run: str = RUN) -> None:
    """A run with attempts: step, number, status."""
    with store.write() as connection:
        connection.execute(sa.insert(schema.run).values(
            id=run, state="training", step="training", attempt=1, rev=1, epoch=1, steps=["training"],
            config={"values": {}}, created_at=1.0))
        for step, n, status in attempts:
            connection.execute(sa.insert(schema.attempt).values(
                run_id=run, step=step, n=n, status=status, started_at=1.0))


def write(home: Home, name: str, *lines: str) -> None:
    with (home.path / "logs" / name).open("a", encoding="utf-8") as out:
        out.writelines(f"{line}\n" for line in lines)


def tell(home: Home, step: str, n: int, *lines: str, run: str = RUN) -> None:
    """As a runner writes it."""
    write(home, f"complete_pipeline_{run}.log", *(f"2026-11-22 10:00:00.123Z [{step}#{n}] {line}" for line in lines))


def look(store: Store, home: Home) -> Heard:
    heard = Heard()
    Monitor(store, home.path, heard).once()
    return heard
