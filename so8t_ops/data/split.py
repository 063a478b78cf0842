"""Train, validation and test: stratified by class and language, and never a group on two sides."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from so8t_ops.data.files import bad_data
from so8t_ops.data.labels import LABELS

SPLITS = ("train", "validation", "test")
_SHUFFLES = 4  # the most even fold of this many shuffles is taken


def stratified(
    labels: Sequence[str], languages: Sequence[str], groups: Sequence[str], validation: float, test: float, seed: int,
) -> list[str]:
    """A split name for every labelled row.

    Raises:
        StepFailure: the groups do not allow every class in every split.
    """
    members: dict[str, set[str]] = defaultdict(set)
    for label, group in zip(labels, groups, strict=True):
        members[label].add(group)
    for label in LABELS:
        if len(members[label]) < 3:
            raise bad_data(
                f"class {label} has {len(members[label])} group(s) of related samples; "
                "a split without leakage needs at least 3",
                "Add samples of this class from other families, or raise data.preprocess.near_duplicates.group_at.")
    result = np.full(len(labels), "train", dtype=object)
    everyone = np.arange(len(labels))
    held = _fold(everyone, labels, languages, groups, test, seed, leave=2)
    result[held] = "test"
    rest = np.setdiff1d(everyone, held)
    result[_fold(rest, labels, languages, groups, validation / (1 - test), seed + 1, leave=1)] = "validation"
    verify(labels, groups, result.tolist())
    return result.tolist()


def _fold(
    rows: np.ndarray, labels: Sequence[str], languages: Sequence[str], groups: Sequence[str], fraction: float,
    seed: int, leave: int,
) -> np.ndarray:
    """About ``fraction`` of the rows, whole groups only, with every class, as evenly as can be.

    At least ``leave`` groups of every class stay outside.  Where groups are so few that no part of this size has every
    class, a larger part is taken.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    y = np.array([labels[i] for i in rows])
    g = np.array([groups[i] for i in rows])
    strata = np.array([f"{labels[i]} {languages[i]}" for i in rows])
    fewest = min(len(set(g[y == label].tolist())) for label in LABELS)
    wanted = max(2, round(1 / fraction))
    for folds in dict.fromkeys([wanted, *range(min(wanted, fewest), 1, -1)]):
        found: list[tuple[float, int, np.ndarray]] = []
        for shuffle in range(_SHUFFLES):
            splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=(seed + shuffle) % 2**32)
            for target in (strata, y):
                if folds > len(set(g.tolist())) or np.unique(target, return_counts=True)[1].max() < folds:
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # a rare stratum is no fault: _unevenness decides
                    parts = [held for _, held in splitter.split(rows, target, g)]
                for held in parts:
                    inside = np.isin(np.arange(len(rows)), held)
                    if all(inside[y == label].any() and len(set(g[(y == label) & ~inside].tolist())) >= leave
                           for label in LABELS):
                        found.append((_unevenness(inside, strata, fraction), len(found), held))
        if found:
            return rows[min(found)[2]]
    raise bad_data(
        f"no group-safe part of {fraction:.0%} has all four classes: the groups of related samples are too large",
        "Add samples from other families, or raise data.preprocess.near_duplicates.group_at.")


def _unevenness(inside: np.ndarray, strata: np.ndarray, fraction: float) -> float:
    """How far the shares of the strata are from ``fraction``, summed."""
    return sum(abs(float(inside[strata == s].mean()) - fraction) for s in np.unique(strata))


def by_hash(groups: Sequence[str], validation: float, test: float, seed: int) -> list[str]:
    """A split name for rows without classes: whole groups, in an order that depends on their names and the seed."""
    order = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    held, more = round(test * len(order)), round(validation * len(order))
    name = {g: "test" if i < held else "validation" if i < held + more else "train" for i, g in enumerate(order)}
    return [name[group] for group in groups]


def verify(labels: Sequence[str | None], groups: Sequence[str], splits: Sequence[str]) -> None:
    """Check what everything after relies on.

    Raises:
        StepFailure: a group is in two splits, or a class is missing from one.
    """
    where: dict[str, str] = {}
    present: dict[str, set[str | None]] = {name: set() for name in SPLITS}
    for label, group, split in zip(labels, groups, splits, strict=True):
        if where.setdefault(group, split) != split:
            raise bad_data(f"group {group!r} is in {where[group]} and in {split}")
        present[split].add(label)
    for split in SPLITS:
        missing = [label for label in LABELS if label not in present[split]]
        if missing:
            raise bad_data(f"{split} has no sample of class {', '.join(missing)}", "Add samples of this class.")
