"""PPO's formulas against slow or hand-made ones, its reward, and its state."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from so8t_ops.model.prompt import LABELS, REASONS, answer, parse_label
from so8t_ops.training.ppo_math import (
    KLController,
    entropy,
    gae,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from so8t_ops.training.ppo_state import DataOrder
from so8t_ops.training.reward import RIGHT, judge
from so8t_ops.training.rollout import ValueHead


def direct_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = Σ_l (γλ)^l δ_{t+l}, summed as it is written: O(T²)."""
    ahead = [*values, 0.0]
    deltas = [r + gamma * ahead[t + 1] - ahead[t] for t, r in enumerate(rewards)]
    return [
        sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))
    ]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), gamma=st.floats(0.5, 1), lam=st.floats(0, 1))
def test_gae_is_the_sum_it_stands_for(data: st.DataObject, gamma: float, lam: float) -> None:
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    width, number = max(lengths), st.floats(-3, 3)
    mask = torch.tensor([[1.0] * n + [0.0] * (width - n) for n in lengths], dtype=torch.float64)
    rewards, values = (
        torch.tensor(data.draw(st.lists(st.lists(number, min_size=width, max_size=width),
                                        min_size=len(lengths), max_size=len(lengths))), dtype=torch.float64)
        for _ in range(2)
    )  # what lies behind the end of an answer is not zero here, and must not matter
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, n in enumerate(lengths):
        wanted = direct_gae(rewards[row, :n].tolist(), values[row, :n].tolist(), gamma, lam)
        assert advantages[row, :n].tolist() == pytest.approx(wanted, abs=1e-9)
        assert advantages[row, n:].abs().sum() == 0
        assert returns[row, :n].tolist() == pytest.approx(
            [a + v for a, v in zip(wanted, values[row, :n].tolist(), strict=True)],
            abs=1e-9)


def test_the_score_lands_on_the_last_real_token() -> None:
    mask = torch.tensor([[1.0, 1, 0], [1, 1, 1]])
    kl = torch.tensor([[0.5, 1.0, 9.0], [0.0, 2.0, 1.0]])
    rewards = token_rewards(torch.tensor([3.0, -1.0]), kl, mask, beta=0.1)
    assert rewards.flatten().tolist() == pytest.approx([-0.05, 2.9, 0.0, 0.0, -0.2, -1.1])


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope"), [
    (1.0, 2.0, -2.0, -2.0),      # not clipped: d loss / d logp = -A·ratio
    (1.5, 2.0, -2.4, 0.0),       # a good action is taken more often already: -A·1.2, flat
    (0.5, 2.0, -1.0, -1.0),      # a good action taken less often: never clipped
    (1.5, -2.0, 3.0, 3.0),       # a bad action taken more often: never clipped
    (0.5, -2.0, 1.6, 0.0),       # a bad action taken less often already: -A·0.8, flat
])
def test_the_policy_loss_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    new = torch.tensor([[math.log(ratio)]], requires_grad=True)
    found = policy_loss(new, torch.zeros(1, 1), torch.tensor([[advantage]]), clip=0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, rel=1e-6)
    assert new.grad is not None and new.grad.item() == pytest.approx(slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("new", "old", "target", "loss"), [
    (0.1, 0.0, 1.0, 0.405),      # within the clip range: ½·0.9²
    (0.9, 0.0, 1.0, 0.32),       # clipped to 0.2, which is the worse one: ½·0.8²
    (-0.9, 0.0, 1.0, 1.805),     # away from the target: the plain one is worse, ½·1.9²
])
def test_the_value_loss_by_hand(new: float, old: float, target: float, loss: float) -> None:
    found = value_loss(torch.tensor([new]), torch.tensor([old]), torch.tensor([target]), clip=0.2)
    assert found.item() == pytest.approx(loss, rel=1e-5)


def test_entropy_and_whitening() -> None:
    assert entropy(torch.zeros(2, 8)).tolist() == pytest.approx([math.log(8)] * 2)
    mask = torch.tensor([[1.0, 1, 1, 0]])
    white = whiten(torch.tensor([[1.0, 2, 6, 1e6]]), mask)
    assert white[0, 3] == 0 and white.sum().item() == pytest.approx(0, abs=1e-6)
    assert (white**2).sum().item() / 3 == pytest.approx(1, rel=1e-5)


