"""The merged model's tensors, one at a time: a model of 3.8 billion parameters needs the memory of its largest tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Weights:
    """Tensors of a folder of safetensors files, in a fixed order."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            self._files = {name: folder / file for name, file in where.items()}
        else:
            from safetensors import safe_open

            single = folder / "model.safetensors"
            with safe_open(single, framework="pt") as opened:
                self._files = dict.fromkeys(opened.keys(), single)

    def names(self) -> list[str]:
        """Embedding first, then layer by layer, then the rest: the order of a forward pass, the same every time."""
        def place(name: str) -> tuple[int, int, str]:
            parts = name.split(".")
            if "layers" in parts:
                return 1, int(parts[parts.index("layers") + 1]), name
            return (0 if "embed" in name else 2), 0, name

        return sorted(self._files, key=place)

    def shape(self, name: str) -> tuple[int, ...]:
        from safetensors import safe_open

        with safe_open(self._files[name], framework="pt") as opened:
            return tuple(opened.get_slice(name).get_shape())

    def get(self, name: str) -> Any:
        """One tensor as a float32 numpy array of its own shape."""
        import torch
        from safetensors import safe_open

        with safe_open(self._files[name], framework="pt") as opened:
            return opened.get_tensor(name).to(torch.float32).numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._files)
