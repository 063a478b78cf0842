"""PPO on the warm start: sample answers, reward them, move the adapter, keep close to where it began.

The loop is the project's own, on accelerate: TRL removed its PPO trainer, whose checkpoints also left out the value
model.  The policy is a LoRA adapter on the merged warm start; switched off, it is exactly variant B, the KL reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from so8t_fsm.step import StepFailure
from so8t_ops.model.load import load_base, load_tokenizer, merge_adapter
from so8t_ops.model.prompt import prompt_ids, stop_ids
from so8t_ops.training.adapters import add_lora, write_adapter
from so8t_ops.training.dataset import Sample
from so8t_ops.training.determinism import settle
from so8t_ops.training.journal import Journal
from so8t_ops.training.ppo_math import (
    KLController,
    gae,
    masked_mean,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from so8t_ops.training.ppo_state import DataOrder, PPOState
from so8t_ops.training.reward import Reward, judge
from so8t_ops.training.rollout import Rollout, ValueHead, evaluate, roll
from so8t_ops.training.settings import TrainingSettings


class PPO:
    """One PPO run over labelled prompts."""

    def __init__(
        self, folder: Path, warm: Path, dtype: Any, settings: TrainingSettings, samples: Sequence[Sample],
    ) -> None:
        settle(settings.seed + 2, settings.threads)
        self.settings, self.samples = settings, samples
        self.tokenizer = load_tokenizer(folder)
        self.prompts = [prompt_ids(self.tokenizer, sample.text, settings.max_length) for sample in samples]
        self.accelerator = Accelerator()
        model = add_lora(merge_adapter(load_base(folder, dtype), warm), settings.lora, dropout=0.0)
        if settings.gradient_checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.stops = stop_ids(model.get_base_model(), self.tokenizer)
        head = ValueHead(model.config.hidden_size)
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in model.parameters() if p.requires_grad], "scale": 1.0},
                {"params": list(head.parameters()), "scale": settings.ppo.value_lr_scale},
            ],
            lr=self._rate(0), betas=(0.9, 0.95), weight_decay=0.0, foreach=False,
        )
        model, head, optimizer = self.accelerator.prepare(model, head, optimizer)
        ppo = settings.ppo
        self.state = PPOState(
            model, head, optimizer, KLController(ppo.kl_init, ppo.kl_target, ppo.kl_rate),
            DataOrder(len(samples), settings.seed),
        )

    def _rate(self, update: int) -> float:
        """Learning rate of an update: linear decay to a tenth."""
        ppo = self.settings.ppo
        return self.settings.learning_rate * ppo.lr_scale * (1 - 0.9 * update / max(1, ppo.updates))

    def update(self) -> None:
        """One rollout and the optimizer steps on it.

        Raises:
            StepFailure: a loss or a gradient is no longer a number (``diverged``).
        """
        ppo, state = self.settings.ppo, self.state
        for group in state.optimizer.param_groups:
            group["lr"] = self._rate(state.update) * group["scale"]
        chosen = state.order.take(ppo.rollout_batch)
        state.model.eval()
        data = roll(
            state.model, state.head, [self.prompts[i] for i in chosen], stops=self.stops,
            pad=self.tokenizer.pad_token_id, temperature=ppo.temperature, max_new_tokens=ppo.max_new_tokens,
            micro_batch=self.settings.batch_size,
        )
        rewards = self._judge(data, chosen)
        scores = torch.tensor([reward.total for reward in rewards], device=data.logp.device)
        divergence = (data.logp - data.reference) * data.mask
        advantages, returns = gae(
            token_rewards(scores, divergence, data.mask, state.kl.beta), data.values, data.mask, ppo.gamma, ppo.lam,
        )
        measures = self._optimise(data, whiten(advantages, data.mask), returns)
        kl = divergence.sum(dim=1).mean().item()
        right = [reward.said == self.samples[i].label for reward, i in zip(rewards, chosen, strict=True)]
        entry = {
            "step": float(state.update + 1), "reward": scores.mean().item(), "accuracy": sum(right) / len(right),
            "form": sum(reward.form > 0 for reward in rewards) / len(rewards),
            "finished": data.finished.float().mean().item(), "length": data.mask.sum(dim=1).mean().item(),
            "kl": kl, "kl_weight": state.kl.beta, "learning_rate": self._rate(state.update), **measures,
        }
        self._check(entry)
        state.kl.update(max(kl, 0.0))
        state.update += 1
        state.curve.append(entry)

    def _judge(self, data: Rollout, chosen: Sequence[int]) -> list[Reward]:
        answers = self.tokenizer.batch_decode(
            [row[keep.bool()] for row, keep in zip(data.tokens, data.mask, strict=True)], skip_special_tokens=True,
        )
        return [
            judge(answer, str(self.samples[i].label), finished=bool(finished))
            for answer, i, finished in zip(answers, chosen, data.finished.tolist(), strict=True)
        ]

    def _optimise(self, data: Rollout, advantages: torch.Tensor, returns: torch.Tensor) -> dict[str, float]:
        """Clipped steps over shuffled minibatches, each accumulated over micro-batches of ``batch_size``."""
        ppo, state, micro = self.settings.ppo, self.state, self.settings.batch_size
        sums = dict.fromkeys(("policy_loss", "value_loss", "entropy", "clipped", "grad_norm"), 0.0)
        steps = 0
        state.model.train()
        for _ in range(ppo.epochs):
            shuffled = torch.randperm(ppo.rollout_batch).to(data.ids.device)
            for minibatch in shuffled.split(ppo.minibatch):
                tokens = data.mask[minibatch].sum()
                for index in minibatch.split(micro):
                    part = data.rows(index)
                    logp, spread, values = evaluate(
                        state.model, state.head, part.ids, part.attention, part.tokens, ppo.temperature,
                    )
                    assert values is not None
                    share = part.mask.sum() / tokens
                    surrogate = policy_loss(logp, part.logp, advantages[index], ppo.clip)
                    losses = {
                        "policy_loss": masked_mean(surrogate, part.mask) * share,
                        "value_loss": masked_mean(
                            value_loss(values, part.values, returns[index], ppo.value_clip), part.mask) * share,
                        "entropy": masked_mean(spread, part.mask) * share,
                    }
                    loss = (losses["policy_loss"] + ppo.value_weight * losses["value_loss"]
                            - ppo.entropy * losses["entropy"])
                    self.accelerator.backward(loss)
                    for name, value in losses.items():
                        sums[name] += value.item()
                    outside = ((logp.detach() - part.logp).exp() - 1).abs() > ppo.clip
                    sums["clipped"] += (masked_mean(outside.float(), part.mask) * share).item()
                norm = self.accelerator.clip_grad_norm_(
                    [p for group in state.optimizer.param_groups for p in group["params"]], ppo.max_grad_norm,
                )
                sums["grad_norm"] += float(norm)
                if not math.isfinite(float(norm)):
                    self._check({"grad_norm": float(norm)})
                state.optimizer.step()
                state.optimizer.zero_grad()
                steps += 1
        return {name: value / steps for name, value in sums.items()}

    def _check(self, entry: dict[str, float]) -> None:
        bad = [name for name, value in entry.items() if not math.isfinite(value)]
        if bad:
            raise StepFailure(
                f"training.ppo: {bad[0]} is {entry[bad[0]]} in update {self.state.update + 1}", state="diverged",
                hint="Lower training.learning_rate and resume from an earlier checkpoint.",
            )

    def run(self, journal: Journal) -> None:
        """All updates that are left, saving when due; then the adapter and the value head into the output.

        Raises:
            StopRequested: asked to stop; the checkpoint is safe.
            StepFailure: a loss or a gradient is no longer a number (``diverged``).
        """
        if journal.inside is not None:
            self.state.restore(journal.inside)
        total = self.settings.ppo.updates
        while self.state.update < total:
            self.update()
            journal.ctx.progress(self.state.update, total, "updates", "ppo")
            if journal.ctx.checkpoint_due():
                journal.save(self.state.save, self.state.update)
        journal.curves["ppo"] = self.state.curve

    def write(self, out: Path, base_name: str) -> None:
        """Write ``ppo/`` and ``value_head.safetensors``."""
        model = self.accelerator.unwrap_model(self.state.model)
        write_adapter(model, out / "ppo", base_name)
        head = self.accelerator.unwrap_model(self.state.head).state_dict()
        save_file({k: v.detach().cpu().contiguous() for k, v in head.items()}, out / "value_head.safetensors")
