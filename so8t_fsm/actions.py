"""The closed vocabulary of actions: what each would do now, and doing it.

An action has two halves.  ``plan`` looks and decides, writing nothing: its :class:`Intent` is journalled first, and is
what a dry run prints.  ``perform`` carries an intent out and may be called again with the same one after a crash: it
leaves the same world as once.  Settings are changed by an override layer in the database, never in a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from so8t_fsm.commits import Commits
from so8t_fsm.config import format_value
from so8t_fsm.store import Run, Store

BATCH_SIZE = {"training": "training.batch_size", "evaluating": "benchmark.batch_size"}
"""Which setting is a state's micro-batch; the other states have none."""

ACCUMULATION = {"training.batch_size": "training.gradient_accumulation_steps"}


class Interrupted(Exception):
    """A stop was asked for while an action was at work; it is carried out again when the run goes on."""


@dataclass(frozen=True)
class Scene:
    """Where an action acts.

    Attributes:
        values: the run's effective settings, section by section.
        state: the working state of the step that failed.
        step: its name.
        by: the id of the rule, for the provenance of overrides.
        lease: epoch and seconds, to write under.
        beat: renews the lease; to be called at least once a second by an action that takes time.  It raises
            :class:`Interrupted` when the runner is asked to stop.
    """

    store: Store
    home: Path
    run: Run
    commits: Commits
    values: Mapping[str, Any]
    state: str
    step: str
    by: str
    lease: tuple[int, float]
    beat: Callable[[], None] = lambda: None

    def setting(self, key: str) -> Any:
        """An effective setting by its dotted key; None where there is none."""
        found: Any = self.values
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                return None
            found = found[part]
        return found


@dataclass(frozen=True)
class Intent:
    """What an action is about to do; plain JSON, so that it survives a crash.

    Attributes:
        words: for a person.
        settings: dotted key to [value before, value after].
        data: what else ``perform`` needs.
        skip: there is nothing to do, for the reason in ``words``.
    """

    words: str
    settings: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    skip: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Intent:
        settings = {key: (pair[0], pair[1]) for key, pair in stored.get("settings", {}).items()}
        return cls(stored["words"], settings, stored.get("data", {}), stored.get("skip", False))


@dataclass(frozen=True)
class Outcome:
    """How it ended.  ``needs_person`` stops the recovery: what is wrong can't be put right here."""

    status: Literal["done", "skipped", "failed"]
    words: str
    data: Mapping[str, Any] = field(default_factory=dict)
    needs_person: bool = False


Plan = Callable[[Scene, Mapping[str, Any]], Intent]
Perform = Callable[[Scene, Intent], Outcome]


def set_only(_scene: Scene, intent: Intent) -> Outcome:
    """The whole effect is in ``intent.settings``, which the journal writes together with this outcome."""
    return Outcome("done", intent.words)


def _skip(why: str) -> Intent:
    return Intent(why, skip=True)


def _change(key: str, was: Any, value: Any) -> Intent:
    return Intent(f"{key} {format_value(was)} → {format_value(value)}", {key: (was, value)})


def reduce_batch_size(scene: Scene, args: Mapping[str, Any]) -> Intent:
    """Fewer sequences at once; accumulation makes up for it exactly, so the optimiser sees the same batch."""
    key = BATCH_SIZE.get(scene.state)
    if key is None:
        return _skip(f"{scene.state} works on no batches")
    size = scene.setting(key)
    if not isinstance(size, int):
        return _skip(f"there is no setting {key}")
    goal = max(int(args["min"]), math.floor(size * float(args["factor"])))
    if goal >= size:
        return _skip(f"{key} is {size} already")
    partner = ACCUMULATION.get(key)
    accumulation = scene.setting(partner) if partner else None
    if not args["keep_effective_batch"] or not isinstance(accumulation, int) or partner is None:
        return _change(key, size, goal)
    effective = size * accumulation
    fitting = next((n for n in range(goal, int(args["min"]) - 1, -1) if effective % n == 0), None)
    if fitting is None:
        return _skip(f"no smaller {key} divides the effective batch of {effective}")
    made_up = effective // fitting
    return Intent(
        f"{key} {size} → {fitting}, {partner} {accumulation} → {made_up}: the effective batch stays {effective}",
        {key: (size, fitting), partner: (accumulation, made_up)},
    )


