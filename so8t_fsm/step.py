"""The contract between the machine and a step.  The only module of the machine that a step may import.

A step is a class registered under the entry-point group ``so8t.steps``::

    [project.entry-points."so8t.steps"]
    collecting = "my_package.collect:Collect"

Its module must import nothing heavy at top level: the machine loads it to read ``sections``; torch belongs inside
:meth:`Step.run`, which the machine calls in a child process of its own.
"""

from __future__ import annotations

import abc
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from so8t_fsm import artifacts as artifacts

MiB = 1 << 20
GiB = 1 << 30

log = logging.getLogger("so8t.step")


class Settings(BaseModel):
    """Base of every configuration section: unknown keys are errors, values are not changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


M = TypeVar("M", bound=BaseModel)


class StopRequested(Exception):
    """The machine asked the step to stop; its last checkpoint is where it will go on."""


class StepFailure(Exception):
    """A failure whose kind the step knows.  ``state`` is one of the machine's failure states, for example
    ``data_invalid``, ``diverged`` or ``hub_refused``; ``hint`` says what a person can do."""

    def __init__(self, message: str, *, state: str = "crashed", hint: str = "") -> None:
        super().__init__(message)
        self.state = state
        self.hint = hint


@dataclass(frozen=True)
class Needs:
    """What must be there before a step starts, asked again while it waits.

    ``disk`` maps a path to the bytes the step will write below it (missing: the step waits);
    ``ram`` bytes (missing: it waits); ``vram`` bytes (missing: it is warned about and the step goes on, slower);
    ``network`` are ``host:port`` strings of which each must accept a connection (missing: it waits).
    """

    disk: Mapping[Path, int] = field(default_factory=dict)
    ram: int = 0
    vram: int = 0
    network: tuple[str, ...] = ()


class Channel(Protocol):
    """How a context speaks to whoever runs the step: a pipe to the machine, or a list in a test."""

    def send(self, record: dict[str, Any]) -> None:
        """Deliver one structured record (JSON values only)."""

    def stopping(self) -> bool:
        """Has a stop been asked for?"""


@dataclass
class StepContext:
    """All that a step may know of the world.

    Attributes:
        run, step, attempt: which run, which step, how often it was tried (1 is the first time).
        home: where ``configs/``, ``state/`` and ``logs/`` are.
        config: every effective setting, section by section, as plain values.
        inputs: the committed directory of each earlier step, by step name; read only.
        identities: for the same names, the sha256 of what they hold.
        out: the staging directory.  Whatever lies here when ``run`` returns is committed, all or nothing.
        scratch: a directory for what nobody needs later; the machine deletes it.
        checkpoint: the newest checkpoint of this step that verified, or None.
        record: what the machine knows of the run so far (plain JSON), for the reports.
        disposable: directories of this run that no row speaks of any more (clean-up only).
    """

    run: str
    step: str
    attempt: int
    home: Path
    config: Mapping[str, Mapping[str, Any]]
    inputs: Mapping[str, Path]
    out: Path
    scratch: Path
    channel: Channel
    identities: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Path | None = None
    checkpoints: Path | None = None
    next_checkpoint: int = 1
    checkpoint_interval: float = 180.0
    record: Mapping[str, Any] = field(default_factory=dict)
    disposable: tuple[Path, ...] = ()
    volatile_files: set[str] = field(default_factory=set)
    _last_saved: float = field(default_factory=time.monotonic)
    _last_progress: float = 0.0

    def section(self, name: str, model: type[M]) -> M:
        """One section of the configuration as its typed model."""
        return model.model_validate(self.config.get(name, {}))

    def path(self, value: str | Path) -> Path:
        """A path from the configuration: relative ones are below the home."""
        candidate = Path(value).expanduser()
        return candidate if candidate.is_absolute() else self.home / candidate

    def volatile(self, path: Path) -> Path:
        """Declare a file below ``out`` to carry times or host facts, so that it is verified but never compared."""
        self.volatile_files.add(path.relative_to(self.out).as_posix())
        return path

    def progress(self, done: float, total: float | None = None, unit: str = "items", note: str = "") -> None:
        """Say how far the work is.  Cheap: at most five records a second leave the process."""
        now = time.monotonic()
        if now - self._last_progress < 0.2 and done != total:
            return
        self._last_progress = now
        self.channel.send({"type": "progress", "done": done, "total": total, "unit": unit, "note": note})

    def stopping(self) -> bool:
        """True once the machine has asked the step to stop."""
        return self.channel.stopping()

    def stop_if_asked(self) -> None:
        """Leave at a point where nothing needs saving.

        Raises:
            StopRequested: a stop was asked for.
        """
        if self.stopping():
            raise StopRequested("stopped on request")

    def checkpoint_due(self) -> bool:
        """True when the wall-clock interval has passed since the last save, or a stop was asked for."""
        return self.stopping() or time.monotonic() - self._last_saved >= self.checkpoint_interval

    def save_checkpoint(self, write: Callable[[Path], None], position: float) -> None:
        """Keep the step's whole state: ``write(directory)`` fills a fresh directory, which is then sealed and named.

        ``position`` (steps, rows, …) must grow with real progress: the machine resets retry budgets by it.
        Where a stop was asked for, it takes effect after the save.

        Raises:
            StopRequested: a stop was asked for and the checkpoint is safe.
        """
        if self.checkpoints is None:
            raise RuntimeError("this context keeps no checkpoints")
        n = self.next_checkpoint
        staging = self.checkpoints / f"staging-{self.attempt}-{n}"
        artifacts.remove_tree(staging)
        staging.mkdir(parents=True)
        write(staging)
        manifest = artifacts.seal(staging)
        artifacts.publish(staging, self.checkpoints / str(n))
        self.next_checkpoint = n + 1
        self._last_saved = time.monotonic()
        self.channel.send({"type": "checkpoint", "n": n, "position": position, "identity": manifest.identity})
        self.stop_if_asked()

    def maybe_checkpoint(self, write: Callable[[Path], None], position: float) -> None:
        """:meth:`save_checkpoint`, when one is due."""
        if self.checkpoint_due():
            self.save_checkpoint(write, position)


class Step(abc.ABC):
    """One step of the pipeline.

    Class attributes:
        name: what the configuration and the history call it; the entry point has the same name.
        state: the machine's working state it runs in (``collecting`` … ``cleaning_up``).
        sections: the configuration sections it brings along, each with its model.
        reads: dotted prefixes of the settings its outputs depend on; a change there makes its commit stale.
        uses: names of earlier steps whose commits its outputs depend on.
    """

    name: ClassVar[str]
    state: ClassVar[str]
    sections: ClassVar[Mapping[str, type[Settings]]] = {}
    reads: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()

    def needs(self, config: Mapping[str, Mapping[str, Any]], home: Path, out: Path) -> Needs:
        """What must be there before the step starts.  Runs in the machine's process: quick, no heavy imports."""
        return Needs(disk={out: 64 * MiB})

    @abc.abstractmethod
    def run(self, ctx: StepContext) -> None:
        """Do the work: read ``ctx.inputs``, write ``ctx.out``.  Runs in a child process; may be killed at any instant.

        Raises:
            StopRequested: through the context, when asked to stop.
            StepFailure: for a failure whose kind is known; any other exception is classified by the machine.
        """
