"""Percentile bootstrap intervals of means and of paired mean differences, seeded."""

from __future__ import annotations

import dataclasses
from typing import Sequence

import numpy as np

__all__ = ['Interval', 'crossed_interval', 'mean_interval', 'paired_difference']


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
    member = _members(x, groups, level)
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


def crossed_interval(
    values: Sequence[Sequence[float]],
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of a table whose rows are runs and whose columns are pictures; both are drawn anew.

    Args:
        values: (R, N) finite, such as differences of two methods, with run r of both at the same seed.
        groups: (N,) labels of the columns, drawn whole; None: every column is its own group.
        level, draws, seed: as in `mean_interval`.

    Returns:
        `groups` counts those of the columns, or the runs where there is one column.

    Raises:
        ValueError: no values, or one that is not finite; lengths that differ.

    >>> crossed_interval([[1.0, 3.0]], draws=1000).high
    3.0
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or not x.size:
        raise ValueError(f'expected a table of at least one run and one value, got shape {x.shape}')
    member = _members(x, groups, level)
    sums, counts = np.stack([np.bincount(member, row) for row in x]), np.bincount(member)
    rng, total = np.random.default_rng(seed), len(counts)
    runs = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), draws)
    drawn = rng.multinomial(total, np.full(total, 1 / total), draws)
    means = np.einsum('dr,rg,dg->d', runs, sums, drawn, optimize=True) / (len(x) * (drawn @ counts))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high), x.size, total if total > 1 else len(x))


def _members(x: np.ndarray, groups: Sequence[object] | None, level: float) -> np.ndarray:
    """The number of each column's group, (N,), of values (N,) or (R, N); what is wrong with any of them is raised."""
    if not np.isfinite(x).all():
        raise ValueError(f'{(~np.isfinite(x)).sum()} of {x.size} values are not finite')
    if not 0 < level < 1:
        raise ValueError(f'level: expected a number between 0 and 1, got {level}')
    labels = list(range(x.shape[-1])) if groups is None else list(groups)
    if len(labels) != x.shape[-1]:
        raise ValueError(f'{x.shape[-1]} values but {len(labels)} group labels')
    index = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([index[label] for label in labels])
