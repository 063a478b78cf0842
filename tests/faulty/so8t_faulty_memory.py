"""Steps that take memory in proportion to ``training.batch_size``, under a limit that only a smaller batch fits."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from so8t_faulty import Faulty, FaultySettings

from so8t_fsm.step import StepContext


def limit_address_space(bytes_more: int) -> None:
    """Allow this process so many bytes more than it has mapped now."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + bytes_more, resource.RLIM_INFINITY))


class Memory(Faulty):
    """Takes a unit of memory per sample; the limit lies half a unit above :attr:`fits` samples."""

    fits: ClassVar[int]
    state = "training"
    reads = ()

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        size = int(ctx.config["training"]["batch_size"]) * faulty.unit
        self.take(size, self.fits * faulty.unit + faulty.unit // 2, faulty)
        return "fits"

    def take(self, size: int, limit: int, faulty: FaultySettings) -> None:
        """Allocate and touch ``size`` bytes under ``limit``."""
        raise NotImplementedError


class Numpy(Memory):
    name, fits = "faulty_numpy", 8

    def take(self, size: int, limit: int, faulty: FaultySettings) -> None:
        import numpy as np

        limit_address_space(limit)
        np.ones(size, dtype=np.uint8)


class Torch(Memory):
    name, fits = "faulty_torch", 4

    def take(self, size: int, limit: int, faulty: FaultySettings) -> None:
        import torch

        limit_address_space(limit)
        torch.ones(size, dtype=torch.uint8)


class Worker(Memory):
    """The program it calls runs out of memory, and says so only in its own words; then the call fails as well."""

    name, fits = "faulty_worker", 2

    def take(self, size: int, limit: int, faulty: FaultySettings) -> None:
        code = "import sys, so8t_faulty_memory as m; m.limit_address_space(int(sys.argv[2])); bytes(int(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, str(size), str(limit)], check=True)


class Bytes(Memory):
    name, fits = "faulty_bytes", 8

    def take(self, size: int, limit: int, faulty: FaultySettings) -> None:
        limit_address_space(limit)
        bytearray(size)


class Killed(Memory):
    """Killed by the kernel for what it takes above the limit of its cgroup; where none can be had, by itself."""

    name, fits = "faulty_killed", 1

    def take(self, size: int, limit: int, faulty: FaultySettings) -> None:
        if not faulty.cgroup:
            if size > limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return
        group = Path(faulty.cgroup)
        # Version 1 and version 2 of the kernel's interface.
        old = group / "memory.limit_in_bytes"
        (old if old.exists() else group / "memory.max").write_text(str(limit))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        bytearray(b"x") * size
