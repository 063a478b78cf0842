"""Opens a source of any kind as a stream that can be taken up again where it was left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from so8t_ops.data import settings as config
from so8t_ops.data.samples import Sample


class Stream(Protocol):
    """Samples in a fixed order.

    Attributes:
        facts: what ``provenance.json`` should say of the source's origin.
        licence, declared: the one licence of the whole source, in SPDX and in its own words, or None.
        gated: whether that licence is judged before anything is read.
    """

    licence: str | None
    declared: str | None
    gated: bool

    @property
    def facts(self) -> dict[str, Any]: ...

    def __iter__(self) -> Iterator[Sample]: ...

    def state(self) -> Any:
        """JSON from which a new stream goes on after the last sample taken from this one."""


class Counted:
    """A stream over a deterministic iterator: its state is the number of samples taken."""

    licence: str | None = None
    declared: str | None = None
    gated = False

    def __init__(self, make: Callable[[], Iterator[Sample]], state: int | None, facts: dict[str, Any]) -> None:
        self._make, self._taken, self._facts = make, state or 0, facts

    @property
    def facts(self) -> dict[str, Any]:
        return self._facts

    def state(self) -> int:
        return self._taken

    def __iter__(self) -> Iterator[Sample]:
        for sample in islice(self._make(), self._taken, None):
            self._taken += 1
            yield sample


def open_source(
    source: config.Source, seed: int, resolve: Callable[[str], Path], state: Any = None,
) -> Stream:
    """The stream of one configured source, from its start or from a saved state.

    Raises:
        StepFailure: a named file is not there.
    """
    if isinstance(source, config.PromptsSource):
        from so8t_ops.data import prompts

        return Counted(lambda: prompts.samples(source, seed), state, {"families": sum(1 for _ in prompts.families())})
    if isinstance(source, config.GeneratedSource):
        from so8t_ops.data import generated

        return Counted(lambda: generated.samples(source, seed), state, {"seed": seed})
    if isinstance(source, config.DistributionsSource):
        from so8t_ops.data import distributions

        return Counted(lambda: distributions.samples(source), state, distributions.fingerprint())
    if isinstance(source, config.FilesSource):
        from so8t_ops.data import files

        path = resolve(source.path)
        return Counted(lambda: files.samples(source, path), state, {"files": _fingerprints(files.listing(path), path)})
    from so8t_ops.data.hub import HubStream

    return HubStream(source, state)


def _fingerprints(paths: list[Path], base: Path) -> list[dict[str, Any]]:
    """Name (below the source), sha256 and size of each file: which bytes the rows came from."""
    import hashlib

    entries = []
    for path in paths:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        name = path.relative_to(base).as_posix() if path != base else path.name
        entries.append({"name": name, "sha256": digest, "bytes": path.stat().st_size})
    return entries
