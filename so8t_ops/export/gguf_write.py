"""Write a GGUF file as a stream: all headers first, then one tensor after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from so8t_ops.export.blueprint import Blueprint


def encode(array: Any, kind: str) -> Any:
    """A float32 array as the raw values of a GGUF type; rows of quantised types become bytes.

    Each row is encoded by itself, so that a tensor can be encoded in parts.
    """
    import gguf
    import numpy as np

    return gguf.quants.quantize(np.ascontiguousarray(array, dtype=np.float32), quantization(kind))


def quantization(kind: str) -> Any:
    """gguf's type for one of ours."""
    import gguf

    return gguf.GGMLQuantizationType[kind.upper()]


def write_gguf(path: Path, blueprint: Blueprint, progress: Callable[[], None]) -> None:
    """Write one file; ``progress`` is called after each tensor.

    Memory: one tensor in float32 and its encoding.

    Raises:
        StepFailure: a tensor can't be stored as this type (``data_invalid``).
    """
    import gguf

    with closing(gguf.GGUFWriter(path, arch="phi3", use_temp_file=False)) as writer:
        add: dict[str, Callable[[str, Any], None]] = {
            "u32": writer.add_uint32, "f32": writer.add_float32, "bool": writer.add_bool,
            "string": writer.add_string, "strings": writer.add_array,
        }
        for key, value in blueprint.keys.items():
            if key != "general.architecture":  # the writer has put it there itself
                add[value.kind](key, value.value)
        writer.add_token_list(list(blueprint.vocabulary.tokens))
        writer.add_token_scores(list(blueprint.vocabulary.scores))
        writer.add_token_types(list(blueprint.vocabulary.types))
        for name in blueprint.names():
            _announce(writer, name, blueprint.shape(name), blueprint.type_of(name))
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in blueprint.names():
            writer.write_tensor_data(encode(blueprint.array(name), blueprint.type_of(name)))
            progress()


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: str) -> None:
    import gguf
    import numpy as np

    if kind in ("f32", "f16"):
        dtype = np.dtype(np.float32 if kind == "f32" else np.float16)
        writer.add_tensor_info(name, list(shape), dtype, int(np.prod(shape)) * dtype.itemsize)
        return
    raw = quantization(kind)
    packed = gguf.quant_shape_to_byte_shape(shape, raw)
    writer.add_tensor_info(name, list(packed), np.dtype(np.uint8), int(np.prod(packed)), raw_dtype=raw)
