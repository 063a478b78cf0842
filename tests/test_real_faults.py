"""Every failure state is reached by a real fault in a real child process, and left again without a person.

Nothing is imitated: memory is refused by the kernel, a loss is not a number, a shard is cut off, a program fails.  And
the runner is killed once at a random instant of every recovery; still each of its effects comes about, and once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import wait_for
from faults import FAULTY, FaultyHome, killed_in_every_recovery

from so8t_fsm import schema

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS, cgroups and /proc are Linux's")


@pytest.fixture
def home(tmp_path: Path) -> FaultyHome:
    return FaultyHome(tmp_path / "home")


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[str]:
    """A memory cgroup of our own, or an empty string where the system gives none."""
    for parent, limit in ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")):
        group = parent / f"so8t-{tmp_path.parent.name}-{tmp_path.name}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / limit).exists():
                yield str(group)
                wait_for(lambda: not (group / "cgroup.procs").read_text(), "the cgroup to be empty")  # noqa: B023
                group.rmdir()
                return
            group.rmdir()
    yield ""


# Memory -------------------------------------------------------------------------------------------------------------


def test_out_of_memory_ends_with_a_smaller_batch(home: FaultyHome, cgroup: str) -> None:
    """Four ways to run out of memory, each left by halving the batch; the effective batch stays what it was."""
    home.faults("faulty_numpy", "faulty_torch", "faulty_worker", "faulty_killed",
                training={"batch_size": 16}, faulty={"cgroup": cgroup})
    assert len(killed_in_every_recovery(home, seed=4)) == 4
    home.check_recovered([
        ("faulty_numpy", "out_of_memory", "main-memory"),
        ("faulty_torch", "out_of_memory", "main-memory"),
        ("faulty_worker", "out_of_memory", "main-memory"),
        ("faulty_killed", "out_of_memory", "killed-without-a-word"),
    ])
    (numpy,), (torch,), (worker,), (end,) = map(home.failed, home.run().steps)
    assert numpy["exception"]["type"] == "MemoryError" and "Unable to allocate 384. MiB" in numpy["message"]
    assert "DefaultCPUAllocator: can't allocate memory" in torch["message"]
    # One incident, and an out-of-memory one, although the step itself only knows of an exit status.
    assert worker["exception"]["type"] == "CalledProcessError" and "returned non-zero exit status 1" in worker["message"]
    assert home.incidents()[2]["detail"]["message"] == "MemoryError"
    assert (end["exception"], end["signal"]) == (None, 9)

    changed = home.overrides()
    assert changed["training.batch_size"][:2] == (16, 1) and changed["training.gradient_accumulation_steps"][:2] == (1, 16)
    assert changed["training.batch_size"][2] == "recovery rule killed-without-a-word"
    halved = [home.actions(row["id"])[0]["outcome"]["words"] for row in home.incidents()]
    assert [words.split(",")[0] for words in halved] == [
        f"training.batch_size {n} → {n // 2}" for n in (16, 8, 4, 2)]


# Learning and devices -----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_ends_with_a_lower_learning_rate(home: FaultyHome) -> None:
    """0.1 and 0.05 diverge, 0.025 does not; before each new try the newest checkpoint is left out."""
    home.faults("faulty_bytes", "faulty_loss", training={"learning_rate": 0.1, "batch_size": 16})
    assert len(killed_in_every_recovery(home, seed=4)) == 3
    home.check_recovered([
        ("faulty_bytes", "out_of_memory", "main-memory"),
        ("faulty_loss", "diverged", "diverged"), ("faulty_loss", "diverged", "diverged"),
    ])
    assert home.failed("faulty_bytes")[0]["exception"]["type"] == "MemoryError"
    assert "found invalid values" in home.failed("faulty_loss")[0]["message"]
    assert home.overrides()["training.learning_rate"] == (0.1, 0.025, "recovery rule diverged")
    assert (home.committed("faulty_loss") / "out.txt").read_text() == "faulty_loss converged: True\n"
    back = [home.actions(row["id"])[0]["outcome"]["words"] for row in home.incidents()[1:3]]
    assert back[0] == "go back to checkpoint 1 at 5"


@pytest.fixture
def driver(home: FaultyHome, tmp_path: Path) -> Path:
    """A driver for NVIDIA's client to load; the path is of a file with the error number it fails with."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here to build the driver that fails")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", FAULTY / "nvidia_driver.c"], check=True)
    search = [str(tmp_path), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    home.environment = {"LD_LIBRARY_PATH": os.pathsep.join(search), "SO8T_TEST_DRIVER": str(tmp_path / "trouble"),
                        "CUDA_VISIBLE_DEVICES": "0"}
    return tmp_path / "trouble"


def test_a_driver_that_is_replaced_is_waited_for(home: FaultyHome, driver: Path) -> None:
    """NVIDIA's client finds no driver, as while Windows installs another; the runner is killed, and goes on waiting."""
    away = ("faulty_device", "device_failed", "gpu-driver-away")
    home.faults("faulty_device", automation={"backoff": {"initial": "4s", "max": "4s"}}, resources={"min_vram": "1GiB"})
    driver.write_text("9")  # NVML_ERROR_DRIVER_NOT_LOADED
    runner = home.start("resume", "--config", home.config)
    wait_for(lambda: home.noticed() and home.run().state == "backing_off", "the first answer")
    runner.kill()
    runner.communicate()
    driver.unlink()
    home.resume()
    home.check_recovered([away])
    failed = home.failed("faulty_device")[0]["exception"]
    assert (failed["type"], failed["message"]) == ("NVMLError_DriverNotLoaded", "Driver Not Loaded")
    assert (home.committed("faulty_device") / "out.txt").read_text() == "faulty_device 11 GiB are free\n"


def test_a_gpu_that_is_lost_is_left_to_a_person(home: FaultyHome, driver: Path) -> None:
    """No retry repairs hardware: the run pauses with what to look at, and goes on when it is told to."""
    home.faults("faulty_device")
    driver.write_text("15")  # NVML_ERROR_GPU_IS_LOST
    said = home.resume("--config", home.config, expect=75)
    assert "temperature, power and seating" in said
    assert home.told() == [("faulty_device", "device_failed", "gpu-hardware")] and home.run().state == "paused"
    driver.unlink()
    home.resume()
    assert home.run().state == "completed"


def test_torch_without_cuda_is_left_to_a_person(home: FaultyHome) -> None:
    """What torch itself says when it shall compute on a GPU it was not built for."""
    import torch

    if torch.backends.cuda.is_built():
        pytest.skip("this torch was built for CUDA")
    home.faults("faulty_no_cuda")
    said = home.resume("--config", home.config, expect=75)
    assert "that torch was installed with CUDA" in said
    assert home.told() == [("faulty_no_cuda", "device_failed", "gpu-driver")] and home.run().state == "paused"


# Programs, data, and ends without a word ----------------------------------------------------------------------------


def test_programs_that_fail_and_processes_that_end(home: FaultyHome) -> None:
    """A cut-off shard, a failing program, a hang, a crash in native code, an exit code, a fault in the code; and a
    step that says all that and succeeds, which is no incident."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    home.faults("faulty_shard", "faulty_talk", "faulty_program", "faulty_hang", "faulty_segfault", "faulty_exit",
                "faulty_code", automation={"stall_timeout": "3s"})
    pq.write_table(pa.table({"text": ["a row"] * 100}), home.path / "shard.parquet")
    os.truncate(home.path / "shard.parquet", 300)
    assert len(killed_in_every_recovery(home, seed=6)) == 6
    home.check_recovered([
        ("faulty_shard", "data_invalid", "data-invalid"),
        ("faulty_program", "subprocess_failed", "subprocess-failed"),
        ("faulty_hang", "stalled", "stalled"),
        ("faulty_segfault", "crashed", "native-crash"),
        ("faulty_exit", "crashed", "unknown"),
        ("faulty_code", "crashed", "code-fault"),
    ])
    said = {step: home.failed(step)[0] for step in home.run().steps if step != "faulty_talk"}
    assert said["faulty_shard"]["exception"]["type"] == "ArrowInvalid"
    assert "returned non-zero exit status 3" in said["faulty_program"]["message"]
    assert "no sign of life for 3 s" in said["faulty_hang"]["message"]
    assert (said["faulty_segfault"]["signal"], said["faulty_exit"]["exit_code"]) == (11, 3)
    assert said["faulty_code"]["exception"]["type"] == "KeyError"
    assert [row["status"] for row in home.rows(schema.attempt, "faulty_talk")] == ["committed"]
