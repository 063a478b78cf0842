"""Everything PPO would forget when killed, in one object that is saved and restored whole.

``state.safetensors`` holds the tensors (adapter, value head, optimizer moments, torch's random state), ``state.json``
the rest.  No pickle: a checkpoint is data.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from so8t_fsm.step import StepFailure
from so8t_ops.training.adapters import adapter_tensors
from so8t_ops.training.journal import Curve
from so8t_ops.training.ppo_math import KLController
from so8t_ops.training.rollout import ValueHead

FORMAT = 1


@dataclass
class DataOrder:
    """Endless seeded passes over n prompts; the position says all, a pass's order is a function of (seed, pass)."""

    n: int
    seed: int
    position: int = 0

    def take(self, count: int) -> list[int]:
        """The next ``count`` indices; a new pass begins where the last one ends."""
        chosen = []
        while len(chosen) < count:
            turn, offset = divmod(self.position, self.n)
            order = list(range(self.n))
            random.Random(f"{self.seed}:{turn}").shuffle(order)
            piece = order[offset : offset + count - len(chosen)]
            chosen += piece
            self.position += len(piece)
        return chosen


@dataclass
class PPOState:
    """The whole of a PPO run between two updates.

    Attributes:
        model: the PEFT model; its adapter is the policy.
        head: the value head.
        optimizer: AdamW over both.  The learning rate is a function of the update and the settings and is not state:
            a recovery that lowers it takes effect at the next update.
        kl: the adaptive weight of the divergence.
        order: where in the data the next rollout begins.
        update: updates done.
        curve: one mapping of measurements per update done.
    """

    model: Any
    head: ValueHead
    optimizer: torch.optim.Optimizer
    kl: KLController
    order: DataOrder
    update: int = 0
    curve: Curve = field(default_factory=list)

    def save(self, directory: Path) -> None:
        """Write the two files."""
        tensors = {f"adapter.{k}": v for k, v in adapter_tensors(self.model).items()}
        tensors |= {f"head.{k}": v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}
        moments = self.optimizer.state_dict()
        for index, state in moments["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v.detach().cpu().contiguous() for k, v in state.items()}
        tensors["rng.torch"] = torch.get_rng_state()
        for index, state in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []):
            tensors[f"rng.cuda.{index}"] = state
        name, keys, *rest = np.random.get_state()
        facts = {
            "format": FORMAT, "update": self.update, "curve": self.curve, "beta": self.kl.beta,
            "prompts": self.order.n, "seed": self.order.seed, "position": self.order.position,
            "python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest],
        }
        save_file(tensors, directory / "state.safetensors")
        (directory / "state.json").write_text(json.dumps(facts, sort_keys=True), encoding="utf-8", newline="\n")

    def restore(self, directory: Path) -> None:
        """Become the state that was saved there.

        Raises:
            StepFailure: it was saved for other data, seed or adapter sizes (``data_invalid``).
        """
        from peft import set_peft_model_state_dict

        facts = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        if (facts["format"], facts["prompts"], facts["seed"]) != (FORMAT, self.order.n, self.order.seed):
            raise StepFailure(
                f"the PPO checkpoint is for {facts['prompts']} prompts and seed {facts['seed']}, the settings give "
                f"{self.order.n} and {self.order.seed}", state="data_invalid",
                hint="Run the training step anew: so8t rerun --from training.",
            )
        tensors = load_file(directory / "state.safetensors")
        try:
            set_peft_model_state_dict(self.model, _below(tensors, "adapter."))
            self.head.load_state_dict(_below(tensors, "head."))
            self._restore_optimizer(_below(tensors, "optimizer."))
        except (RuntimeError, ValueError) as error:
            raise StepFailure(
                f"the PPO checkpoint does not fit the model: {str(error).splitlines()[0]}", state="data_invalid",
                hint="Run the training step anew: so8t rerun --from training.",
            ) from error
        self.update, self.curve, self.kl.beta = facts["update"], facts["curve"], facts["beta"]
        self.order.position = facts["position"]
        version, inner, gauss = facts["python"]
        random.setstate((version, tuple(inner), gauss))
        name, keys, *rest = facts["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(tensors["rng.torch"])
        gpus = [tensors[k] for k in sorted(tensors) if k.startswith("rng.cuda.")]
        if gpus and torch.cuda.is_available() and len(gpus) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(gpus)

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
