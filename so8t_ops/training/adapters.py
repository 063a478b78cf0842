"""LoRA adapters: put on a model, written the same way every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from so8t_fsm.step import StepFailure
from so8t_ops.training.settings import LoraSettings


def add_lora(model: Any, settings: LoraSettings, *, dropout: float) -> Any:
    """The model wrapped with a fresh adapter (B is zero, so that nothing changes yet); seed torch first.

    Raises:
        StepFailure: the model has none of the layers named in ``training.lora.targets`` (``data_invalid``).
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, lora_dropout=dropout, target_modules=sorted(settings.targets),
        bias="none", task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise StepFailure(
            f"training.lora.targets {sorted(settings.targets)}: {str(error).splitlines()[0]}", state="data_invalid",
            hint="Name linear layers of this model; Phi-3 has qkv_proj, o_proj, gate_up_proj and down_proj.",
        ) from error


def adapter_tensors(model: Any) -> dict[str, Any]:
    """The adapter's tensors on the CPU, by name in alphabetical order."""
    from peft import get_peft_model_state_dict

    # An adapter on the embedding is an adapter; the embedding itself belongs to the base.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: state[name].detach().cpu().contiguous() for name in sorted(state)}


def write_adapter(model: Any, directory: Path, base: str) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``.

    PEFT's own writer adds a model card with the base's path and keeps sets in hash order: neither repeats.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file(adapter_tensors(model), directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"]
    raw = {key: _stable(value) for key, value in config.to_dict().items()}
    raw["base_model_name_or_path"], raw["inference_mode"] = base, True
    text = json.dumps(raw, indent=1, sort_keys=True, ensure_ascii=False, default=str)
    (directory / "adapter_config.json").write_text(text + "\n", encoding="utf-8", newline="\n")


def _stable(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else value
