"""A third party's steps whose faults are real: the library, the kernel or the network says no, not the step.

A fault that cannot end by itself ends when what caused it is changed: by a recovery rule, or by whoever made it.  One
that has no lasting cause (a crash, a hang) happens in the first attempt only.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

from pydantic import Field

from so8t_fsm.step import MiB, Settings, Step, StepContext

TALK = """\
Retrying in 1s [Retry 1/5]. ConnectError: [Errno 111] Connection refused
fatal: not a git repository (or any of the parent directories): .git
make: [Makefile:9: clean] Error 1 (ignored)
RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB
OSError: [Errno 28] No space left on device
subprocess.CalledProcessError: Command '['x']' returned non-zero exit status 1.
loss is nan
Segmentation fault (core dumped)
Killed
"""
"""What a step may print and still succeed; the worst of these lines end a night when nobody knows how it ended."""


class FaultySettings(Settings):
    """How large the faults are."""

    unit: int = Field(24 * MiB, ge=1, description="Bytes one sample of a batch takes.")
    spill: int = Field(13 * MiB, ge=1, description="Bytes the disk steps write at once.")
    cgroup: str = Field("", description="A memory cgroup for the step that the kernel kills; empty: it kills itself.")
    module: str = Field("", description="The module that faulty_module needs.")
    device: str = Field("cpu", description="Where faulty_learn learns.")


class Faulty(Step):
    """Commits one small file; what goes wrong on the way is in :meth:`work`."""

    sections = {"faulty": FaultySettings}
    reads = ("faulty",)

    def run(self, ctx: StepContext) -> None:
        text = self.work(ctx, ctx.section("faulty", FaultySettings))
        (ctx.out / "out.txt").write_text(f"{self.name} {text}\n", encoding="utf-8")

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        """What is committed; it does not depend on how often the step was tried."""
        raise NotImplementedError


def wait_at_gate(ctx: StepContext) -> None:
    """Until the test takes this attempt's file away."""
    gate = ctx.home / f"gate-{ctx.attempt}"
    gate.touch()
    while gate.exists():
        ctx.stop_if_asked()
        time.sleep(0.02)


class Hub(Faulty):
    """Downloads one file with the real client, from wherever ``HF_ENDPOINT`` points."""

    name, state = "faulty_hub", "collecting"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        from huggingface_hub import HfApi, hf_hub_download

        commit = HfApi().model_info("so8t/faulty", timeout=1.0).sha
        path = hf_hub_download("so8t/faulty", "weights.bin", revision=commit)
        return f"{Path(path).stat().st_size} bytes at {commit}"


class Shard(Faulty):
    """Reads a Parquet shard from its cache, makes it where there is none, and puts a damaged one aside."""

    name, state = "faulty_shard", "preprocessing"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        import pyarrow as pa
        import pyarrow.parquet as pq

        shard = ctx.home / "shard.parquet"
        if not shard.exists():
            pq.write_table(pa.table({"text": [f"row {i}" for i in range(100)]}), shard)
        try:
            return f"{pq.read_table(shard).num_rows} rows"
        except pa.ArrowInvalid:
            shard.rename(shard.with_suffix(".damaged"))
            raise


class Module(Faulty):
    """Needs a Python package."""

    name, state = "faulty_module", "preprocessing"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        import importlib

        return str(importlib.import_module(faulty.module).ANSWER)


class Talk(Faulty):
    """Succeeds, and says things on the way that only look like failures."""

    name, state = "faulty_talk", "preprocessing"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        print(TALK, flush=True)
        try:
            bytearray(1 << 62)
        except MemoryError:
            traceback.print_exc()  # caught, and survived
        return "no harm"


class Loss(Faulty):
    """Gradient descent on 70/2·w², which diverges when the learning rate is above 2/70; then sampling from its logits.

    The failure is torch's own: a distribution over what is not a number.
    """

    name, state = "faulty_loss", "training"
    ROUNDS = 160

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        import torch

        done, weight = 0, torch.nn.Parameter(torch.ones(2))
        if ctx.checkpoint:
            first, *values = (ctx.checkpoint / "state.txt").read_text().split()
            done, weight = int(first), torch.nn.Parameter(torch.tensor([float(value) for value in values]))
        optimiser = torch.optim.SGD([weight], lr=float(ctx.config["training"]["learning_rate"]))
        while done < self.ROUNDS:
            optimiser.zero_grad()
            (35.0 * weight.square().sum()).backward()
            optimiser.step()
            torch.distributions.Categorical(logits=weight).sample()
            done += 1
            ctx.progress(done, self.ROUNDS, "rounds")
            if done in (5, 10):
                state = f"{done} {' '.join(repr(value) for value in weight.tolist())}"
                ctx.save_checkpoint(lambda folder, state=state: self._keep(folder, state), done)
        return f"converged: {bool(weight.abs().max() < 1)}"

    @staticmethod
    def _keep(folder: Path, state: str) -> None:
        (folder / "state.txt").write_text(state)


class Device(Faulty):
    """Asks the GPU's driver how much memory is free, through NVIDIA's own client."""

    name, state = "faulty_device", "training"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        import pynvml

        pynvml.nvmlInit()
        try:
            return f"{pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).free >> 30} GiB are free"
        finally:
            pynvml.nvmlShutdown()


class NoCuda(Faulty):
    """Wants torch to compute on a GPU, which a build for CPUs refuses."""

    name, state = "faulty_no_cuda", "training"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        import torch

        return f"{torch.ones(2, device='cuda').sum().item():g} on the GPU"


class Program(Faulty):
    """Calls a real program, which fails until it has made its cache."""

    name, state = "faulty_program", "integrating"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        cache = ctx.home / "program-cache"
        code = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); made = p.exists(); p.touch(); sys.exit(0 if made else 3)"
        subprocess.run([sys.executable, "-c", code, str(cache)], check=True)
        return "converted"


class Hang(Faulty):
    """Takes a lock twice."""

    name, state = "faulty_hang", "evaluating"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        lock = threading.Lock()
        lock.acquire()
        if ctx.attempt == 1:
            lock.acquire()
        return "free"


class Segfault(Faulty):
    """Reads from address zero."""

    name, state = "faulty_segfault", "evaluating"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        if ctx.attempt == 1:
            ctypes.string_at(0)
        return "alive"


class Exit(Faulty):
    """Ends without a word."""

    name, state = "faulty_exit", "evaluating"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        if ctx.attempt == 1:
            os._exit(3)
        return "returned"


class Gate(Faulty):
    """Waits until its file of this attempt is taken away, then ends without a word."""

    name, state = "faulty_gate", "evaluating"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        wait_at_gate(ctx)
        os._exit(4)


class Code(Faulty):
    """A fault in the code that depends on the moment: a key another thread has not written yet."""

    name, state = "faulty_code", "evaluating"

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        shared: dict[str, int] = {}
        writer = threading.Thread(target=lambda: (time.sleep(0.2 if ctx.attempt == 1 else 0.0), shared.update(label=1)))
        writer.start()
        if ctx.attempt > 1:
            writer.join()
        return f"label {shared['label']}"
