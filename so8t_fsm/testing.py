"""Run one step in this process, without a database: the handle a step's author needs for tests of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from so8t_fsm import artifacts
from so8t_fsm.step import Step, StepContext, StopRequested


class RecordingChannel:
    """Keeps every record; asks for a stop when ``stop_when`` says so of the records seen so far."""

    def __init__(self, stop_when: Callable[[list[dict[str, Any]]], bool] | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self._stop_when = stop_when or (lambda _: False)

    def send(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def stopping(self) -> bool:
        return self._stop_when(self.records)


def run_step(
    step: Step, config: Mapping[str, Mapping[str, Any]], home: Path, inputs: Mapping[str, Path] | None = None, *,
    attempt: int = 1, checkpoint_interval: float = 1e9, record: Mapping[str, Any] | None = None,
    disposable: tuple[Path, ...] = (), stop_when: Callable[[list[dict[str, Any]]], bool] | None = None,
) -> tuple[Path | None, list[dict[str, Any]]]:
    """Run a step once below ``home`` and seal what it made.

    Returns the directory (None when it stopped on request) and the records it sent.  Call it again with the same
    ``home`` and a higher ``attempt`` to resume from the newest checkpoint that verifies, as the machine would.
    """
    base = home / "state" / "runs" / "local" / step.name
    out, scratch, checkpoints = base / f"staging-{attempt}", base / f"scratch-{attempt}", base / "checkpoints"
    artifacts.remove_tree(out)
    for directory in (out, scratch, checkpoints):
        directory.mkdir(parents=True, exist_ok=True)
    numbers = sorted((int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()), reverse=True)
    newest = None
    for n in numbers:
        try:
            artifacts.verify(checkpoints / str(n))
        except artifacts.Damaged:
            continue
        newest = checkpoints / str(n)
        break
    channel = RecordingChannel(stop_when)
    inputs = dict(inputs or {})
    ctx = StepContext(
        run="local", step=step.name, attempt=attempt, home=home, config=config, inputs=inputs, out=out,
        scratch=scratch, channel=channel, identities={k: artifacts.Manifest.load(v).identity for k, v in inputs.items()},
        checkpoint=newest, checkpoints=checkpoints, next_checkpoint=(numbers[0] if numbers else 0) + 1,
        checkpoint_interval=checkpoint_interval, record=record or {}, disposable=disposable,
    )
    try:
        step.run(ctx)
    except StopRequested:
        return None, channel.records
    artifacts.seal(out, ctx.volatile_files)
    final = base / str(attempt)
    artifacts.remove_tree(final)
    artifacts.publish(out, final)
    return final, channel.records
