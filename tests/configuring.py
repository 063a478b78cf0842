"""Sections to configure, and what the tests of the configuration share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from so8t_fsm import config
from so8t_fsm.config import Config, ConfigError
from so8t_fsm.step import Settings

ROOT = Path(__file__).parent.parent


class Source(Settings):
    name: str = Field(min_length=1)
    share: float = Field(1.0, ge=0, le=1)


class Ppo(Settings):
    clip: float = Field(0.2, gt=0, lt=1)
    epochs: int = Field(2, ge=1)


class Training(Settings):
    batch_size: int = Field(8, ge=1)
    learning_rate: float = Field(1e-5, gt=0)
    name: str = "x"
    shuffle: bool = True
    optimizer: Literal["adamw", "sgd"] = "adamw"
    note: str | None = None
    ppo: Ppo = Ppo()


class Folder(Settings):
    kind: Literal["folder"]
    path: str


class Remote(Settings):
    kind: Literal["remote"]
    address: str = Field("here/x", pattern=r"^[a-z]+/[a-z]+$", description="Where it is, as owner/name.")


class Data(Settings):
    sources: tuple[Source, ...] = ()
    places: tuple[Annotated[Folder | Remote, Field(discriminator="kind")], ...] = ()
    weights: dict[str, float] = {}


SECTIONS: dict[str, type[Settings]] = {"data": Data, "training": Training}


def load(home: Path, text: str | bytes = "", name: str = "configs/my.yaml", **more: Any) -> Config:
    file = home / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    more.setdefault("environ", {})
    return config.load(file, SECTIONS, home=home, **more)


def complaint(home: Path, text: str | bytes, **more: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(home, text, **more)
    assert "\n" not in str(caught.value)
    return caught.value.all