def _scaled(key: str, integer: bool) -> Plan:
    def plan(scene: Scene, args: Mapping[str, Any]) -> Intent:
        was = scene.setting(key)
        if not isinstance(was, (int, float)) or isinstance(was, bool) or was <= 0:
            return _skip(f"{key} has no size to reduce")
        value = was * float(args["factor"])
        value = max(args["min"], math.floor(value) if integer else value)
        return _change(key, was, value) if value < was else _skip(f"{key} is {format_value(was)} already")

    return plan


def reduce_dataset_size(scene: Scene, args: Mapping[str, Any]) -> Intent:
    """Fewer samples: of each source while they are collected, of the prompts in training.

    The other steps take what these have committed.  The reason stays in the override.
    """
    if scene.state == "collecting":
        return _scaled("data.max_samples", True)(scene, args)
    if scene.state != "training":
        return _skip(f"{scene.state} takes the samples that are committed")
    limit = scene.setting("training.max_samples")
    if limit is None:
        return _skip("there is no setting training.max_samples")
    if limit:
        return _scaled("training.max_samples", True)(scene, args)
    ceiling = scene.setting("data.max_samples")
    if not isinstance(ceiling, int):
        return _skip("nobody knows how many samples there are")
    value = max(int(args["min"]), math.floor(ceiling * float(args["factor"])))
    return Intent(f"training.max_samples 0 (all) → {value}", {"training.max_samples": (0, value)})


def enable_gradient_checkpointing(scene: Scene, _args: Mapping[str, Any]) -> Intent:
    key = "training.gradient_checkpointing"
    was = scene.setting(key)
    if was is None:
        return _skip(f"there is no setting {key}")
    return _skip(f"{key} is on already") if was else Intent(f"{key} false → true", {key: (False, True)})


def switch_endpoint(scene: Scene, _args: Mapping[str, Any]) -> Intent:
    """The next of ``resources.hub_endpoints``; the first one is the one in use."""
    key = "resources.hub_endpoints"
    mirrors = list(scene.setting(key) or ())
    if len(mirrors) < 2:
        return _skip(f"{key} names no other mirror")
    turned = [*mirrors[1:], mirrors[0]]
    return Intent(f"the Hub is asked at {turned[0]} instead of {mirrors[0]}", {key: (mirrors, turned)})


def retry_with_backoff(_scene: Scene, _args: Mapping[str, Any]) -> Intent:
    return Intent("try again after the wait")


def pause(_scene: Scene, args: Mapping[str, Any]) -> Intent:
    return Intent(args.get("reason") or "paused by a rule")


def _pause(_scene: Scene, intent: Intent) -> Outcome:
    return Outcome("done", intent.words, needs_person=True)


def vocabulary() -> dict[str, tuple[Plan, Perform]]:
    """Every action by name: its plan and its performance."""
    from so8t_fsm import actions_files as files
    from so8t_fsm import actions_host as computer

    return {
        "reduce_batch_size": (reduce_batch_size, set_only),
        "reduce_dataset_size": (reduce_dataset_size, set_only),
        "lower_learning_rate": (_scaled("training.learning_rate", False), set_only),
        "shorten_sequence": (_scaled("training.max_length", True), set_only),
        "enable_gradient_checkpointing": (enable_gradient_checkpointing, set_only),
        "switch_endpoint": (switch_endpoint, set_only),
        "retry_with_backoff": (retry_with_backoff, set_only),
        "clear_gpu_cache": (computer.plan_clear_gpu, computer.clear_gpu),
        "verify_hf_token": (computer.plan_token, computer.verify_token),
        "install_dependencies": (computer.plan_dependencies, computer.install_dependencies),
        "verify_paths": (computer.plan_paths, computer.verify_paths),
        "cleanup_temp_files": (files.plan_cleanup, files.cleanup),
        "resume_download": (files.plan_download, files.resume_download),
        "move_to_storage": (files.plan_move, files.move_to_storage),
        "rollback_checkpoint": (files.plan_rollback, files.leave_out),
        "restart_step": (files.plan_restart, files.leave_out),
        "pause": (pause, _pause),
    }
