"""The machine's own four sections of the configuration: automation, resources, logging, notifications."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, ByteSize, Field, SecretStr, field_validator, model_validator

from so8t_fsm.step import GiB, MiB, Settings

STEPS = ("collecting", "preprocessing", "training", "integrating", "evaluating", "uploading", "cleaning_up")
"""The seven steps, in order."""

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: object) -> object:
    """``"3m"``, ``"180s"``, ``"1h30m"``, ``"500 ms"`` or a plain number, in seconds.  Other types are left to pydantic.

    Raises:
        ValueError: text that is no duration.
    """
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", text)
    if parts and re.fullmatch(r"(?:\d+(?:\.\d+)?\s*(?:ms|s|m|h|d)\s*)+", text):
        return math.fsum(float(number) * UNITS[unit] for number, unit in parts)
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a duration such as 30s, 3m, 1h30m, or a number of seconds") from None


Duration = Annotated[float, BeforeValidator(parse_duration), Field(allow_inf_nan=False)]
"""Seconds; written as a number or with units (``ms``, ``s``, ``m``, ``h``, ``d``)."""


class BackoffSettings(Settings):
    """How long the machine waits before it tries again; each wait doubles."""

    initial: Duration = Field(default=5.0, gt=0, description="The first wait after a failure.")
    max: Duration = Field(
        default=3600.0, gt=0,
        description="The longest wait, also by a recovery rule; only a server may ask for a longer one.")

    @model_validator(mode="after")
    def _ordered(self) -> BackoffSettings:
        if self.max < self.initial:
            raise ValueError("max must not be shorter than initial")
        return self


class AutomationSettings(Settings):
    """Which steps run, and how the machine keeps them alive."""

    steps: tuple[str, ...] = Field(
        default=STEPS, min_length=1,
        description="The steps to run, by name; each step knows which state it belongs to, and a package of your "
        "own may bring further ones.")
    on_config_change: Literal["keep", "rerun"] = Field(
        default="keep",
        description="When the files changed while a run was under way: `keep` its settings, or `rerun` what the "
        "change makes stale.")
    checkpoint_interval: Duration = Field(
        default=180.0, gt=0, description="Wall-clock time between checkpoints inside a step.")
    keep_checkpoints: int = Field(default=5, ge=1, description="How many verified checkpoints of a step are kept.")
    stop_grace: Duration = Field(
        default=25.0, gt=0,
        description="How long a step may take to save itself when it is asked to stop, before it is killed.")
    lease_seconds: Duration = Field(
        default=30.0, gt=0, description="How long a runner that went silent keeps its claim on the run.")
    heartbeat_seconds: Duration = Field(default=5.0, gt=0, description="How often a living runner renews that claim.")
    max_attempts_without_progress: int = Field(
        default=3, ge=1, description="After so many tries of a step without observed progress a person is asked.")
    backoff: BackoffSettings = Field(
        default=BackoffSettings(), description="Waiting between tries that no recovery rule speaks of.")
    stall_timeout: Duration = Field(
        default=1800.0, gt=0, description="A step that reports no progress for so long counts as stalled.")

    @field_validator("steps")
    @classmethod
    def _once(cls, steps: tuple[str, ...]) -> tuple[str, ...]:
        for name in steps:
            if steps.count(name) > 1:
                raise ValueError(f"the step '{name}' is listed twice")
        return steps

    @model_validator(mode="after")
    def _heartbeat_fits(self) -> AutomationSettings:
        if 2 * self.heartbeat_seconds > self.lease_seconds:
            raise ValueError("heartbeat_seconds must be at most half of lease_seconds, or one late beat loses the run")
        return self


class ResourceSettings(Settings):
    """What must be free on the machine, beyond what a step asks for itself."""

    min_free_disk: ByteSize = Field(
        default=ByteSize(1 * GiB), ge=0,
        description="Disk space that always stays free where the state is kept; below it the run waits.")
    min_ram: ByteSize = Field(
        default=ByteSize(256 * MiB), ge=0, description="Free memory below which no step is started.")
    min_vram: ByteSize = Field(
        default=ByteSize(0), ge=0,
        description="Free GPU memory below which a step is warned to be slow or run out; 0 does not ask.")
    poll_interval: Duration = Field(
        default=30.0, gt=0, description="How often a waiting run looks whether it may go on.")
    hub_endpoints: tuple[str, ...] = Field(
        default=(),
        description="Addresses of the Hub and its mirrors, the first one in use; empty means the client's own default. "
        "Recovery may switch to the next.")
    second_storage: str = Field(
        default="",
        description="A directory on another disk to which recovery may move checkpoints and artefacts when this one "
        "is full; empty means none.")
    probe_interval: Duration = Field(
        default=10.0, gt=0, description="How often disk, memory and GPU are measured while a step runs.")


class LoggingSettings(Settings):
    """Where the logs go and how large they grow."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe line that is written.")
    directory: str = Field(
        default="logs", min_length=1, description="Where the logs are written; relative to the home.")
    max_bytes: ByteSize = Field(
        default=ByteSize(20 * MiB), ge=4096, description="A log file that reaches this size is rotated.")
    backups: int = Field(default=5, ge=0, description="How many rotated files of each log are kept.")

    @field_validator("level", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


class NotificationSettings(Settings):
    """Who is told when something needs a person.

    Addresses hold tokens, so keep them out of the YAML and put them into the environment, separated by spaces:
    `SO8T__NOTIFICATIONS__URLS="discord://… mailto://…"`. They are never printed, logged, or stored in the database.
    """

    urls: tuple[SecretStr, ...] = Field(
        default=(), description="Apprise addresses to notify; a secret, best set by `SO8T__NOTIFICATIONS__URLS`.")
    desktop: bool = Field(default=False, description="Also show a notification on this machine's desktop.")
    min_severity: Literal["info", "warning", "critical"] = Field(
        default="warning", description="The least severe event to tell.")

    @field_validator("urls", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else () if value is None else value


MACHINE_SECTIONS: Mapping[str, type[Settings]] = {
    "automation": AutomationSettings, "resources": ResourceSettings,
    "logging": LoggingSettings, "notifications": NotificationSettings,
}
