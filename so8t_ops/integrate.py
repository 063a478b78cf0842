"""Step 4, integrate: fold the adapters into the weights, write GGUF, read it back, certify what came from what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from so8t_fsm.step import GiB, MiB, Needs, Step, StepContext, StepFailure
from so8t_ops.export.settings import ConversionSettings
from so8t_ops.model.settings import ModelSettings

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json", "chat_template.jinja", "generation_config.json")


class Integrate(Step):
    """Commits ``merged/`` (variant C as a plain Hugging Face model), ``gguf/``, ``gguf_check.json`` and
    ``certificate.json``."""

    name = "integrating"
    state = "integrating"
    sections = {"model": ModelSettings, "conversion": ConversionSettings}
    reads = ("conversion",)
    uses = ("training",)

    def needs(self, config: Mapping[str, Mapping[str, Any]], home: Path, out: Path) -> Needs:
        """The merged model in its precision and each GGUF file; a Hub base is taken for four billion parameters."""
        from so8t_ops.train import parameters

        model = ModelSettings.model_validate(config.get("model", {}))
        settings = ConversionSettings.model_validate(config.get("conversion", {}))
        tiny = model.base.startswith("quickstart:")
        count = parameters(model.tiny) if tiny else 4_000_000_000
        width = {"float32": 4, "bfloat16": 2, "float16": 2}[settings.merge_dtype]
        files = sum({"f32": 4, "f16": 2, "bf16": 2, "q8_0": 1}[kind] for kind in settings.types)
        return Needs(disk={out: count * (width + files) + 64 * MiB}, ram=count * width + GiB // 2)

    def run(self, ctx: StepContext) -> None:
        from so8t_ops.export.certificate import certificate
        from so8t_ops.export.gguf_check import check_gguf
        from so8t_ops.export.gguf_write import write_gguf
        from so8t_ops.export.layout import metadata, token_keys
        from so8t_ops.export.vocabulary import read_vocabulary
        from so8t_ops.export.weights import Weights

        settings = ctx.section("conversion", ConversionSettings)
        merged = ctx.out / "merged"
        merge(ctx.inputs["training"], merged, settings)
        ctx.stop_if_asked()
        weights = Weights(merged)
        config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
        vocabulary = read_vocabulary(merged, int(config["vocab_size"]))
        tokenizer = token_keys(describe_tokenizer(merged))
        (ctx.out / "gguf").mkdir()
        checks, total, base = {}, 2 * len(weights) * len(settings.types), 0

        def progress(done: int) -> None:
            ctx.progress(base + done, total, "tensors")
            ctx.stop_if_asked()

        for kind in settings.types:
            path = ctx.out / "gguf" / f"{settings.name}-{kind}.gguf"
            keys = metadata(config, name=settings.name, kind=kind, license_id=settings.license, author=settings.author,
                            languages=settings.languages) | tokenizer
            write_gguf(path, weights, config, keys, vocabulary, kind, progress)
            base += len(weights)
            checks[path.name] = check_gguf(path, weights, config, keys, vocabulary, kind, progress)
            base += len(weights)
        write_json(ctx.out / "gguf_check.json", checks)
        for name, check in checks.items():
            if not check["ok"]:
                raise StepFailure(
                    f"{name} does not hold the merged model: {check['problems'][0]} ({len(check['problems'])} problems)",
                    state="data_invalid", hint="Look at the disk and the memory of this machine, then try again.")
        write_json(ctx.out / "certificate.json", certificate(ctx, weights))


def merge(training: Path, target: Path, settings: ConversionSettings) -> None:
    """Variant C as a plain model in ``target``, with the base's own tokenizer files."""
    import shutil

    from so8t_ops.model.load import base_folder, compose, quiet_hub, torch_dtype

    quiet_hub()
    model = compose(training, "C", torch_dtype(settings.merge_dtype))
    # The path the base was loaded from would differ from run to run.
    model.config._name_or_path = ""
    model.save_pretrained(target, max_shard_size=settings.shard_size)
    source = base_folder(training)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def describe_tokenizer(folder: Path) -> dict[str, Any]:
    """Special ids, switches and chat template as transformers reads them."""
    from so8t_ops.model.load import load_tokenizer

    tokenizer = load_tokenizer(folder)
    return {
        "bos_id": tokenizer.bos_token_id, "eos_id": tokenizer.eos_token_id, "unk_id": tokenizer.unk_token_id,
        "pad_id": tokenizer.pad_token_id, "add_bos_token": getattr(tokenizer, "add_bos_token", False),
        "add_eos_token": getattr(tokenizer, "add_eos_token", False), "chat_template": tokenizer.chat_template,
    }


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, the same bytes every time."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
