"""Every disk that a power cut may leave behind is one the machine goes on from; and the test of that test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from crash import checker, powercut
from crash.killsweep import homes, seeds
from crash.server import Server, untraceable

pytestmark = [
    pytest.mark.strace,
    pytest.mark.skipif(untraceable() is not None, reason=f"{untraceable()}"),
]


@dataclass
class Lab:
    """A server, a folder, and the homes to start from."""

    server: Server
    folder: Path
    seeds: dict[str, Path]

    def judged(
        self, seed: str, *, bug: str = "", lying: bool = False, rounds: int = 1, resume_every: int = 0,
    ) -> powercut.Report:
        """Record one run, enumerate the disks that power cuts in it could leave, and judge each."""
        home = self.folder / "home"
        calls = powercut.record(self.server, self.seeds[seed], home, bug=bug, lying=lying)
        expected = checker.outcome(home)
        found = powercut.cuts(calls, home, self.seeds[seed], rounds)
        return powercut.judge(self.server, found, home, expected, resume_every)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Server() as server, homes() as folder:
        yield Lab(server, folder, seeds(server, folder))


@pytest.mark.parametrize("seed", ["first run", "training"])
def test_a_power_cut_loses_nothing(lab: Lab, seed: str) -> None:
    report = lab.judged(seed, resume_every=25)
    assert not report.violations, "\n".join(report.violations[:20])
    assert report.images > 250 and report.resumed >= 10


@pytest.mark.parametrize(("bug", "lying", "symptom"), [
    ("artefact-not-fsynced", False, "its bytes are not those that were committed"),
    ("names-not-flushed", False, "no readable manifest"),
    ("synchronous-normal", False, "acknowledged"),
    ("synchronous-off", False, "acknowledged"),
    ("", True, "acknowledged"),
], ids=["artefact not fsynced", "names not flushed", "synchronous=NORMAL", "synchronous=OFF", "lying disk"])
def test_the_instrument_notices(lab: Lab, bug: str, lying: bool, symptom: str) -> None:
    """Each mistake that would cost somebody a night is found, and by its own symptom."""
    report = lab.judged("first run", bug=bug, lying=lying)
    assert any(symptom in violation for violation in report.violations), f"{report.images} images and nothing noticed"


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", ["first run", "training"])
def test_many_power_cuts(lab: Lab, seed: str) -> None:
    report = lab.judged(seed, rounds=20, resume_every=50)
    print(f"\n{seed}: {report.images} images, {report.resumed} resumed, {len(report.violations)} violations")
    assert not report.violations, "\n".join(report.violations[:20])
