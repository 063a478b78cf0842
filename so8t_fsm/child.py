"""The process a step runs in: ``python -m so8t_fsm.child``.

It reads its specification as the first line of the control pipe, runs one step, seals what the step staged and says
so.  It holds no database and decides nothing; when the control pipe closes its parent is gone, and it ends at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from so8t_fsm import artifacts, events, host, registry
from so8t_fsm.step import StepContext, StopRequested

EXIT_DONE, EXIT_FAILED, EXIT_STOPPED = 0, 1, 75


class PipeChannel:
    """Records go out as JSON lines; a line ``stop`` on the control pipe asks for a stop."""

    def __init__(self, control: IO[bytes], records: IO[bytes]) -> None:
        self._control, self._records = control, records
        self._lock = threading.Lock()
        self._stop = threading.Event()
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def _listen(self) -> None:
        for line in self._control:
            if line.strip() == b"stop":
                self._stop.set()
        # End of file: nobody is left to commit what this process does.
        os._exit(EXIT_STOPPED)

    def send(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, default=str).encode() + b"\n"
        with self._lock:
            self._records.write(line)
            self._records.flush()

    def stopping(self) -> bool:
        return self._stop.is_set()


def context(spec: dict[str, Any], channel: PipeChannel) -> StepContext:
    """Rebuild the step's context from the machine's specification."""
    def path(key: str) -> Path | None:
        return Path(spec[key]) if spec.get(key) else None

    return StepContext(
        run=spec["run"], step=spec["step"], attempt=spec["attempt"], home=Path(spec["home"]), config=spec["config"],
        inputs={k: Path(v) for k, v in spec["inputs"].items()}, identities=spec["identities"], out=Path(spec["out"]),
        scratch=Path(spec["scratch"]), channel=channel, checkpoint=path("checkpoint"), checkpoints=path("checkpoints"),
        next_checkpoint=spec["next_checkpoint"], checkpoint_interval=spec["checkpoint_interval"],
        record=spec.get("record", {}), disposable=tuple(Path(p) for p in spec.get("disposable", ())),
    )


def run(spec: dict[str, Any], channel: PipeChannel) -> int:
    """Run the step named in ``spec``.  Returns the exit code; every failure has been told as a record."""
    try:
        ctx = context(spec, channel)
        step = registry.step_class(spec["step"])()
        step.run(ctx)
        channel.send({"type": "sealing"})
        manifest = artifacts.seal(ctx.out, ctx.volatile_files, tick=_ticker(channel))
        channel.send({"type": "sealed", "identity": manifest.identity})
        return EXIT_DONE
    except StopRequested:
        channel.send({"type": "stopped"})
        return EXIT_STOPPED
    except BaseException as error:  # the last words of this process, whatever they are
        record = events.describe(error)
        if isinstance(error, registry.StepUnknown):
            record["state"] = "dependency_missing"
        channel.send({"type": "exception", "exception": record})
        print(record["traceback"], file=sys.stderr, flush=True)
        return EXIT_FAILED


def _ticker(channel: PipeChannel) -> Callable[[int], None]:
    done = 0

    def tick(read: int) -> None:
        nonlocal done
        done += read
        if done % (256 * artifacts.CHUNK) < read:
            channel.send({"type": "sealing", "bytes": done})

    return tick


def main() -> None:
    control, records = host.adopt_parent()
    # A spreadsheet of settings may be long: the specification is one line of JSON.
    spec = json.loads(control.readline())
    logging.basicConfig(stream=sys.stderr, level=spec.get("log_level", "INFO"), format="%(levelname)s %(name)s: %(message)s")
    channel = PipeChannel(control, records)
    code = run(spec, channel)
    records.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries may have left threads that would keep the process, and its GPU memory, alive.
    os._exit(code)


if __name__ == "__main__":
    main()
