"""The formulas of PPO, each a pure function of tensors.

Shapes: B answers, T answer tokens; ``mask`` (B, T) is 1 on real tokens.  Token t is the action, value t is the value of
the state before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens; 0 when there are none."""
    return (x * mask).sum() / mask.sum().clamp_min(1)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit variance over real tokens; masked places are 0."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Reward per token, (B, T): −β·KL on each, the answer's score (B,) on its last (Ziegler et al. 2019, eq. 2)."""
    rewards = -beta * kl * mask
    last = mask.long().sum(dim=1).clamp_min(1) - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, T): generalised advantage estimation (Schulman et al. 2016, eq. 16).

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}; after an answer's last token both V and A are 0.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = (delta + gamma * lam * running) * mask[:, t]
        advantages[:, t] = running
        following = values[:, t]
    return advantages, (advantages + values) * mask


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Clipped surrogate per token, (B, T), to be minimised (Schulman et al. 2017, eq. 7).

    ``new`` and ``old`` are log-probabilities of the tokens taken; ``old`` is a constant of the rollout, so that the
    ratio differs from 1 as soon as the policy has moved.
    """
    ratio = torch.exp(new - old)
    return torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def value_loss(new: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Clipped squared error per token, (B, T): the worse of the plain and the clipped prediction."""
    clipped = old + (new - old).clamp(-clip, clip)
    return 0.5 * torch.max((new - returns) ** 2, (clipped - returns) ** 2)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the distribution at each place: (…, V) to (…)."""
    logp = torch.log_softmax(logits, dim=-1)
    return -(logp.exp() * logp).sum(dim=-1)


@dataclass
class KLController:
    """Adaptive weight of the KL (Ziegler et al. 2019, §2.2): e = clip(KL / target − 1, ±0.2), β ← β (1 + K e)."""

    beta: float
    target: float
    rate: float = 0.1

    def update(self, kl: float) -> float:
        """Adapt to one batch's mean divergence in nats per answer.  Returns the new weight."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.beta *= 1 + self.rate * error
        return self.beta
