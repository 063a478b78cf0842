"""Find and load what the training step committed: the base, its tokenizer, and the three variants A, B and C."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from so8t_fsm.step import StepFailure

VARIANTS = ("A", "B", "C")
WEIGHTS = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja")


def quiet_hub() -> None:
    """No telemetry, no progress bars on a log nobody watches live, no tokenizer threads to be forked."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def read_model_json(training: Path) -> Mapping[str, Any]:
    """``model.json`` of a training commit.

    Raises:
        StepFailure: it is missing or not JSON (``data_invalid``).
    """
    try:
        return dict(json.loads((training / "model.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StepFailure(
            f"{training / 'model.json'}: {error}", state="data_invalid", hint="Run the training step again.",
        ) from error


def local_folder(base: str, revision: str | None) -> Path:
    """The folder of a base: itself when it is one, else the Hub's snapshot, downloaded when it is not yet here.

    Raises:
        StepFailure: neither a folder nor a Hub id that can be reached.
    """
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(base, revision=revision, allow_patterns=list(WEIGHTS)))
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise StepFailure(
            f"model.base {base!r} at {revision!r} is neither a folder nor a Hub model: {str(error).splitlines()[0]}",
            state="hub_refused", hint="Give a folder that holds config.json, or a Hub id you may read.",
        ) from error


def base_folder(training: Path) -> Path:
    """The base's folder for a training commit: below it when the step made the base."""
    facts = read_model_json(training)
    inside = training / str(facts["base"])
    return inside if (inside / "config.json").is_file() else local_folder(str(facts["base"]), facts.get("revision"))


def torch_dtype(name: str) -> Any:
    """The torch dtype of a ``model.dtype`` setting; ``auto`` depends on whether there is a GPU."""
    import torch

    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def load_base(folder: Path, dtype: Any) -> Any:
    """A causal language model from a folder, by transformers' native classes only: a folder's own code is never run."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False, use_safetensors=True)


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, padding on the left as generation needs it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def merge_adapter(model: Any, adapter: Path) -> Any:
    """The model with one adapter folded into its weights: W' = W + (alpha / r) B A."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)


def compose(training: Path, variant: str, dtype: Any) -> Any:
    """Variant A, B or C as a plain model with no adapters left.

    A is the base.  B is the base with ``warm`` merged.  C is B with ``ppo`` merged: PPO trained its adapter on top of
    the merged warm start, so that switching the adapter off gave exactly B, its KL reference.

    Raises:
        ValueError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    facts = read_model_json(training)
    model = load_base(base_folder(training), dtype)
    for name in VARIANTS[1 : VARIANTS.index(variant) + 1]:
        model = merge_adapter(model, training / str(facts["adapters"][name]))
    return model.eval()
