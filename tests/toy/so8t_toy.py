"""A third party's steps: they drive the machine in milliseconds, and misbehave on request.

They plug in exactly as a stranger's package would: by the entry-point group in the neighbouring dist-info.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

from pydantic import Field

from so8t_fsm.step import Needs, Settings, Step, StepContext, StepFailure


class ToySettings(Settings):
    """How the toys behave."""

    seed: int = Field(1, description="Changes what the toys write.")
    items: int = Field(20, ge=1, description="How many rounds toy_train works.")
    pause: float = Field(0.0, ge=0, description="Seconds a round takes.")
    every_checkpoint: bool = Field(False, description="Save after every round, whatever the clock says.")
    fault: str = Field("", description="What goes wrong: see misbehave().")
    fault_step: str = Field("toy_train", description="In which step.")
    fault_times: int = Field(1, ge=0, description="How many attempts it spoils.")
    fault_after: int = Field(0, ge=0, description="In toy_train: after how many rounds; 0: at the start.")
    need_disk: int = Field(0, ge=0, description="Bytes of disk toy_train says it needs.")
    need_file: str = Field("", description="A path that must exist before the fault goes away.")


def misbehave(ctx: StepContext, toy: ToySettings) -> None:
    """Do what ``toy.fault`` says, in the step and the attempts it names."""
    if toy.fault_step != ctx.step or not toy.fault or ctx.attempt > toy.fault_times:
        return
    if toy.need_file and Path(toy.need_file).exists():
        return
    kind = toy.fault
    if kind == "exception":
        raise RuntimeError("the toy broke")
    if kind == "memory":
        raise MemoryError("toy memory")
    if kind == "disk":
        raise OSError(28, "No space left on device")
    if kind == "diverged":
        raise StepFailure("loss is nan", state="diverged", hint="lower the learning rate")
    if kind == "exit":
        os._exit(3)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "hang":
        time.sleep(3600)
    if kind == "deaf":
        while True:
            time.sleep(0.1)
            print("working", flush=True)
    if kind == "noise":
        for i in range(2000):
            print(f"line {i} " + "x" * 200)
        return
    raise ValueError(kind)


class Toy(Step):
    """Writes one file that depends on the seed and on what it was given."""

    sections = {"toy": ToySettings}
    reads = ("toy.seed",)

    def run(self, ctx: StepContext) -> None:
        toy = ctx.section("toy", ToySettings)
        if not toy.fault_after:
            misbehave(ctx, toy)
        self.work(ctx, toy)
        digest = hashlib.sha256(f"{self.name} {toy.seed}".encode())
        for name in sorted(self.uses):
            digest.update((ctx.inputs[name] / "out.txt").read_bytes())
        (ctx.out / "out.txt").write_text(digest.hexdigest() + "\n")
        (ctx.out / "deep").mkdir()
        (ctx.out / "deep" / "more.bin").write_bytes(bytes(range(256)) * 4)
        ctx.volatile(ctx.out / "when.txt").write_text(f"{time.time()}\n")

    def work(self, ctx: StepContext, toy: ToySettings) -> None:
        ctx.progress(1, 1)


class ToyCollect(Toy):
    name, state = "toy_collect", "collecting"


class ToyExtra(Toy):
    name, state, uses = "toy_extra", "collecting", ("toy_collect",)


class ToyPreprocess(Toy):
    name, state, uses = "toy_preprocess", "preprocessing", ("toy_collect",)


class ToyTrain(Toy):
    name, state, uses = "toy_train", "training", ("toy_preprocess",)
    reads = ("toy.seed", "toy.items")

    def needs(self, config: object, home: Path, out: Path) -> Needs:
        return Needs(disk={out: int(config["toy"]["need_disk"])})  # type: ignore[index]

    def work(self, ctx: StepContext, toy: ToySettings) -> None:
        """A fold over rounds whose value shows any round lost or done twice."""
        done, value = 0, hashlib.sha256(b"start").hexdigest()
        if ctx.checkpoint:
            first, value = (ctx.checkpoint / "state.txt").read_text().split()
            done = int(first)
        begun = done
        while done < toy.items:
            value = hashlib.sha256(f"{value} {done}".encode()).hexdigest()
            done += 1
            if toy.pause:
                time.sleep(toy.pause)
            ctx.progress(done, toy.items, "rounds")
            if toy.fault_after and done - begun == toy.fault_after:
                misbehave(ctx, toy)

            def write(directory: Path, done: int = done, value: str = value) -> None:
                (directory / "state.txt").write_text(f"{done} {value}")

            if toy.every_checkpoint:
                ctx.save_checkpoint(write, done)
            else:
                ctx.maybe_checkpoint(write, done)
        (ctx.out / "model.txt").write_text(value)


class ToyIntegrate(Toy):
    name, state, uses = "toy_integrate", "integrating", ("toy_train",)


class ToyEvaluate(Toy):
    name, state, uses = "toy_evaluate", "evaluating", ("toy_train", "toy_preprocess")


class ToyUpload(Toy):
    name, state, uses = "toy_upload", "uploading", ("toy_integrate", "toy_evaluate")


class ToyCleanup(Toy):
    name, state, uses = "toy_cleanup", "cleaning_up", ("toy_upload",)


if __name__ == "__main__":
    sys.exit("these are steps, not a program")
