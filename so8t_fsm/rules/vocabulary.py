"""The closed vocabulary of actions, with the arguments each takes.  What each does is in ``actions.py``.

An action that is not here cannot be written into a rule, so no rule can make the machine do what it was not made for.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ByteSize, Field, create_model

from so8t_fsm.settings import Duration
from so8t_fsm.step import Settings


class ReduceBatchSize(Settings):
    """Multiply the micro-batch and make up for it by accumulation."""

    factor: float = Field(default=0.5, gt=0, lt=1, description="What the micro-batch is multiplied by.")
    min: int = Field(default=1, ge=1, description="The smallest micro-batch.")
    keep_effective_batch: bool = Field(
        default=True, description="Raise gradient accumulation so that the optimiser sees as many samples a step.")


class ClearGpuCache(Settings):
    """Wait until the memory of the dead child is free again."""

    wait: Duration = Field(default=60.0, gt=0, description="How long to wait for the driver to free it.")


class CleanupTempFiles(Settings):
    """Delete what is declared disposable, and nothing else."""

    keep_checkpoints: int = Field(default=2, ge=1, description="Newest verified checkpoints of a step that stay.")
    free: ByteSize = Field(default=ByteSize(0), ge=0, description="Stop when so much is free; 0 deletes all of it.")


class ReduceDatasetSize(Settings):
    """Use fewer samples, and keep the reason."""

    factor: float = Field(default=0.5, gt=0, lt=1, description="What the number of samples is multiplied by.")
    min: int = Field(default=1000, ge=1, description="The fewest samples.")


class RetryWithBackoff(Settings):
    """Wait as the rule's ``backoff`` says, then try again."""

    honour_retry_after: bool = Field(default=True, description="Wait at least as long as the server asked for.")
    max_retry_after: Duration = Field(default=3600.0, gt=0, description="Believe no server that asks for more.")


class VerifyHfToken(Settings):
    """Ask the Hub who the token is and what it may do."""

    needs: Literal["read", "write"] = Field(default="read", description="The right the token must have.")


class InstallDependencies(Settings):
    """Install what the project itself pins; a name found in a log is never installed."""

    upgrade: bool = Field(default=False, description="Also bring installed packages to their pinned versions.")


class VerifyPaths(Settings):
    """Look whether the paths of the configuration are there."""

    create: bool = Field(default=True, description="Create those that are the machine's own.")


class ResumeDownload(Settings):
    """Go on with a download that was cut."""

    discard_partial: bool = Field(default=False, description="Throw away what is there of the file and start it again.")


class SwitchEndpoint(Settings):
    """Use the next of the mirrors in the configuration."""


class MoveToStorage(Settings):
    """Move artefacts to the second storage in the configuration."""

    what: Literal["checkpoints", "artifacts", "all"] = Field(default="checkpoints", description="What is moved.")


class RollbackCheckpoint(Settings):
    """Put the newest checkpoints aside and go on from an older one."""

    steps: int = Field(default=1, ge=1, description="How many checkpoints to go back.")


class LowerLearningRate(Settings):
    """Multiply the learning rate."""

    factor: float = Field(default=0.5, gt=0, lt=1, description="What the learning rate is multiplied by.")
    min: float = Field(default=1e-8, gt=0, description="The smallest learning rate.")


class ShortenSequence(Settings):
    """Cut training sequences shorter."""

    factor: float = Field(default=0.5, gt=0, lt=1, description="What the sequence length is multiplied by.")
    min: int = Field(default=128, ge=1, description="The shortest length in tokens.")


class EnableGradientCheckpointing(Settings):
    """Recompute activations in the backward pass: slower, but a fraction of the memory."""


# ``from`` is a word of Python's, so this one is made by a call.
_FROM: dict[str, Any] = {"from": (Literal["checkpoint", "beginning"], Field(
    default="checkpoint", description="Where it starts: the newest checkpoint that verifies, or afresh."))}
RestartStep = create_model("RestartStep", __base__=Settings, __doc__="Run the step again.", **_FROM)


class Pause(Settings):
    """Stop and wait for a person."""

    reason: str = Field(default="", description="What the person is told.")


ACTIONS: dict[str, type[Settings]] = {
    "reduce_batch_size": ReduceBatchSize, "clear_gpu_cache": ClearGpuCache, "cleanup_temp_files": CleanupTempFiles,
    "reduce_dataset_size": ReduceDatasetSize, "retry_with_backoff": RetryWithBackoff, "verify_hf_token": VerifyHfToken,
    "install_dependencies": InstallDependencies, "verify_paths": VerifyPaths, "resume_download": ResumeDownload,
    "switch_endpoint": SwitchEndpoint, "move_to_storage": MoveToStorage, "rollback_checkpoint": RollbackCheckpoint,
    "lower_learning_rate": LowerLearningRate, "shorten_sequence": ShortenSequence,
    "enable_gradient_checkpointing": EnableGradientCheckpointing, "restart_step": RestartStep, "pause": Pause,
}
"""Every action, by the name it has in YAML."""
