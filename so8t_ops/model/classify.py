"""Ask a model for the class of each prompt: the shared reading of variants A, B and C."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from so8t_ops.model.load import base_folder, compose, load_tokenizer, quiet_hub, read_model_json, torch_dtype
from so8t_ops.model.prompt import LABELS, parse_label, prompt_ids, stop_ids

MAX_NEW_TOKENS = 16
MAX_PROMPT_TOKENS = 2048


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        label: the class that the answer states, None when it states none.
        text: what was generated, special tokens left out.
        scores: probability of each label given that one of the four is said, from its first token; labels whose first
            token is the same share its probability equally.
    """

    label: str | None
    text: str
    scores: dict[str, float] = field(default_factory=dict)


def load_variant(
    training_dir: Path, variant: str, cache: MutableMapping[str, tuple[Any, Any]] | None = None,
) -> tuple[Any, Any]:
    """Model and tokenizer of variant A (base), B (warm start) or C (PPO), on the GPU when there is one.

    ``cache`` keeps what was loaded, by variant, for as long as the caller holds it.
    """
    import torch

    quiet_hub()
    if cache is not None and variant in cache:
        return cache[variant]
    dtype = torch_dtype(str(read_model_json(training_dir).get("dtype", "auto")))
    model = compose(training_dir, variant, dtype).to("cuda" if torch.cuda.is_available() else "cpu")
    loaded = model, load_tokenizer(base_folder(training_dir))
    if cache is not None:
        cache[variant] = loaded
    return loaded


def predict_labels(
    model: Any, tokenizer: Any, texts: Sequence[str], languages: Sequence[str] | None = None, batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Greedy answers through the chat template, one per text and in the texts' order.

    ``languages`` is accepted for symmetry with the data and not used: the model sees the prompt alone.
    ``progress`` is called with the number of texts answered so far.

    Raises:
        ValueError: ``languages`` has another length than ``texts``.
    """
    import torch
    from transformers import GenerationConfig

    if languages is not None and len(languages) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(languages)} languages")
    limit = min(MAX_PROMPT_TOKENS, int(tokenizer.model_max_length) - MAX_NEW_TOKENS - 64)
    prompts = [prompt_ids(tokenizer, text, limit) for text in texts]
    firsts = _first_tokens(tokenizer)
    pad = tokenizer.pad_token_id
    config = GenerationConfig(
        do_sample=False, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=stop_ids(model, tokenizer), pad_token_id=pad,
        bos_token_id=tokenizer.bos_token_id, return_dict_in_generate=True, output_logits=True,
    )
    # Prompts of like length go together: padding is what a batch pays for.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    found: dict[int, Prediction] = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in chunk)
        gaps = [width - len(prompts[i]) for i in chunk]
        ids = torch.tensor([[pad] * gap + prompts[i] for i, gap in zip(chunk, gaps, strict=True)], device=model.device)
        mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps], device=model.device)
        with torch.inference_mode():
            made = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        answers = tokenizer.batch_decode(made.sequences[:, width:], skip_special_tokens=True)
        chances = torch.softmax(made.logits[0].float(), dim=-1).cpu()
        for row, i in enumerate(chunk):
            found[i] = Prediction(parse_label(answers[row]), answers[row].strip(), _scores(chances[row], firsts))
        if progress is not None:
            progress(len(found))
    return [found[i] for i in range(len(prompts))]


def _first_tokens(tokenizer: Any) -> dict[str, int]:
    return {label: tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in LABELS}


def _scores(chances: Any, firsts: dict[str, int]) -> dict[str, float]:
    sharing = {token: list(firsts.values()).count(token) for token in firsts.values()}
    raw = {label: float(chances[token]) / sharing[token] for label, token in firsts.items()}
    total = sum(raw.values())
    return {label: value / total if total > 0 else 1 / len(raw) for label, value in raw.items()}
