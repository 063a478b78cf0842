"""Steps that keep checkpoints and then write more than fits beside them, each with a writer of its own.

Once the older checkpoints are deleted there is room.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from so8t_faulty import Faulty, FaultySettings, wait_at_gate

from so8t_fsm.step import MiB, Needs, StepContext


class Disk(Faulty):
    """Four checkpoints, then ``faulty.spill`` bytes of random data below its scratch directory."""

    state = "training"
    CHECKPOINT = 3 * MiB

    def needs(self, config: Mapping[str, Mapping[str, Any]], home: Path, out: Path) -> Needs:
        """Too little: what it will write is not known before."""
        return Needs(disk={out: MiB})

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        for position in range(1, 5):
            if ctx.checkpoint is None:
                ctx.save_checkpoint(lambda folder: self._keep(folder), position)
        self.write(ctx.scratch / "spill", os.urandom(faulty.spill))
        return "written"

    def _keep(self, folder: Path) -> None:
        (folder / "state.bin").write_bytes(os.urandom(self.CHECKPOINT))

    def write(self, path: Path, data: bytes) -> None:
        raise NotImplementedError


class Safetensors(Disk):
    name = "faulty_safetensors"

    def write(self, path: Path, data: bytes) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        save_file({"weight": np.frombuffer(data, dtype=np.uint8)}, path)


class TorchSave(Disk):
    """torch notices a full disk only by not being where it should be in its file."""

    name = "faulty_torch_save"

    def write(self, path: Path, data: bytes) -> None:
        import torch

        torch.save({"weight": torch.frombuffer(bytearray(data), dtype=torch.uint8)}, path)


class Parquet(Disk):
    name = "faulty_parquet"

    def write(self, path: Path, data: bytes) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [data[i : i + MiB] for i in range(0, len(data), MiB)]
        pq.write_table(pa.table({"media": rows}), path, compression="none")


class File(Disk):
    name = "faulty_file"

    def write(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)


class Mute(Disk):
    """A program that ends when it cannot write, and does not say why."""

    name = "faulty_mute"

    def write(self, path: Path, data: bytes) -> None:
        try:
            path.write_bytes(data)
        except OSError:
            os._exit(3)


class Patient(Disk):
    """Writes next to nothing, and takes its time: until a file is taken away."""

    name = "faulty_patient"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        wait_at_gate(ctx)
        return "waited"


class Strict(logging.FileHandler):
    """Raises what it meets, where logging would print it and go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


class Log(Disk):
    """A log that grows without bound."""

    name = "faulty_log"

    def write(self, path: Path, data: bytes) -> None:
        log = logging.getLogger(self.name)
        log.propagate = False
        log.addHandler(Strict(path))
        for i in range(0, len(data), 4096):
            log.info("%s", data[i : i + 2048].hex())
