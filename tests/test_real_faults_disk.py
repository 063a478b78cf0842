"""A disk that is full: for every writer the step has, and for the machine's own memory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import fill, finish, wait_for
from faults import FaultyHome, killed_in_every_recovery

from so8t_fsm import reserve, schema
from so8t_fsm.step import MiB

ROOT_ONLY = "a file system of our own needs Linux and root"
pytestmark = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason=ROOT_ONLY)
SIZE = 24 * MiB


@pytest.fixture
def home(tmp_path: Path) -> Iterator[FaultyHome]:
    """A home on a small disk of its own, too small for a reserve."""
    yield from on_a_disk(tmp_path, SIZE)


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[FaultyHome]:
    """A home on a disk that has room for a reserve."""
    yield from on_a_disk(tmp_path, reserve.PLENTY + SIZE)


def on_a_disk(tmp_path: Path, size: int) -> Iterator[FaultyHome]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"{ROOT_ONLY}: {mounted.stderr.strip()}")
    try:
        yield FaultyHome(disk / "home")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


SAYS = {
    "faulty_safetensors": ("SafetensorError", "No space left on device (os error 28)"),
    "faulty_torch_save": ("RuntimeError", "unexpected pos"),
    "faulty_parquet": ("OSError", "No space left on device"),
    "faulty_file": ("OSError", "No space left on device"),
    "faulty_log": ("OSError", "No space left on device"),
}
"""How each writer says it."""


@pytest.mark.parametrize("writers", [
    ("faulty_safetensors", "faulty_torch_save"), ("faulty_parquet", "faulty_file", "faulty_log"),
])
def test_old_checkpoints_make_room(writers: tuple[str, ...], home: FaultyHome) -> None:
    """Twelve MiB of checkpoints and thirteen at once do not fit into 24; two of the four checkpoints are enough.

    Not a byte is free when the failure has to be written down; the runner is killed in the middle of each recovery.
    """
    home.faults(*writers, resources={"min_free_disk": "64KB"})
    assert len(killed_in_every_recovery(home, seed=len(writers))) == len(writers)
    home.check_recovered([(writer, "disk_full", "disk-full") for writer in writers])
    for writer, incident in zip(writers, home.incidents(), strict=True):
        (failure,) = home.failed(writer)
        error, words = SAYS[writer]
        assert failure["exception"]["type"] == error and words in failure["message"]
        first, *_ = home.actions(incident["id"])
        assert first["name"] == "cleanup_temp_files" and first["outcome"]["bytes_freed"] >= 6 * MiB
        assert f"{writer}, attempt 2, from checkpoint 4" in [entry["reason"] for entry in home.history()]
        assert (home.committed(writer) / "out.txt").read_text() == f"{writer} written\n"


def test_what_was_measured_speaks_where_nobody_says_why(home: FaultyHome) -> None:
    """Only an exit code is left of the step: that the disk was full when it ended is what a probe has to say."""
    home.faults("faulty_mute", resources={"min_free_disk": "64KB"}).begin()
    home.check_recovered([("faulty_mute", "disk_full", "disk-was-short")])
    assert home.failed("faulty_mute")[0]["exit_code"] == 3
    assert home.incidents()[0]["detail"]["message"].startswith("disk: ")
    assert [row["text"] for row in home.rows(schema.event) if row["source"] == "probe"]


def test_a_step_waits_until_somebody_makes_room(home: FaultyHome) -> None:
    """Where nothing disposable is left, the run waits, and goes on by itself when there is room."""
    home.faults("faulty_file", faulty={"spill": MiB}, resources={"min_free_disk": "2MiB"})
    filler = home.path / "somebody's film.mkv"
    fill(filler, leave=MiB)
    runner = home.start("resume", "--config", home.config)
    wait_for(lambda: home.database.exists() and home.rows(schema.run) and home.run().state == "waiting_for_resources",
             "waiting_for_resources")
    filler.unlink()
    finish(runner, expect=0)
    assert home.told() == []


def test_no_room_for_the_state_itself(home: FaultyHome) -> None:
    """The database cannot be written: one line, exit code 75, and nothing is lost when there is room again."""
    home.faults("faulty_file", faulty={"spill": MiB}).begin()
    before = home.identities()
    filler = home.path / "filler"
    fill(filler)
    with pytest.raises(OSError) as full:
        (home.path / "one byte").write_bytes(b"1")
    assert full.value.errno == errno.ENOSPC
    said = home.resume("--new", "--config", home.config, expect=75)
    assert "the disk is full (0 bytes free); make room" in said
    filler.unlink()
    home.resume("--new", "--config", home.config)
    assert home.run().state == "completed" and home.identities() == before


def test_the_reserve_lets_a_run_wait_where_it_could_not_even_say_so(roomy: FaultyHome) -> None:
    """Somebody fills the disk to the last byte while a step works.  The run gives up its reserve, writes down what
    happened, waits for room and goes on by itself; and the reserve is taken back."""
    roomy.faults("faulty_patient", resources={"min_free_disk": "32MiB"})
    kept = roomy.path / "state" / reserve.NAME
    runner = roomy.start("resume", "--new", "--config", roomy.config)
    first, second = (roomy.path / f"gate-{n}" for n in (1, 2))
    wait_for(first.exists, "the step to work")
    assert kept.stat().st_size == kept.stat().st_blocks * 512 == reserve.SIZE
    filler = roomy.path / "somebody's film.mkv"
    fill(filler)
    wait_for(lambda: not kept.exists(), "the reserve to be given up")
    wait_for(lambda: roomy.run().state == "waiting_for_resources", "the run to wait")
    assert runner.poll() is None and len(roomy.rows(schema.run)) == 1
    filler.unlink()
    wait_for(second.exists, "the step to go on")
    assert kept.stat().st_size == reserve.SIZE
    second.unlink()
    said = finish(runner, expect=0, seconds=60)
    assert "the reserve is given up" in said
    assert roomy.run().state == "completed" and len(roomy.rows(schema.run)) == 1
