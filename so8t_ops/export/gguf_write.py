"""Write a GGUF file as a stream: all headers first, then one tensor after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from so8t_ops.export.layout import Value, rope_factors, tensor_name, tensor_type
from so8t_ops.export.vocabulary import Vocabulary
from so8t_ops.export.weights import Weights


def encode(array: Any, kind: str) -> Any:
    """A float32 array as the raw values of a GGUF type; rows of quantised types become bytes."""
    import gguf
    import numpy as np

    if kind == "f32":
        return np.ascontiguousarray(array, dtype=np.float32)
    if kind == "f16":
        return np.ascontiguousarray(array).astype(np.float16)
    return gguf.quants.quantize(np.ascontiguousarray(array, dtype=np.float32), quantization(kind))


def quantization(kind: str) -> Any:
    """gguf's type for one of ours."""
    import gguf

    return gguf.GGMLQuantizationType[kind.upper()]


def write_gguf(
    path: Path, weights: Weights, config: Mapping[str, Any], keys: Mapping[str, Value], vocabulary: Vocabulary,
    kind: str, progress: Callable[[int], None],
) -> None:
    """Write one file of type ``kind``; ``progress`` is called with the number of tensors written.

    Memory: one tensor in float32 and its encoding.
    """
    import gguf
    import numpy as np

    factors = {name: np.asarray(values, dtype=np.float32) for name, values in rope_factors(config).items()}
    tied = bool(config.get("tie_word_embeddings"))
    names = [name for name in weights if not (tied and name == "lm_head.weight")]
    writer = gguf.GGUFWriter(path, arch="phi3", use_temp_file=False)
    add: dict[str, Callable[[str, Any], None]] = {
        "u32": writer.add_uint32, "f32": writer.add_float32, "bool": writer.add_bool, "string": writer.add_string,
        "strings": writer.add_array,
    }
    for key, value in keys.items():
        if key != "general.architecture":  # the writer has put it there itself
            add[value.kind](key, value.value)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_scores(list(vocabulary.scores))
    writer.add_token_types(list(vocabulary.types))
    for name, values in factors.items():
        writer.add_tensor_info(name, list(values.shape), values.dtype, values.nbytes)
    kinds = {}
    for name in names:
        shape = weights.shape(name)
        kinds[name] = tensor_type(shape, kind)
        _announce(writer, tensor_name(name), shape, kinds[name])
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for values in factors.values():
        writer.write_tensor_data(values)
    for done, name in enumerate(names, 1):
        writer.write_tensor_data(encode(weights.get(name), kinds[name]))
        progress(done)
    writer.close()


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
