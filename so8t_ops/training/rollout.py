"""One rollout: prompts in, sampled answers with their log-probabilities, values and divergence out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from so8t_ops.training.ppo_math import entropy


class ValueHead(nn.Module):
    """Value of the state from the policy's last hidden state, (…, hidden) to (…), in fp32.

    The hidden state is detached: the value loss moves this head and never the policy.
    """

    def __init__(self, hidden: int, width: int = 128) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, width)
        self.outer = nn.Linear(width, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(hidden.detach().float()))).squeeze(-1)


@dataclass
class Rollout:
    """B answers on P prompt places (left-padded) and T answer places (right-padded).

    ids, attention: (B, P+T); tokens, mask, logp, reference, values: (B, T).  ``finished`` (B,) says which ended by
    themselves.
    """

    ids: Tensor
    attention: Tensor
    tokens: Tensor
    mask: Tensor
    logp: Tensor
    reference: Tensor
    values: Tensor
    finished: Tensor

    def rows(self, index: Tensor) -> Rollout:
        """The same for a choice of answers."""
        return Rollout(*(getattr(self, item.name)[index] for item in fields(self)))


def evaluate(
    model: Any, head: ValueHead | None, ids: Tensor, attention: Tensor, tokens: Tensor, temperature: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probability and entropy of the answer tokens under the sampling distribution, and the values, all (B, T).

    Logits are formed for the answer's places only: over a long prompt they would fill the memory.
    """
    length = tokens.shape[1]
    inner = model.get_base_model()
    positions = (attention.long().cumsum(dim=1) - 1).clamp_min(0)
    hidden = inner.model(
        input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False,
    ).last_hidden_state[:, -length - 1 : -1]
    logits = inner.lm_head(hidden).float() / temperature
    logp = torch.log_softmax(logits, dim=-1).gather(-1, tokens[..., None]).squeeze(-1)
    return logp, entropy(logits), None if head is None else head(hidden)


@torch.no_grad()
def roll(
    model: Any, head: ValueHead, prompts: Sequence[Sequence[int]], *, stops: Sequence[int], pad: int,
    temperature: float, max_new_tokens: int, micro_batch: int,
) -> Rollout:
    """Sample one answer per prompt, then score it under the policy and under the policy with its adapter switched off.

    The old log-probabilities come from the same forward pass as the new ones will, not from the sampler's cache, so
    that the first ratio is exactly 1.
    """
    from transformers import GenerationConfig

    device = model.device
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens,
        min_new_tokens=None, eos_token_id=list(stops), pad_token_id=pad,
    )
    pieces = [
        model.generate(input_ids=ids[i : i + micro_batch], attention_mask=attention[i : i + micro_batch],
                       generation_config=config)[:, width:]
        for i in range(0, len(prompts), micro_batch)
    ]
    longest = max(piece.shape[1] for piece in pieces)
    tokens = torch.cat([nn.functional.pad(piece, (0, longest - piece.shape[1]), value=pad) for piece in pieces])
    ends = torch.isin(tokens, torch.tensor(list(stops), device=device))
    # Real tokens: everything up to and including the first end.
    mask = ((ends.long().cumsum(dim=1) - ends.long()) == 0).long()
    finished = ends.any(dim=1)
    ids, attention = torch.cat([ids, tokens], dim=1), torch.cat([attention, mask], dim=1)
    scored = []
    for i in range(0, len(prompts), micro_batch):
        part = slice(i, i + micro_batch)
        logp, _, values = evaluate(model, head, ids[part], attention[part], tokens[part], temperature)
        with model.disable_adapter():
            reference, _, _ = evaluate(model, None, ids[part], attention[part], tokens[part], temperature)
        assert values is not None
        scored.append((logp, reference, values))
    logp, reference, values = (torch.cat(column) for column in zip(*scored, strict=True))
    real = mask.to(logp.dtype)
    return Rollout(ids, attention, tokens, real, logp * real, reference * real, values * real, finished)
