"""The statistics of a paired comparison of classifiers.  Pure functions of counts, booleans and a seed.

Every item is answered by every model, so all comparisons are paired: a difference is the mean of the per-item
differences, and its test looks only at the items on which exactly one of the two models is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

IntervalMethod = Literal["BCa bootstrap", "percentile bootstrap", "Clopper-Pearson bound", "none"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval and how it was made.  ``method`` is "none" when there was nothing to make it from."""

    low: float
    high: float
    method: str = "Wilson"


@dataclass(frozen=True)
class McNemar:
    """A paired test: ``only_first`` items only the first model got right, ``only_second`` only the second."""

    only_first: int
    only_second: int
    p: float


def wilson(right: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927, JASA 22:209); (0, 1) when ``n`` is 0.

    Raises:
        ValueError: not 0 <= right <= n.
    """
    if not 0 <= right <= n:
        raise ValueError(f"{right} right answers of {n}")
    if n == 0:
        return Interval(0.0, 1.0, "none")
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(right, n, alpha=1 - confidence, method="wilson")
    return Interval(max(0.0, float(low)), min(1.0, float(high)))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact test (McNemar 1947, Psychometrika 12:153): two-sided binomial on the discordant items.

    Args:
        first, second: per item, whether the model was right; same items in the same order.

    Raises:
        ValueError: the lengths differ.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    if only_first + only_second == 0:
        return McNemar(0, 0, 1.0)
    from statsmodels.stats.contingency_tables import mcnemar as test

    p = float(test([[0, only_first], [only_second, 0]], exact=True).pvalue)
    return McNemar(only_first, only_second, min(1.0, p))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979, Scand. J. Stat. 6:65), in the order given."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def paired_difference(
    first: Sequence[bool], second: Sequence[bool], *, confidence: float = 0.95, resamples: int = 5000, seed: int = 0,
) -> tuple[float, Interval]:
    """``mean(second) - mean(first)`` and its interval from the BCa bootstrap over items (Efron 1987, JASA 82:171).

    Where every per-item difference is the same, resampling knows no spread and a bootstrap interval would have no
    width.  What is then bounded is the share u of items that could have come out otherwise: with d the common
    difference, the interval is every value within 2u of d for d = ±1 and within u for d = 0, u being the upper
    Clopper-Pearson limit of 0 in n.

    Raises:
        ValueError: the lengths differ.
    """
    differences = [int(b) - int(a) for a, b in zip(first, second, strict=True)]
    n = len(differences)
    if n == 0:
        return 0.0, Interval(-1.0, 1.0, "none")
    if len(set(differences)) == 1:
        d = float(differences[0])
        bound = 1 - ((1 - confidence) / 2) ** (1 / n)
        reach = bound if d == 0 else 2 * bound
        return d, Interval(max(-1.0, d - reach), min(1.0, d + reach), "Clopper-Pearson bound")

    import warnings

    import numpy as np
    from scipy.stats import bootstrap

    estimate = sum(differences) / n
    for method, name in (("BCa", "BCa bootstrap"), ("percentile", "percentile bootstrap")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a degenerate distribution announces itself as nan as well
            interval = bootstrap(
                (np.asarray(differences, dtype=np.float64),), np.mean, n_resamples=resamples, batch=500,
                confidence_level=confidence, method=method, rng=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(interval.low) and math.isfinite(interval.high):
            return estimate, Interval(float(interval.low), float(interval.high), name)
    return estimate, Interval(-1.0, 1.0, "none")


def minimum_detectable_difference(n: int, discordant: int, *, alpha: float, power: float = 0.8) -> float | None:
    """The smallest true difference of two paired proportions that n items would show with the given power.

    Solves Connor's sample-size formula for McNemar's test (Connor 1987, Biometrics 43:207),
    ``n = (z[1-alpha/2]·sqrt(psi) + z[power]·sqrt(psi - d²))² / d²``, for d, with psi the observed share of discordant
    items.  A difference above psi needs at least that much discordance, so there psi is d itself.

    Returns:
        The difference as a proportion (0 to 1), or None when no difference at all could be found with n items.
    """
    if n <= 0:
        return None
    from scipy.optimize import brentq
    from scipy.stats import norm

    z_alpha, z_power = float(norm.ppf(1 - alpha / 2)), float(norm.ppf(power))
    observed = discordant / n

    def surplus(d: float) -> float:
        psi = max(observed, d)
        return (z_alpha * math.sqrt(psi) + z_power * math.sqrt(max(0.0, psi - d * d))) ** 2 - n * d * d

    if surplus(1.0) > 0:
        return None
    return float(brentq(surplus, 1e-9, 1.0, xtol=1e-9))


def confusion(truth: Sequence[str], answers: Sequence[str | None], labels: Sequence[str]) -> list[list[int]]:
    """Counts, one row per true label and one column per given label, plus a last column for no label at all.

    Raises:
        ValueError: a true label is not among ``labels``, or the lengths differ.
    """
    row = {label: i for i, label in enumerate(labels)}
    matrix = [[0] * (len(labels) + 1) for _ in labels]
    for true, given in zip(truth, answers, strict=True):
        if true not in row:
            raise ValueError(f"{true!r} is not one of {', '.join(labels)}")
        matrix[row[true]][row.get(given, len(labels)) if given is not None else len(labels)] += 1
    return matrix
