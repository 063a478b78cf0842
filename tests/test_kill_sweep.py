"""Kill the machine, or fail its disk, at the calls that write; it must lose nothing, double nothing, and go on.

``make test`` hits an even choice of the points, ``make soak`` every one of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from crash.killsweep import Sweep, homes, seeds, spread
from crash.server import Server, untraceable

pytestmark = [
    pytest.mark.strace,
    pytest.mark.skipif(untraceable() is not None, reason=f"{untraceable()}"),
]


@pytest.fixture(scope="module", params=["first run", "training"])
def sweep(request: pytest.FixtureRequest) -> Iterator[Sweep]:
    """From nothing to a completed run of one step; or from a killed runner over a step with checkpoints to the end."""
    with Server() as server, homes() as folder:
        yield Sweep(server, seeds(server, folder)[request.param], folder)


def test_the_points_are_those_of_the_commit_protocol(sweep: Sweep) -> None:
    """The instrument sees what it is there to break: pages, flushes of data and of names, renames, deletions."""
    touched = {(p.name, p.path.rsplit("/", 1)[-1].split(".tmp")[0]) for p in sweep.points}
    assert {("pwrite64", "so8t.db-wal"), ("fdatasync", "so8t.db-wal"), ("unlink", "so8t.db-wal"), ("fsync", "state"),
            ("fsync", ".manifest.json"), ("rename", ".manifest.json"), ("fsync", "out.txt")} <= touched
    assert any(p.name == "rename" and "/staging-" in p.path and p.path.endswith(("-1", "-2")) for p in sweep.points)
    assert len(sweep.points) > 200


def test_killed_while_writing(sweep: Sweep) -> None:
    report = sweep.hit("signal=SIGKILL", spread(sweep.points, 40))
    assert not report.violations, "\n".join(report.violations)
    assert report.codes == {-9: 40}


def test_the_instrument_notices() -> None:
    """A row that speaks of a directory before it has its name: one instant, and the sweep finds it."""
    with Server() as server, homes() as folder:
        wrong = Sweep(server, seeds(server, folder)["first run"], folder, bug="row-before-directory")
        report = wrong.hit("signal=SIGKILL", [p for p in wrong.points if p.name == "rename"])
    assert any("no readable manifest" in why for why in report.violations), report


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_disk_that_fails(sweep: Sweep, error: str) -> None:
    """One line for a person and a code of its own, or the machine's own second try; what was committed stays."""
    report = sweep.hit(f"error={error}", spread(sweep.points, 20))
    assert not report.violations, "\n".join(report.violations)
    assert set(report.codes) <= {0, 2, 75} and len(report.codes) > 1


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("inject", ["signal=SIGKILL", "error=ENOSPC", "error=EIO"])
def test_every_point(sweep: Sweep, inject: str) -> None:
    report = sweep.hit(inject, sweep.points)
    print(f"\n{inject}: {len(report.points)} points, exit codes {report.codes}, {len(report.violations)} violations")
    assert not report.violations, "\n".join(report.violations)
