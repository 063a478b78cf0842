"""What a run has committed: which directories have rows, whether they verify, which are nobody's any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from so8t_fsm import artifacts, config
from so8t_fsm.schema import artifact, checkpoint
from so8t_fsm.step import Step
from so8t_fsm.store import Run, Store, Tx, now


@dataclass(frozen=True)
class Artifact:
    """A live row of ``artifact``; ``path`` is relative to the state directory."""

    run_id: str
    step: str
    n: int
    path: str
    identity: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    status: str
    reused_from: str | None
    committed_at: float


@dataclass(frozen=True)
class Checkpoint:
    """A live row of ``checkpoint``."""

    step: str
    n: int
    path: str
    position: float
    committed_at: float


class Commits:
    """The committed directories of one home's runs."""

    def __init__(self, store: Store, home: Path) -> None:
        self.store = store
        self.root = home / "state"

    def directory(self, run_id: str, step: str) -> Path:
        """Where everything of a step of a run lies."""
        return self.root / "runs" / run_id / step

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def live(self, run_id: str) -> dict[str, Artifact]:
        """The live commits of a run, by step."""
        with self.store.read() as connection:
            rows = connection.execute(
                sa.select(artifact).where(artifact.c.run_id == run_id, artifact.c.status == "live")
            ).mappings().all()
        return {row["step"]: Artifact(**row) for row in rows}

    def is_current(self, found: Artifact, live: Mapping[str, Artifact]) -> bool:
        """Were its inputs the ones that are committed now?"""
        return all(name in live and live[name].identity == identity for name, identity in found.inputs.items())

    def inputs_of(self, step: type[Step], live: Mapping[str, Artifact]) -> dict[str, str]:
        """Identities of the commits a step's outputs depend on."""
        return {name: live[name].identity for name in step.uses if name in live}

    def settings_of(self, step: type[Step], values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings a step's outputs depend on, as they are recorded with its commit."""
        return config.select(values, step.reads)

    def damaged(self, live: Mapping[str, Artifact], tick: artifacts.Tick | None = None) -> dict[str, str]:
        """Every live commit that does not verify, with the reason."""
        broken = {}
        for name, row in live.items():
            try:
                manifest = artifacts.verify(self.root / row.path, tick)
                if manifest.identity != row.identity:
                    raise artifacts.Damaged(f"{self.root / row.path}: it is not what was committed")
            except artifacts.Damaged as error:
                broken[name] = str(error)
        return broken

    def away(self, paths: Iterable[str]) -> list[Path]:
        """Second storages that rows speak of and that are not there: a drive that is unplugged is not damage."""
        moved = (path for path in paths if Path(path).is_absolute() and "/runs/" in path)
        runs = {Path(path[: path.rindex("/runs/")], "runs") for path in moved}
        return sorted(place.parent for place in runs if not place.is_dir())

    def set_aside(self, epoch: int, found: Artifact) -> None:
        """Mark a damaged commit, then move its directory aside (a directory of another run stays where it is)."""
        with self.store.fenced(epoch) as tx:
            tx.mark(artifact, found.run_id, found.step, found.n, status="damaged")
        path = self.root / found.path
        if found.reused_from is None and path.exists():
            artifacts.quarantine(path)

    def publish(self, staging: Path, final: Path) -> None:
        """Give a verified staging directory its name; whatever lies there without a row is put aside first."""
        if final.exists():
            artifacts.quarantine(final)
        artifacts.publish(staging, final)

    def checkpoints(self, run_id: str, step: str) -> list[Checkpoint]:
        """Live checkpoints of a step, newest first."""
        columns = [checkpoint.c[name] for name in Checkpoint.__dataclass_fields__]
        with self.store.read() as connection:
            rows = connection.execute(
                sa.select(*columns)
                .where(checkpoint.c.run_id == run_id, checkpoint.c.step == step, checkpoint.c.status == "live")
                .order_by(checkpoint.c.n.desc())
            ).mappings().all()
        return [Checkpoint(**row) for row in rows]

    def newest_verified(
        self, epoch: int, run_id: str, step: str, say: Callable[[str], None], tick: artifacts.Tick | None = None,
    ) -> Checkpoint | None:
        """The newest checkpoint that verifies; those above it are quarantined, with a word each."""
        for found in self.checkpoints(run_id, step):
            path = self.root / found.path
            if self.away([found.path]):
                say(f"checkpoint {found.n} of {step} is on a storage that is not there: {path}")
                continue
            try:
                artifacts.verify(path, tick)
            except artifacts.Damaged as error:
                with self.store.fenced(epoch) as tx:
                    tx.mark(checkpoint, run_id, step, found.n, status="damaged")
                if path.exists():
                    artifacts.quarantine(path)
                say(f"checkpoint {found.n} of {step} is damaged and put aside: {error}")
                continue
            with self.store.fenced(epoch) as tx:
                tx.mark(checkpoint, run_id, step, found.n, verified_at=now())
            return found
        return None

    def next_checkpoint(self, run_id: str, step: str) -> int:
        """A checkpoint number that neither a row nor a directory has used."""
        with self.store.read() as connection:
            highest = connection.execute(sa.select(sa.func.max(checkpoint.c.n)).where(
                checkpoint.c.run_id == run_id, checkpoint.c.step == step)).scalar()
        folder = self.directory(run_id, step) / "checkpoints"
        names = [int(p.name.split(".")[0]) for p in folder.glob("*") if p.name.split(".")[0].isdigit()]
        return max([highest or 0, *names]) + 1

    def retain(self, tx: Tx, run_id: str, step: str, keep: int) -> list[Path]:
        """Prune all but the newest ``keep`` checkpoints; the rows now, the returned directories after the commit."""
        rows = tx.connection.execute(
            sa.select(checkpoint.c.n, checkpoint.c.path)
            .where(checkpoint.c.run_id == run_id, checkpoint.c.step == step, checkpoint.c.status == "live")
            .order_by(checkpoint.c.n.desc())
        ).all()[keep:]
        for row in rows:
            tx.mark(checkpoint, run_id, step, row.n, status="pruned")
        return [self.root / row.path for row in rows]

    def disposable(self, run: Run) -> list[Path]:
        """Directories of a run that no live row speaks of: old staging and scratch, pruned checkpoints, superseded or
        unfinished commits.  Quarantined ones are kept for inspection."""
        with self.store.read() as connection:
            spoken = {
                self.root / row.path
                for table in (artifact, checkpoint)
                for row in connection.execute(sa.select(table.c.path).where(table.c.status == "live"))
            }
        found: list[Path] = []
        for step in run.steps:
            base = self.directory(run.id, step)
            for path in sorted([*base.glob("*"), *base.glob("checkpoints/*")]):
                temporary = path.name.startswith(("staging-", "scratch-"))
                if path.is_dir() and path not in spoken and (temporary or path.name.isdigit()):
                    found.append(path)
        return found

    def sweep(self, run: Run, step: str) -> None:
        """Delete what earlier attempts of a step left behind without a row."""
        for path in self.disposable(run):
            if path.is_relative_to(self.directory(run.id, step)):
                artifacts.remove_tree(path)
