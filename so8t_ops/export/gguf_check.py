"""Read a GGUF file back and compare it, key by key and tensor by tensor, with what it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from so8t_ops.export.blueprint import Blueprint
from so8t_ops.export.gguf_write import encode

ROWS = 1024
"""Rows compared at a time, so that a large tensor is in memory once and not five times."""

TYPES = {"u32": ["UINT32"], "f32": ["FLOAT32"], "bool": ["BOOL"], "string": ["STRING"], "strings": ["ARRAY", "STRING"]}
LISTS = {"tokens": ["ARRAY", "STRING"], "scores": ["ARRAY", "FLOAT32"], "token_type": ["ARRAY", "INT32"]}


def check_gguf(path: Path, blueprint: Blueprint, progress: Callable[[], None]) -> dict[str, Any]:
    """Compare; nothing is believed that was not read from the file.

    Returns ``{"ok", "problems": [...], "keys", "tensors": [{"name", "shape", "type", "sha256", "max_abs_error"}]}``.
    Every tensor must hold exactly the encoding of its source; ``max_abs_error`` says how far that encoding is from the
    float32 source.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        return {"ok": False, "problems": [f"it can't be read as GGUF: {error}"], "keys": 0, "tensors": []}
    problems = [*_keys(reader, blueprint), *_tokens(reader, blueprint)]
    found = {tensor.name: tensor for tensor in reader.tensors}
    names = blueprint.names()
    problems += [f"tensor {name} is missing" for name in sorted(set(names) - set(found))]
    problems += [f"tensor {name} has no source" for name in sorted(set(found) - set(names))]
    report = []
    for name in names:
        if name in found:
            entry, problem = _tensor(found[name], name, blueprint)
            report.append(entry)
            problems += [problem] if problem else []
        progress()
    return {"ok": not problems, "problems": problems, "keys": len(blueprint.keys), "tensors": report}


def _tensor(stored: Any, name: str, blueprint: Blueprint) -> tuple[dict[str, Any], str]:
    """A line of the report, and what is wrong with the tensor or nothing."""
    import gguf
    import numpy as np

    kind, shape = stored.tensor_type.name.lower(), tuple(int(n) for n in reversed(stored.shape))
    entry: dict[str, Any] = {"name": name, "shape": list(shape), "type": kind}
    if shape != blueprint.shape(name):
        return entry, f"tensor {name} has shape {shape}, not {blueprint.shape(name)}"
    if kind != blueprint.type_of(name):
        return entry, f"tensor {name} is {kind}, not {blueprint.type_of(name)}"
    original, digest, error, wrong = blueprint.array(name), hashlib.sha256(), 0.0, None
    for first in range(0, len(original), ROWS):
        rows = slice(first, first + ROWS)
        data = np.ascontiguousarray(stored.data[rows])
        digest.update(data)
        if wrong is None and data.tobytes() != encode(original[rows], kind).tobytes():
            wrong = first
        # Bytes that were changed may well stand for no number: the comparison above has said so.
        with np.errstate(all="ignore"):
            back = gguf.quants.dequantize(data, stored.tensor_type).reshape(original[rows].shape)
            error = max(error, float(np.max(np.abs(back - original[rows]))))
    entry["sha256"] = digest.hexdigest()
    if wrong is not None:
        source = blueprint.sources.get(name, "the configuration's LongRoPE factors")
        return entry, f"tensor {name} does not hold the values of {source} (rows {wrong} to {wrong + ROWS - 1})"
    return entry | {"max_abs_error": error}, ""


def _keys(reader: Any, blueprint: Blueprint) -> list[str]:
    import numpy as np

    problems = []
    for key, value in blueprint.keys.items():
        field = reader.fields.get(key)
        if field is None:
            problems.append(f"key {key} is missing")
            continue
        types, stored, expected = [kind.name for kind in field.types], _contents(field), value.value
        if value.kind == "f32":
            expected = float(np.float32(expected))
        if types != TYPES[value.kind]:
            problems.append(f"key {key} has type {' of '.join(types)}, not {' of '.join(TYPES[value.kind])}")
        elif stored != expected:
            problems.append(f"key {key} is {stored!r}, not {expected!r}")
    ours = {*blueprint.keys, *(f"tokenizer.ggml.{name}" for name in LISTS)}
    return problems + [
        f"key {key} has no source" for key in sorted(set(reader.fields) - ours) if not key.startswith("GGUF.")]


def _tokens(reader: Any, blueprint: Blueprint) -> list[str]:
    import numpy as np

    problems, vocabulary = [], blueprint.vocabulary
    wanted: dict[str, list[Any]] = {
        "tokens": [token.decode() for token in vocabulary.tokens],
        "scores": [float(np.float32(score)) for score in vocabulary.scores], "token_type": list(vocabulary.types),
    }
    for name, expected in wanted.items():
        key = f"tokenizer.ggml.{name}"
        field = reader.fields.get(key)
        if field is None:
            problems.append(f"key {key} is missing")
            continue
        types, stored = [kind.name for kind in field.types], _contents(field)
        if types != LISTS[name]:
            problems.append(f"key {key} has type {' of '.join(types)}, not {' of '.join(LISTS[name])}")
        elif len(stored) != len(expected):
            problems.append(f"key {key} has {len(stored)} entries, not {len(expected)}")
        else:
            wrong = [i for i, (a, b) in enumerate(zip(stored, expected, strict=True)) if a != b]
            problems += [f"key {key}: [{i}] is {stored[i]!r}, not {expected[i]!r}" for i in wrong[:1]]
    return problems


def _contents(field: Any) -> Any:
    """A key's value, or the bytes of a text that is no UTF-8."""
    try:
        return field.contents()
    except UnicodeDecodeError as error:
        return error.object
