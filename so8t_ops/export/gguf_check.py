"""Read a GGUF file back and compare it, key by key and tensor by tensor, with what it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from so8t_ops.export.gguf_write import encode
from so8t_ops.export.layout import Value, rope_factors, tensor_name, tensor_type
from so8t_ops.export.vocabulary import Vocabulary
from so8t_ops.export.weights import Weights


def check_gguf(
    path: Path, weights: Weights, config: Mapping[str, Any], keys: Mapping[str, Value], vocabulary: Vocabulary,
    kind: str, progress: Callable[[int], None],
) -> dict[str, Any]:
    """Compare; nothing is believed that was not read from the file.

    Returns ``{"ok", "problems": [...], "keys", "tensors": [{"name", "shape", "type", "sha256", "max_abs_error"}]}``.
    Every tensor must hold exactly the encoding of its source; ``max_abs_error`` says how far that encoding is from the
    float32 source.
    """
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(path)
    problems = [*_keys(reader, keys), *_tokens(reader, vocabulary)]
    found = {tensor.name: tensor for tensor in reader.tensors}
    tied = bool(config.get("tie_word_embeddings"))
    wanted = {tensor_name(name): name for name in weights if not (tied and name == "lm_head.weight")}
    factors = {name: np.asarray(values, dtype=np.float32) for name, values in rope_factors(config).items()}
    problems += [f"tensor {name} is missing" for name in sorted({*wanted, *factors} - set(found))]
    problems += [f"tensor {name} has no source" for name in sorted(set(found) - {*wanted, *factors})]
    report = []
    for done, (name, source) in enumerate([*wanted.items(), *((name, "") for name in factors)], 1):
        if name not in found:
            continue
        original = weights.get(source) if source else factors[name]
        stored_kind = tensor_type(original.shape, kind)
        expected, stored = encode(original, stored_kind), found[name].data
        shape = tuple(int(n) for n in reversed(found[name].shape))
        if shape != original.shape:
            problems.append(f"tensor {name} has shape {shape}, not {original.shape}")
        elif found[name].tensor_type.name.lower() != stored_kind:
            problems.append(f"tensor {name} is {found[name].tensor_type.name}, not {stored_kind}")
        elif np.ascontiguousarray(stored).tobytes() != np.ascontiguousarray(expected).tobytes():
            problems.append(f"tensor {name} does not hold the values of {source or 'the configuration'}")
        else:
            back = gguf.quants.dequantize(np.asarray(stored), found[name].tensor_type).reshape(original.shape)
            error = float(np.max(np.abs(back - original))) if original.size else 0.0
            if not np.isfinite(error):
                problems.append(f"tensor {name} has values that {stored_kind} can't hold")
            report.append({
                "name": name, "shape": list(shape), "type": stored_kind, "max_abs_error": error,
                "sha256": hashlib.sha256(np.ascontiguousarray(stored).tobytes()).hexdigest(),
            })
        progress(done)
    return {"ok": not problems, "problems": problems, "keys": len(keys), "tensors": report}


def _keys(reader: Any, keys: Mapping[str, Value]) -> list[str]:
    import numpy as np

    problems = []
    for key, value in keys.items():
        field = reader.fields.get(key)
        if field is None:
            problems.append(f"key {key} is missing")
            continue
        stored, expected = field.contents(), value.value
        if value.kind == "f32":
            expected = float(np.float32(expected))
        if stored != expected:
            problems.append(f"key {key} is {stored!r}, not {expected!r}")
    return problems


def _tokens(reader: Any, vocabulary: Vocabulary) -> list[str]:
    import numpy as np

    problems = []
    for key, expected in (
        ("tokens", [token.decode("utf-8") for token in vocabulary.tokens]),
        ("scores", [float(np.float32(score)) for score in vocabulary.scores]), ("token_type", list(vocabulary.types)),
    ):
        field = reader.fields.get(f"tokenizer.ggml.{key}")
        stored = field.contents() if field is not None else None
        if stored is None or len(stored) != len(expected):
            problems.append(f"tokenizer.ggml.{key} has {len(stored or ())} entries, not {len(expected)}")
            continue
        wrong = next((i for i, (a, b) in enumerate(zip(stored, expected, strict=True)) if a != b), None)
        if wrong is not None:
            problems.append(f"tokenizer.ggml.{key}[{wrong}] is {stored[wrong]!r}, not {expected[wrong]!r}")
    return problems
