"""The merged model's tensors, one at a time: 3.8 billion weights need the memory of their largest tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Weights:
    """Tensors of a folder of safetensors files, in a fixed order."""

    def __init__(self, folder: Path) -> None:
        self._tensors: dict[str, tuple[Path, tuple[int, ...]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._tensors |= {name: (path, shape) for name, shape in shapes(path).items()}

    def names(self) -> list[str]:
        """Embedding first, then layer by layer, then the rest: the order of a forward pass, the same every time."""
        def place(name: str) -> tuple[int, int, str]:
            parts = name.split(".")
            if "layers" in parts:
                return 1, int(parts[parts.index("layers") + 1]), name
            return (0 if "embed" in name else 2), 0, name

        return sorted(self._tensors, key=place)

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows and columns of a matrix; the length of a vector."""
        return self._tensors[name][1]

    def get(self, name: str) -> Any:
        """One tensor as a contiguous float32 numpy array of its own shape."""
        import torch
        from safetensors import safe_open

        with safe_open(self._tensors[name][0], framework="pt") as opened:
            return opened.get_tensor(name).to(torch.float32).contiguous().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._tensors)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in one safetensors file, from its header alone: cheap, and without torch.

    Raises:
        ValueError: it is no safetensors file.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(stream.read(length))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def count_weights(folder: Path) -> int:
    """Number of weights in a folder of safetensors files; a damaged one counts as bfloat16."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            total += sum(math.prod(shape) for shape in shapes(path).values())
        except (OSError, ValueError):
            total += path.stat().st_size // 2
    return total
