"""Step 4, integrate: fold the adapters into the weights, write GGUF, read it back, certify what came from what."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from so8t_fsm.step import GiB, MiB, Needs, Step, StepContext, StepFailure
from so8t_ops.export.settings import ConversionSettings
from so8t_ops.model.settings import TINY_BASE, ModelSettings

HUB_WEIGHTS = 4_000_000_000
"""Size a base on the Hub is taken for; Phi-3.5-mini has 3.8 billion weights."""

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2, "f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}
"""Bytes a weight."""


class Integrate(Step):
    """Commits ``merged/`` (variant C as a plain Hugging Face model), ``gguf/``, ``gguf_check.json`` and
    ``certificate.json``."""

    name = "integrating"
    state = "integrating"
    sections = {"model": ModelSettings, "conversion": ConversionSettings}
    reads = ("conversion",)
    uses = ("training",)

    def needs(self, config: Mapping[str, Mapping[str, Any]], home: Path, out: Path) -> Needs:
        """The merged model in its precision and each GGUF file; memory for the merged model and the libraries."""
        from so8t_ops.export.weights import count_weights
        from so8t_ops.train import parameters

        model = ModelSettings.model_validate(config.get("model", {}))
        settings = ConversionSettings.model_validate(config.get("conversion", {}))
        folder = home / Path(model.base).expanduser()
        count = HUB_WEIGHTS
        if model.base == TINY_BASE:
            count = parameters(model.tiny)
        elif folder.is_dir():
            count = count_weights(folder)
        merged = count * WIDTH[settings.merge_dtype]
        files = count * sum(WIDTH[kind] for kind in settings.types)
        return Needs(disk={out: int(merged + files) + 64 * MiB}, ram=int(merged) + GiB)

    def run(self, ctx: StepContext) -> None:
        from so8t_ops.export.blueprint import Blueprint
        from so8t_ops.export.certificate import certificate
        from so8t_ops.export.gguf_check import check_gguf
        from so8t_ops.export.gguf_write import write_gguf
        from so8t_ops.export.layout import rope_factors
        from so8t_ops.export.vocabulary import read_vocabulary
        from so8t_ops.export.weights import Weights
        from so8t_ops.model.load import base_folder, quiet_hub

        quiet_hub()
        settings = ctx.section("conversion", ConversionSettings)
        # What can't be converted is refused before the merge, which takes minutes on a large model.
        source = base_folder(ctx.inputs["training"])
        config = read_config(source)
        file_keys(config, settings, settings.types[0])
        rope_factors(config)
        vocabulary = read_vocabulary(source, int(config["vocab_size"]))

        ctx.progress(0, None, "tensors", "merging")
        merged = ctx.out / "merged"
        merge(ctx.inputs["training"], merged, settings)
        ctx.stop_if_asked()

        weights, config, tokenizer = Weights(merged), read_config(merged), tokenizer_keys(merged)
        (ctx.out / "gguf").mkdir()
        blueprints = {
            ctx.out / "gguf" / f"{settings.name}-{kind}.gguf":
                Blueprint(weights, config, file_keys(config, settings, kind) | tokenizer, vocabulary, kind)
            for kind in settings.types
        }
        done, total = 0, sum(2 * len(blueprint.names()) for blueprint in blueprints.values())

        def progress() -> None:
            nonlocal done
            done += 1
            ctx.progress(done, total, "tensors")
            ctx.stop_if_asked()

        checks = {}
        for path, blueprint in blueprints.items():
            write_gguf(path, blueprint, progress)
            checks[path.name] = check_gguf(path, blueprint, progress)
        write_json(ctx.out / "gguf_check.json", checks)
        for name, check in checks.items():
            if problems := check["problems"]:
                raise StepFailure(
                    f"{name} does not hold the merged model: {problems[0]} ({len(problems)} in all)",
                    state="data_invalid", hint="Look at the disk and the memory of this machine, then try again.")
        write_json(ctx.out / "certificate.json", certificate(ctx, weights))


def merge(training: Path, target: Path, settings: ConversionSettings) -> None:
    """Variant C as a plain model in ``target``, with the base's own tokenizer files.

    Raises:
        StepFailure: an adapter's values are no numbers (``data_invalid``).
    """
    from so8t_ops.model.load import base_folder, compose, torch_dtype
    from so8t_ops.model.tokenizer import copy_tokenizer

    try:
        model = compose(training, "C", torch_dtype(settings.merge_dtype))
    except ValueError as error:
        if "NaN" not in str(error):
            raise
        raise StepFailure(
            f"the adapters in {training} can't be merged: {str(error).splitlines()[0]}", state="data_invalid",
            hint="The training diverged: train again with a lower learning rate.") from error
    # The path the base was loaded from would differ from run to run.
    model.config._name_or_path = ""
    model.save_pretrained(target, max_shard_size=settings.shard_size)
    for path in target.glob("*.safetensors"):
        # safetensors writes files that only their owner may read.
        shutil.copymode(target / "config.json", path)
    copy_tokenizer(base_folder(training), target)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a Hugging Face model."""
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def file_keys(config: Mapping[str, Any], settings: ConversionSettings, kind: str) -> dict[str, Any]:
    """The metadata of a GGUF file of one type, the tokenizer's left out."""
    from so8t_ops.export.layout import metadata

    return metadata(config, name=settings.name, kind=kind, license_id=settings.license, author=settings.author,
                    languages=settings.languages)


def tokenizer_keys(folder: Path) -> dict[str, Any]:
    """Special ids, switches and chat template, as transformers reads them."""
    from so8t_ops.export.layout import token_keys
    from so8t_ops.model.load import load_tokenizer

    tokenizer = load_tokenizer(folder)
    # Switches of tokenizer_config.json that tokenizer.json does not follow would mislead: look at what it does.
    ids = tokenizer("a")["input_ids"]
    return token_keys({
        "bos_id": tokenizer.bos_token_id, "eos_id": tokenizer.eos_token_id, "unk_id": tokenizer.unk_token_id,
        "pad_id": tokenizer.pad_token_id, "add_bos_token": ids[0] == tokenizer.bos_token_id,
        "add_eos_token": ids[-1] == tokenizer.eos_token_id, "chat_template": tokenizer.chat_template,
    })


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, the same bytes every time."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