def test_the_kl_weight_follows_the_divergence() -> None:
    control = KLController(beta=0.1, target=2.0, rate=0.1)
    assert control.update(2.0) == pytest.approx(0.1)               # on target: unchanged
    assert control.update(2.2) == pytest.approx(0.1 * 1.01)        # 10 % above: +1 %
    assert control.update(50.0) == pytest.approx(0.1 * 1.01 * 1.02)  # far above: the error is clipped at 0.2
    assert KLController(0.1, 2.0, 0.1).update(0.0) == pytest.approx(0.098)


def test_the_value_loss_never_reaches_the_policy() -> None:
    hidden, head = torch.randn(2, 3, 8, requires_grad=True), ValueHead(8)
    torch.nn.init.ones_(head.outer.weight)
    head(hidden).sum().backward()
    assert hidden.grad is None and head.inner.weight.grad is not None and head.inner.weight.grad.abs().sum() > 0


def test_the_reward_puts_the_right_answer_first_and_the_dangerous_one_last() -> None:
    for gold, language in product(LABELS, REASONS):
        worth = {said: judge(answer(said, language), gold, finished=True).total for said in LABELS}
        assert max(worth, key=worth.__getitem__) == gold and worth[gold] > RIGHT
    for gold in ("DENY", "REFUSE"):
        worth = {said: judge(answer(said, "en"), gold, finished=True).total for said in LABELS}
        assert min(worth, key=worth.__getitem__) == "ALLOW"
    assert judge(answer("ALLOW", "en"), "REFUSE", finished=True).total < judge("?", "REFUSE", finished=True).total


@pytest.mark.parametrize("hack", [
    "ALLOW DENY REFUSE ESCALATION", "I must REFUSE", "SO(8) 非可換 REFUSE", "", "REFUSED", "refuse\u200b",
])
def test_naming_every_class_or_many_fine_words_earns_nothing(hack: str) -> None:
    assert judge(hack, "REFUSE", finished=True).total < judge(answer("REFUSE", "en"), "REFUSE", finished=True).total


@pytest.mark.parametrize(("text", "label"), [
    ("ALLOW I can help.", "ALLOW"), ("  DENY. no", "DENY"), ("refuse", "REFUSE"), ("ESCALATION：専門家へ", None),
    ("ESCALATION： 専門家へ", "ESCALATION"), ("REFUSED", None), ("", None), ("Never ALLOW this", None),
])
def test_only_the_first_word_is_the_label(text: str, label: str | None) -> None:
    assert parse_label(text) == label


def test_an_unfinished_answer_is_worth_less() -> None:
    assert judge("DENY no", "DENY", finished=False).total < judge("DENY no", "DENY", finished=True).total
    assert judge("DENY", "DENY", finished=True).total < judge("DENY no", "DENY", finished=True).total


