"""Step 3, train: make or load the base, warm it up on labelled prompts, then PPO.  Exact across interruptions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from so8t_fsm.step import GiB, MiB, Needs, Step, StepContext
from so8t_ops.model.settings import TINY_BASE, ModelSettings, TinySettings
from so8t_ops.training.settings import TrainingSettings

ADAPTERS = {"B": "warm", "C": "ppo"}
KEPT_CHECKPOINTS = 5


class Train(Step):
    """Commits ``model.json``, ``base/`` (when the step made it), the adapters ``warm/`` and ``ppo/``,
    ``value_head.safetensors``, ``metrics.json`` and ``training_report.html``.

    Three phases: ``base`` → ``warm`` → ``ppo``.  Variant A is the base, B = A with ``warm`` merged, C = B with ``ppo``
    merged.
    """

    name = "training"
    state = "training"
    sections = {"model": ModelSettings, "training": TrainingSettings}
    reads = ("model", "training")
    uses = ("preprocessing",)

    def needs(self, config: Mapping[str, Mapping[str, Any]], home: Path, out: Path) -> Needs:
        """From the base's size: a self-made one is counted, a folder is measured, a Hub model is taken for 8 GB."""
        model = ModelSettings.model_validate(config.get("model", {}))
        if model.base == TINY_BASE:
            size = 4 * parameters(model.tiny)
            # Its copies travel in the checkpoints, with two moments a weight while it is made.
            return Needs(disk={out: (KEPT_CHECKPOINTS + 2) * 3 * size + 64 * MiB}, ram=GiB + 6 * size)
        folder = home / Path(model.base).expanduser()
        local = folder.is_dir()
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if local else 8 * GiB
        hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
        return Needs(
            disk={out: 2 * GiB if local else 2 * GiB + size}, ram=size + 4 * GiB, vram=size + size // 4 + GiB,
            network=() if local else (f"{hub.hostname}:{hub.port or (80 if hub.scheme == 'http' else 443)}",),
        )

    def run(self, ctx: StepContext) -> None:
        from so8t_ops.model.load import local_folder, quiet_hub

        quiet_hub()
        from so8t_ops.model.load import load_tokenizer, torch_dtype
        from so8t_ops.training.base import make_base
        from so8t_ops.training.dataset import labelled, read_split
        from so8t_ops.training.journal import Journal
        from so8t_ops.training.ppo import PPO
        from so8t_ops.training.report import write_report
        from so8t_ops.training.validate import measure
        from so8t_ops.training.warm import warm_start

        model = ctx.section("model", ModelSettings)
        settings = ctx.section("training", TrainingSettings)
        journal = Journal.open(ctx)
        everything = read_split(ctx.inputs["preprocessing"] / "train.parquet")
        samples = labelled(everything, settings.max_samples, settings.seed)
        held_out = [s for s in read_split(ctx.inputs["preprocessing"] / "validation.parquet") if s.label is not None]

        if model.base == TINY_BASE:
            if journal.phase == "base":
                make_base(journal, model.tiny, settings, everything)
            folder, base, revision = ctx.out / "base", "base", None
        else:
            given = ctx.path(model.base)
            folder = local_folder(str(given) if given.is_dir() else model.base, model.revision)
            base = str(given) if given.is_dir() else model.base
            # A snapshot's folder has the commit as its name: a branch may have moved by the time C is merged.
            revision = None if given.is_dir() else folder.name
            if journal.phase == "base":
                journal.phase = "warm"
        dtype = torch_dtype(model.dtype)
        if journal.phase == "warm":
            warm_start(journal, folder, base, dtype, settings, samples)

        ppo = PPO(folder, ctx.out / "warm", dtype, settings, samples)
        ppo.run(journal)
        ppo.write(ctx.out, base)

        tokenizer, policy = load_tokenizer(folder), ppo.state.model
        validation: dict[str, dict[str, float]] = {}
        if held_out:
            with policy.disable_adapter():
                validation["B"] = measure(policy, tokenizer, held_out, settings.batch_size)
            validation["C"] = measure(policy, tokenizer, held_out, settings.batch_size)
        facts = {
            "base": base, "revision": revision, "dtype": model.dtype, "adapters": ADAPTERS,
            "labels": ["ALLOW", "ESCALATION", "DENY", "REFUSE"],
            "composition": "A = base; B = A + warm, merged; C = B + ppo, merged",
        }
        text = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False)
        (ctx.out / "model.json").write_text(text + "\n", encoding="utf-8", newline="\n")
        run = {
            "prompts": len(samples), "texts": len(everything), "held out": len(held_out),
            "parameters": sum(p.numel() for p in policy.parameters()),
            "trained by PPO": sum(p.numel() for p in policy.parameters() if p.requires_grad),
            **{f"steps: {name}": len(curve) for name, curve in sorted(journal.curves.items())},
        }
        write_report(ctx.out, journal.curves, {"run": run, "validation": validation})


def parameters(sizes: TinySettings) -> int:
    """Number of weights of the self-made base, norms left out."""
    layer = 4 * sizes.hidden_size**2 + 3 * sizes.hidden_size * sizes.intermediate_size
    return 2 * (sizes.vocab_size + 64) * sizes.hidden_size + sizes.layers * layer
