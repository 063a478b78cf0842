"""The configuration: layers of settings, each effective value with the place it comes from.

    defaults < files (``extends`` first) < environment ``SO8T__TRAINING__BATCH_SIZE`` < ``--set`` < recovery overrides

Mappings merge key by key, everything else replaces.  The steps bring the models of their sections; the machine has four
of its own (:mod:`so8t_fsm.settings`).  Every error is a :class:`ConfigError` whose text is one line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from so8t_fsm.config_layers import Layers, Overrides, Sections, dump, prune, validate
from so8t_fsm.config_problems import format_value
from so8t_fsm.config_tree import Change, diff, flatten, select
from so8t_fsm.located import ConfigError, Located, load_yaml_located
from so8t_fsm.settings import (
    MACHINE_SECTIONS,
    AutomationSettings,
    LoggingSettings,
    NotificationSettings,
    ResourceSettings,
)
from so8t_fsm.step import Settings

__all__ = [
    "Change", "Config", "ConfigError", "Located", "Overrides", "Sections", "diff", "flatten", "format_value", "load",
    "load_yaml_located", "select",
]


@dataclass(frozen=True)
class Config:
    """An effective configuration.

    Attributes:
        values: every setting of every section after validation, defaults included, as plain JSON values.  Secrets
            are masked here: only :meth:`section` has them.
        provenance: for each dotted setting where it comes from: ``default``, ``configs/my.yaml:12:3``,
            ``environment SO8T__TRAINING__BATCH_SIZE``, ``--set``, ``recovery rule cuda-out-of-memory``.
        files: the files that were read, the deepest ``extends`` first.
    """

    values: dict[str, dict[str, Any]]
    provenance: dict[str, str]
    files: tuple[str, ...] = ()
    models: Mapping[str, Settings] = field(default_factory=dict, repr=False)

    def section(self, name: str) -> Settings:
        """One section as its typed model.

        Raises:
            KeyError: no installed step has such a section.
        """
        return self.models[name]

    @property
    def automation(self) -> AutomationSettings:
        return cast(AutomationSettings, self.models["automation"])

    @property
    def resources(self) -> ResourceSettings:
        return cast(ResourceSettings, self.models["resources"])

    @property
    def logging(self) -> LoggingSettings:
        return cast(LoggingSettings, self.models["logging"])

    @property
    def notifications(self) -> NotificationSettings:
        return cast(NotificationSettings, self.models["notifications"])

    def to_json(self) -> str:
        """The snapshot for the run's row; it holds no secret."""
        return json.dumps({"values": self.values, "provenance": self.provenance, "files": list(self.files)},
                          ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, sections: Sections) -> Config:
        """Read a snapshot that this version, an older or a newer one wrote.

        Settings that are not known any more are dropped, new ones get their defaults, sections without a model are
        kept as they are.  Secrets are not in a snapshot: take them from a configuration that was just loaded.

        Raises:
            ConfigError: a value is no longer allowed.
        """
        raw = json.loads(text)
        models: dict[str, type[Settings]] = {**sections, **MACHINE_SECTIONS}
        stored = raw.get("values", {})
        known = {name: prune(stored.get(name, {}), [model]) for name, model in models.items()}
        problems: list[str] = []
        typed = validate(known, models, lambda path, key: "the settings of this run", problems)
        if problems:
            raise ConfigError(*problems)
        values = {**{k: v for k, v in stored.items() if k not in models}, **dump(typed)}
        old = raw.get("provenance", {})
        provenance = {key: old.get(key, "default") for key in flatten(values)}
        return cls(values, provenance, tuple(raw.get("files", ())), typed)

    def with_overrides(self, overrides: Overrides) -> Config:
        """The same configuration with the top layer laid over it: dotted key to (value, id of the rule).

        Raises:
            ConfigError: a key is unknown or a value is not allowed.
        """
        layers = Layers({name: model.model_dump() for name, model in self.models.items()})
        layers.add_overrides(overrides)
        typed = layers.finish({name: type(model) for name, model in self.models.items()})
        values = {**self.values, **dump(typed)}
        provenance = {key: self.provenance.get(key, where) if where == "default" else where
                      for key, where in layers.provenance(values).items()}
        return Config(values, provenance, self.files, typed)


def load(
    path: Path | str | None, sections: Sections | Callable[[Sequence[str]], Sections], *,
    environ: Mapping[str, str] | None = None, sets: Sequence[str] = (), overrides: Overrides | None = None,
    home: Path | None = None,
) -> Config:
    """Read and check a configuration.

    Args:
        path: the YAML file; None means defaults only.
        sections: the models of the steps' sections, or a function that gives them for the names of the steps.
        environ: the environment (default: this process's).
        sets: ``section.key=value`` strings of ``--set``.
        overrides: what recovery changed: dotted key to (value, id of the rule).
        home: files below it are named relative to it.

    Raises:
        ConfigError: anything a person has to mend; ``all`` lists every problem found.
    """
    layers = Layers()
    files: list[str] = []
    if path is not None:
        for document in _chain(Path(path), home):
            files.append(document.name)
            layers.add_file(document)

    def known() -> Sections:
        return {**(sections(layers.step_names()) if callable(sections) else sections), **MACHINE_SECTIONS}

    layers.add_environment(os.environ if environ is None else environ, known())
    layers.add_sets(sets)
    layers.add_overrides(overrides or {})
    typed = layers.finish(known())  # asked again: the later layers may have named other steps
    values = dump(typed)
    return Config(values, layers.provenance(values), tuple(files), typed)


def _chain(path: Path, home: Path | None, inside: tuple[Path, ...] = (), asked_at: str = "") -> Iterator[Located]:
    """The file and, before it, what it extends."""
    name = _shown(path, home)
    missing = f"{asked_at}: extends a file that is not there: {name}; correct the name" if asked_at else (
        f"no configuration at {name}; `so8t init DIR` makes one")
    if path.resolve() in inside:
        raise ConfigError(f"{asked_at}: extends goes in a circle back to {name}; remove one of the lines")
    document = load_yaml_located(path, name=name, missing=missing)
    parent = document.value.pop("extends", None)
    if parent is not None:
        at = document.at(("extends",))
        if not isinstance(parent, str) or not parent:
            raise ConfigError(f"{at}: extends: {format_value(parent, 60)} is not allowed: must be the name of one file")
        yield from _chain(path.parent / Path(parent).expanduser(), home, (*inside, path.resolve()), at)
    yield document


def _shown(path: Path, home: Path | None) -> str:
    absolute = Path(os.path.abspath(path))
    for base in (home, Path.cwd()):
        if base is not None and absolute.is_relative_to(Path(os.path.abspath(base))):
            return absolute.relative_to(os.path.abspath(base)).as_posix()
    return absolute.as_posix()
