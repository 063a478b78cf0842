"""The section ``data``: where samples come from, which licences may enter, how they are cleansed and split."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from so8t_fsm.step import Settings

Label = Literal["ALLOW", "ESCALATION", "DENY", "REFUSE"]
Language = Literal["ja", "en"]


class PromptsSource(Settings):
    """The project's own Japanese and English prompts with gold labels."""

    kind: Literal["prompts"] = Field(description="Which kind of source this is.")
    name: str = Field("prompts", min_length=1, description="Name of the source in every row.")
    per_family: int = Field(12, ge=1, le=200, description="How many prompts are made from each template family.")


class GeneratedSource(Settings):
    """Pictures and sounds drawn from the seed, declared synthetic."""

    kind: Literal["generated"] = Field(description="Which kind of source this is.")
    name: str = Field("generated", min_length=1, description="Name of the source in every row.")
    images: int = Field(40, ge=0, le=100_000, description="How many pictures are drawn.")
    sounds: int = Field(16, ge=0, le=100_000, description="How many sounds are synthesised.")
    image_size: int = Field(96, ge=32, le=1024, description="Width and height of a picture in pixels.")
    sample_rate: int = Field(16_000, ge=8_000, le=48_000, description="Sampling rate of a sound in hertz.")
    seconds: float = Field(0.5, gt=0, le=30, description="Length of a sound in seconds.")


class DistributionsSource(Settings):
    """Descriptions of the installed Python distributions: real text under a declared licence, without a download."""

    kind: Literal["distributions"] = Field(description="Which kind of source this is.")
    name: str = Field("distributions", min_length=1, description="Name of the source in every row.")
    limit: int = Field(200, ge=1, le=10_000, description="At most this many distributions, in order of their names.")
    paragraphs: int = Field(4, ge=1, le=100, description="At most this many paragraphs from each description.")


class FilesSource(Settings):
    """A .jsonl, .parquet or .txt file, or a directory of them, under a licence that the user declares."""

    kind: Literal["files"] = Field(description="Which kind of source this is.")
    path: str = Field(min_length=1, description="File or directory; relative paths are below the home.")
    licence: str = Field(min_length=1, description="SPDX expression of the licence the files are under.")
    name: str = Field("", description="Name of the source in every row (the file's name when empty).")
    language: Language | Literal["auto"] = Field("auto", description="Language of the text; 'auto' reads the script.")
    synthetic: bool = Field(False, description="Whether a program wrote the samples.")
    text_field: str = Field("text", min_length=1, description="Column that holds the text.")
    label_field: str = Field("label", description="Column that holds the label; absent means unlabelled.")
    group_field: str = Field("group", description="Column whose equal values must stay in one split.")
    media_field: str = Field("media", description="Column with the path of a picture or sound, relative to the file.")
    label_map: dict[str, Label] = Field(
        default_factory=dict, description="Translation of the file's own label values into the four classes.")


class HubSource(Settings):
    """A dataset on the Hugging Face Hub, streamed; its licence is read from the dataset card."""

    kind: Literal["hub"] = Field(description="Which kind of source this is.")
    dataset: str = Field(min_length=1, description="Repository id of the dataset, for example 'owner/name'.")
    revision: str = Field("main", min_length=1, description="Branch, tag or commit; a commit makes runs comparable.")
    subset: str | None = Field(None, description="Name of the configuration inside the dataset.")
    split: str = Field("train", min_length=1, description="Split of the dataset that is read.")
    name: str = Field("", description="Name of the source in every row (the repository id when empty).")
    language: Language | Literal["auto"] = Field("auto", description="Language of the text; 'auto' reads the script.")
    text_field: str = Field("text", min_length=1, description="Column that holds the text.")
    label_field: str = Field("label", description="Column that holds the label; absent means unlabelled.")
    media_field: str = Field("", description="Column with a picture or sound; empty for a text dataset.")
    label_map: dict[str, Label] = Field(
        default_factory=dict, description="Translation of the dataset's own label values into the four classes.")


Source = Annotated[
    PromptsSource | GeneratedSource | DistributionsSource | FilesSource | HubSource, Field(discriminator="kind")]


