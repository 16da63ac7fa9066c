"""Percentile bootstrap intervals of means and of paired mean differences, seeded."""

from __future__ import annotations

import dataclasses
from typing import Sequence

import numpy as np

__all__ = ['Interval', 'mean_interval', 'paired_difference']


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its interval; `n` values went into it, from `groups` independent groups."""

    mean: float
    low: float
    high: float
    n: int
    groups: int

    def __str__(self) -> str:
        return f'{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]'


def mean_interval(
    values: Sequence[float],
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean.

    Args:
        values: (N,) finite.
        groups: (N,) labels, such as the photo that a crop is from. Whole groups are drawn, since crops of one photo are not independent;
            None: every value is its own group.
        level: coverage, in (0, 1).
        draws: resamples.
        seed: of the resampling.

    Raises:
        ValueError: no values, a value that is not finite, lengths that differ, or a level outside (0, 1).

    >>> mean_interval([2.0, 2.0, 2.0]).low
    2.0
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f'expected a list of at least one value, got shape {x.shape}')
    if not np.isfinite(x).all():
        raise ValueError(f'{(~np.isfinite(x)).sum()} of {len(x)} values are not finite')
    if not 0 < level < 1:
        raise ValueError(f'level: expected a number between 0 and 1, got {level}')
    labels = list(range(len(x))) if groups is None else list(groups)
    if len(labels) != len(x):
        raise ValueError(f'{len(x)} values but {len(labels)} group labels')
    index = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    member = np.array([index[label] for label in labels])
    sums, counts = np.bincount(member, x), np.bincount(member)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for start in range(0, draws, 1000):  # bounded memory
        drawn = rng.integers(0, len(sums), (min(1000, draws - start), len(sums)))
        means[start : start + len(drawn)] = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high), len(x), len(sums))


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of mean(after - before), item i of both being the same picture. Arguments as in `mean_interval`.

    Raises:
        ValueError: lengths that differ, and those of `mean_interval`.
    """
    if len(before) != len(after):
        raise ValueError(f'pairs expected: {len(before)} values before, {len(after)} after')
    return mean_interval(np.asarray(after, np.float64) - np.asarray(before, np.float64), groups, level, draws, seed)
