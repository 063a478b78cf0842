"""The ``conversion`` section: how the trained model becomes a GGUF file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from so8t_fsm.step import Settings

FileType = Literal["f32", "f16", "bf16", "q8_0"]


class ConversionSettings(Settings):
    """Merging and GGUF."""

    name: str = Field(
        "SO8T-Phi-3-tiny", min_length=1,
        description="The model's name, in the GGUF and its file names; it must contain phi-3, by which llama.cpp "
        "recognises how special tokens are to be stripped.")
    types: tuple[FileType, ...] = Field(("f16",), min_length=1, description="GGUF files to write, one a type.")
    merge_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision in which the adapters are merged, and of the merged model.")
    shard_size: str = Field("2GB", pattern=r"^[1-9][0-9]*(MB|GB)$", description="Largest file of the merged model.")
    author: str = Field("", description="Author, in the GGUF's metadata; empty leaves it out.")
    license: str = Field("apache-2.0", description="Licence of the result, in the GGUF's metadata.")
    languages: tuple[str, ...] = Field(("ja", "en"), description="Languages, in the GGUF's metadata.")

    @field_validator("name")
    @classmethod
    def _recognisable(cls, name: str) -> str:
        if "phi-3" not in name.lower() and "phi3" not in name.lower():
            raise ValueError("must contain phi-3, else llama.cpp tokenizes text after special tokens differently")
        if any(sign in '/\\:*?"<>|' or not sign.isprintable() for sign in name) or name != name.strip(" ."):
            raise ValueError("must be usable as a file name")
        return name

    @field_validator("types")
    @classmethod
    def _each_once(cls, types: tuple[FileType, ...]) -> tuple[FileType, ...]:
        if len(set(types)) != len(types):
            raise ValueError("names a type twice")
        return types