def test_every_pass_shows_every_prompt_once_and_goes_on_from_any_position() -> None:
    whole = DataOrder(7, seed=3).take(21)
    assert all(sorted(whole[i : i + 7]) == list(range(7)) for i in (0, 7, 14))
    assert whole[:7] != whole[7:14]
    for cut in range(21):
        assert DataOrder(7, seed=3, position=cut).take(21 - cut) == whole[cut:]
    assert DataOrder(7, seed=4).take(7) != whole[:7]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A PPO on a 64-channel Phi-3 whose warm start is a real adapter that changes the base."""
    from so8t_ops.model.load import load_tokenizer
    from so8t_ops.model.settings import TinySettings
    from so8t_ops.model.tiny import fresh_phi3
    from so8t_ops.model.tokenizer import write_tokenizer
    from so8t_ops.training.adapters import add_lora, write_adapter
    from so8t_ops.training.dataset import Sample
    from so8t_ops.training.ppo import PPO
    from so8t_ops.training.settings import TrainingSettings

    folder = tmp_path_factory.mktemp("policy")
    texts = [f"prompt {i} 質問{i}" for i in range(8)]
    sizes = TinySettings(hidden_size=64, intermediate_size=64, layers=1, heads=4, vocab_size=500, context_length=256)
    write_tokenizer(texts, sizes.vocab_size, folder / "base", 256)
    torch.manual_seed(0)
    model = fresh_phi3(sizes, load_tokenizer(folder / "base"))
    model.save_pretrained(folder / "base")
    chosen = TrainingSettings.model_validate({
        "batch_size": 3, "threads": 1, "ppo": {"updates": 3, "rollout_batch": 8, "minibatch": 4, "max_new_tokens": 5},
    })
    warm = add_lora(model, chosen.lora, dropout=0.0)
    for name, parameter in warm.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    write_adapter(warm, folder / "warm", "base")
    samples = [Sample(text, LABELS[i % 4], "en") for i, text in enumerate(texts)]
    return lambda: PPO(folder / "base", folder / "warm", torch.float32, chosen, samples)


def test_the_disabled_adapter_is_the_warm_start_and_the_first_ratio_is_one(policy: Any, tmp_path: Path) -> None:
    from so8t_ops.model.load import load_base, merge_adapter
    from so8t_ops.training.rollout import evaluate, roll

    ppo = policy()
    state = ppo.state
    data = roll(state.model, state.head, ppo.prompts, stops=ppo.stops, pad=ppo.tokenizer.pad_token_id,
                temperature=1.0, max_new_tokens=5, micro_batch=3)
    assert torch.equal(data.logp, data.reference)  # a fresh adapter changes nothing yet
    ppo.update()
    with torch.no_grad():
        moved, _, _ = evaluate(state.model, None, data.ids, data.attention, data.tokens, 1.0)
        with state.model.disable_adapter():
            off, _, _ = evaluate(state.model, None, data.ids, data.attention, data.tokens, 1.0)
    assert not torch.allclose(moved * data.mask, data.logp, atol=1e-4)  # the policy has moved
    assert torch.allclose(off * data.mask, data.reference, atol=1e-6)   # its reference has not
    folder = ppo.tokenizer.name_or_path
    warm = merge_adapter(load_base(Path(folder), torch.float32), Path(folder).parent / "warm")
    logits = warm(input_ids=data.ids, attention_mask=data.attention,
                  position_ids=(data.attention.cumsum(1) - 1).clamp_min(0)).logits[:, -data.tokens.shape[1] - 1 : -1]
    plain = torch.log_softmax(logits, -1).gather(-1, data.tokens[..., None]).squeeze(-1)
    assert torch.allclose(plain * data.mask, data.reference, atol=1e-5)  # variant B, by an ordinary forward pass


def test_the_state_is_whole(policy: Any, tmp_path: Path) -> None:
    """Saved after one update and restored into a fresh run, two more updates give the same bits."""
    from so8t_ops.training.adapters import adapter_tensors

    first = policy()
    first.update()
    first.state.save(tmp_path)
    first.update()
    first.update()
    second = policy()
    torch.manual_seed(999)  # whatever happened to the random state in between
    second.state.restore(tmp_path)
    second.update()
    second.update()
    one, other = adapter_tensors(first.state.model), adapter_tensors(second.state.model)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    heads = first.state.head.state_dict(), second.state.head.state_dict()
    assert all(torch.equal(heads[0][k], heads[1][k]) for k in heads[0])
    assert first.state.curve == second.state.curve and first.state.kl == second.state.kl
    assert [p.suffix for p in sorted(tmp_path.iterdir())] == [".json", ".safetensors"]


def test_a_checkpoint_for_other_data_is_refused(policy: Any, tmp_path: Path) -> None:
    from so8t_fsm.step import StepFailure

    ppo = policy()
    ppo.state.save(tmp_path)
    ppo.state.order = DataOrder(5, seed=ppo.state.order.seed)
    with pytest.raises(StepFailure, match="8 prompts") as caught:
        ppo.state.restore(tmp_path)
    assert caught.value.state == "data_invalid"


def test_smaller_micro_batches_change_the_memory_and_not_the_gradient(policy: Any) -> None:
    norms = []
    for size in (3, 1, 8):
        ppo = policy()
        ppo.settings = ppo.settings.model_copy(update={"batch_size": size})
        data_seed = torch.Generator().manual_seed(1)
        ids = torch.randint(3, 200, (8, 12), generator=data_seed)
        from so8t_ops.training.rollout import Rollout

        mask = torch.tensor([[1.0] * n + [0.0] * (5 - n) for n in (5, 1, 3, 2, 5, 4, 1, 5)])
        flat = torch.zeros(8, 5)
        rollout = Rollout(ids, torch.ones_like(ids), ids[:, -5:], mask, flat - 5, flat - 5, flat, torch.ones(8).bool())
        torch.manual_seed(5)
        advantages = torch.linspace(-1, 1, 40).view(8, 5) * mask
        norms.append(ppo._optimise(rollout, advantages, advantages)["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3) and norms[0] == pytest.approx(norms[2], rel=1e-3)


def test_a_nan_is_reported_as_divergence(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from so8t_fsm.step import StepFailure
    from so8t_ops.training import ppo as module

    ppo = policy()
    monkeypatch.setattr(module, "policy_loss", lambda new, *_: new * float("nan"))
    with pytest.raises(StepFailure, match="update 1") as caught:
        ppo.update()
    assert caught.value.state == "diverged"
