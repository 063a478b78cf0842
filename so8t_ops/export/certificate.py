"""What came from what: one page of hashes that ties the result to its sources."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from so8t_fsm.step import StepContext, artifacts
from so8t_ops.export.weights import Weights
from so8t_ops.model.load import base_folder, read_model_json

LIBRARIES = ("torch", "transformers", "peft", "gguf", "safetensors")


def certificate(ctx: StepContext, weights: Weights) -> dict[str, Any]:
    """Hashes of the base, the adapters, the merged tensors and the GGUF files, with the libraries' versions.

    ``tensors`` is sha256 over each tensor's name, shape and float32 bytes in the order of
    :meth:`so8t_ops.export.weights.Weights.names`; it does not depend on how they are split into files.
    """
    training = ctx.inputs["training"]
    facts = read_model_json(training)
    digest = hashlib.sha256()
    for done, name in enumerate(weights, 1):
        digest.update(f"{name} {list(weights.shape(name))}\n".encode())
        digest.update(weights.get(name))
        ctx.progress(done, len(weights), "tensors", "hashing")
        ctx.stop_if_asked()
    return {
        # The other commits that happen to be there at the time are not what this one was made from.
        "inputs": {"training": ctx.identities["training"]},
        "base": {"name": base_name(str(facts["base"])), "revision": facts.get("revision"),
                 "files": _hashes(ctx, base_folder(training), "*.safetensors")},
        "adapters": {variant: _hashes(ctx, training / str(folder), "*.safetensors")
                     for variant, folder in sorted(facts["adapters"].items())},
        "merged": {"tensors": digest.hexdigest(), "count": len(weights)},
        "gguf": _hashes(ctx, ctx.out / "gguf", "*.gguf"),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def base_name(base: str) -> str:
    """A Hub id as it is; of a folder its last part, because the rest tells of somebody's machine."""
    return Path(base).name if Path(base).is_absolute() else base


def _hashes(ctx: StepContext, folder: Path, pattern: str) -> dict[str, str]:
    def tick(size: int) -> None:
        nonlocal read
        read += size
        ctx.progress(read, None, "bytes", "hashing")
        ctx.stop_if_asked()

    read = 0
    return {path.name: artifacts.hash_file(path, tick)[0] for path in sorted(folder.glob(pattern))}