def source_name(source: Source) -> str:
    """The name a source has in rows and in ``provenance.json``."""
    if source.name:
        return source.name
    return source.dataset if isinstance(source, HubSource) else PurePath(getattr(source, "path", source.kind)).stem


class NearDuplicateSettings(Settings):
    """When two samples count as the same, and when as too close to be on both sides of a split."""

    drop_at: float = Field(0.9, gt=0, le=1, description="Jaccard similarity from which only one of two texts is kept.")
    group_at: float = Field(0.7, gt=0, le=1, description="Jaccard similarity from which two texts share a split.")
    ngram_ja: int = Field(3, ge=1, le=10, description="Characters in a shingle of Japanese text.")
    ngram_en: int = Field(5, ge=1, le=20, description="Characters in a shingle of English text.")
    permutations: int = Field(128, ge=16, le=512, description="Hash functions in a MinHash signature.")
    image_distance: int = Field(
        2, ge=0, le=63, description="Bits (of 64) in which the perceptual hashes of two equal pictures may differ.")
    on_conflict: Literal["stricter", "drop"] = Field(
        "stricter", description="When equal samples carry different labels: keep the stricter label, or drop them all.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.group_at > self.drop_at:
            raise ValueError("group_at must not be above drop_at")
        return self


class OutlierSettings(Settings):
    """Statistical cleansing: what lies far from the rest of its language is left out, with the reason recorded."""

    robust_z: float = Field(
        5.0, gt=0, description="Robust standard deviations from the median at which a text is left out.")
    max_fraction: float = Field(
        0.05, ge=0, le=0.5, description="At most this share of the texts is left out, the most extreme first.")
    trees: int = Field(100, ge=10, le=1000, description="Trees of the isolation forest.")


class SplitSettings(Settings):
    """How large the held-out parts are."""

    validation: float = Field(0.1, gt=0, lt=0.5, description="Share of the labelled samples for validation.")
    test: float = Field(0.2, gt=0, lt=0.5, description="Share of the labelled samples for the final test.")


class PreprocessSettings(Settings):
    """What happens between the raw samples and the three splits."""

    min_chars: int = Field(2, ge=1, description="Texts with fewer characters are left out.")
    max_chars: int = Field(8000, ge=10, description="Texts with more characters are left out.")
    pii: Literal["keep", "drop"] = Field(
        "drop", description="What to do with texts that hold a mail address, phone, card or My Number.")
    benchmarks: tuple[str, ...] = Field(
        (), description="Files (.jsonl or .txt) with benchmark texts that no sample may overlap.")
    benchmark_ngram: int = Field(
        30, ge=8, le=200, description="A sample that shares this many characters in a row with one is left out.")
    near_duplicates: NearDuplicateSettings = Field(
        default_factory=NearDuplicateSettings, description="When two samples count as the same.")
    outliers: OutlierSettings = Field(default_factory=OutlierSettings, description="Statistical cleansing.")
    split: SplitSettings = Field(default_factory=SplitSettings, description="Sizes of the held-out parts.")
    report_examples: int = Field(3, ge=0, le=50, description="Examples the report shows for each reason.")


class DataSettings(Settings):
    """The section ``data``: which samples the run is made of."""

    sources: tuple[Source, ...] = Field(
        (PromptsSource(kind="prompts"), GeneratedSource(kind="generated"), DistributionsSource(kind="distributions")),
        min_length=1, description="Where samples come from, read in this order.")
    licenses: tuple[str, ...] = Field(
        ("MIT", "Apache-2.0"), min_length=1, description="SPDX identifiers of the licences that may enter.")
    max_samples: int = Field(100_000, ge=50, description="At most this many samples are kept from each source.")
    shard_size: int = Field(512, ge=1, le=1_000_000, description="Rows in a shard; a finished one is never made twice.")
    seed: int = Field(42, ge=0, description="The seed of everything random in collecting and preprocessing.")
    preprocess: PreprocessSettings = Field(
        default_factory=PreprocessSettings, description="Cleansing, near-duplicates and the split.")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [source_name(source) for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}; give one of them another name")
        return self
