"""Where the model goes, under what name, and who may see it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from so8t_fsm.step import Settings


class UploadSettings(Settings):
    """The section ``upload``."""

    target: Literal["folder", "hub"] = Field(
        "folder", description="Publish to a folder that stands for the Hub, or to the Hugging Face Hub itself.")
    folder: str = Field(
        "hub", min_length=1, description="The folder for target 'folder'; relative paths are below the home.")
    repo_id: str = Field(
        "local/so8t-model", max_length=96,
        pattern=r"^[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*/[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*$",
        description="The name to publish under, as owner/name.")
    private: bool = Field(True, description="Create the repository on the Hub as private, and refuse a public one.")
    token_env: str = Field(
        "HF_TOKEN", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="The environment variable that holds the Hub token; the token itself is never written down.")
    endpoint: str = Field(
        "", pattern=r"^(https?://[^\s]+)?$",
        description="The address of the Hub; empty means HF_ENDPOINT, or else https://huggingface.co.")
    include_merged: bool = Field(
        False, description="Publish the merged Hugging Face model too, not only its GGUF files.")
    license: str = Field("apache-2.0", min_length=1, description="The licence of the model, as the Hub spells it.")
    languages: tuple[str, ...] = Field(("ja", "en"), description="The languages named in the model card.")
    tags: tuple[str, ...] = Field(("so8t", "safety", "gguf"), description="The tags named in the model card.")
