"""What is broken: the shipped ``so8t resume``, with its steps run in the same thread.

``python -m crash.program`` is a fork server: it imports everything once, then forks a process per request, which waits
at a gate until strace has attached to it.  So a point of the sweep costs milliseconds, and nothing but the program's
own calls is counted.

Only the process boundary around a step is removed (:class:`InlineAttempt`): the step's code, its sealing, every
check, rename and row are the shipped ones, in one thread, so that "the k-th write" means the same in every run.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from so8t_fsm import artifacts, attend, child, reserve, store
from so8t_fsm.attempt import Attempt
from so8t_fsm.commits import Commits

_PR_SET_PTRACER, _ANYBODY = 0x59616D61, ctypes.c_ulong(-1)


class _Ended:
    """Stands for a child process that has ended already."""

    def __init__(self) -> None:
        self.pid, self.started, self.code = os.getpid(), 0.0, 0

    def poll(self) -> int:
        return self.code

    wait = poll

    def tell(self, line: bytes) -> bool:
        return False

    def kill_group(self) -> None: ...

    def close(self) -> None: ...


class InlineAttempt(Attempt):
    """An attempt without a process of its own: ``start`` runs the step to its end, as the child would."""

    def start(self) -> None:
        self.child = _Ended()  # type: ignore[assignment]
        spec = json.loads(json.dumps(self.spec, default=str))
        self.child.code = child.run(spec, self)  # type: ignore[attr-defined,arg-type]
        for _pipe in range(self._open_pipes):
            self._queue.put(("eof", None))

    def send(self, record: dict[str, Any]) -> None:
        self._queue.put(("record", json.loads(json.dumps(record, default=str))))

    def stopping(self) -> bool:
        return False


def _die_before(step: str) -> None:
    """Be killed as the step's process would have been started: the seed of a sweep of that step alone."""
    start = InlineAttempt.start

    def dying(self: InlineAttempt) -> None:
        if self.spec["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        start(self)

    InlineAttempt.start = dying  # type: ignore[method-assign]


def _row_before_directory() -> None:
    """The row first, the rename when the step's leftovers are swept: as if the two were swapped."""
    late: list[Callable[[], None]] = []
    publish, sweep = Commits.publish, Commits.sweep

    def swept(self: Commits, run: Any, step: str) -> None:
        while late:
            late.pop()()
        sweep(self, run, step)

    Commits.publish = lambda self, *names: late.append(lambda: publish(self, *names))  # type: ignore[method-assign]
    Commits.sweep = swept  # type: ignore[method-assign]


def _with_synchronous(level: str) -> None:
    prepare = store._prepare_sqlite

    def weaker(dbapi: Any, record: Any) -> None:
        prepare(dbapi, record)
        dbapi.execute(f"PRAGMA synchronous={level}")

    store._prepare_sqlite = weaker


BUGS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "artefact-not-fsynced": lambda: setattr(artifacts, "fsync_file", lambda path: None),
    "names-not-flushed": lambda: setattr(artifacts, "fsync_dir", lambda path: None),
    "row-before-directory": _row_before_directory,
    "synchronous-normal": lambda: _with_synchronous("NORMAL"),
    "synchronous-off": lambda: _with_synchronous("OFF"),
}
"""Mistakes that the instruments must notice; the empty one is the shipped program."""


def perform(request: Mapping[str, Any]) -> int:
    """Run the command line once, as asked.  Returns its exit code."""
    from so8t_fsm.cli import cli
    from so8t_fsm.cli.common import guarded

    BUGS[request.get("bug", "")]()
    if request.get("die_before"):
        _die_before(request["die_before"])
    attend.Attempt = InlineAttempt  # type: ignore[misc,assignment]
    sys.argv = ["so8t", "--home", request["home"], *request["arguments"]]
    return guarded(cli)


def _forked(request: Mapping[str, Any], gate: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(request["home"])
    os.read(gate, 1)
    code = 70
    try:
        code = perform(request)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def serve() -> None:
    """Answer ``{"fork": …}`` with a pid, and ``{"go": pid}`` with its exit status (negative: a signal)."""
    gates: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "go" in request:
            pid = request["go"]
            os.write(gates[pid], b".")
            os.close(gates.pop(pid))
            answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        else:
            inner, outer = os.pipe()
            answer = os.fork()
            if answer == 0:
                os.close(outer)
                _forked(request["fork"], inner)
            os.close(inner)
            gates[answer] = outer
        sys.__stdout__.write(f"{answer}\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


def _import_everything() -> None:
    """What the program would import and parse on the way, so that it is no part of a point's time."""
    import tempfile  # noqa: F401

    import alembic.command  # noqa: F401
    import psutil  # noqa: F401
    import sqlalchemy.dialects.sqlite  # noqa: F401

    from so8t_fsm import registry, rulebook, service  # noqa: F401
    from so8t_fsm.cli import run  # noqa: F401

    reserve.SIZE = 16 * 1024  # what it holds is nothing: every disk of an enumeration need not carry 8 MiB of it
    registry.sections(["toy_collect", "toy_preprocess", "toy_train"])
    # The homes of a sweep bring no rules of their own: the packaged ones are read once for all of them.
    packaged = rulebook.load_rules(rulebook.layers_of(None))
    rulebook.load_rules = lambda layers, **_: packaged  # type: ignore[assignment]


if __name__ == "__main__":
    _import_everything()
    serve()
