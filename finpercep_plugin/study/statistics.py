"""Preference statistics: pure functions of wins and labels."""

from __future__ import annotations

from typing import Mapping, Sequence

import numpy as np

from finpercep_plugin.report.bootstrap import Interval, mean_interval

__all__ = ['agreement', 'bradley_terry', 'bradley_terry_intervals', 'clustered', 'wilson']

_PRIOR = 0.1  # of a win each way for every pair compared: keeps a method that always wins at a finite strength


def wilson(wins: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share; every vote taken as independent.

    Raises:
        ValueError: no votes.

    >>> str(wilson(8, 10))
    '0.800 [0.490, 0.943]'
    """
    from scipy.stats import binomtest

    if n < 1:
        raise ValueError('no votes')
    bounds = binomtest(wins, n).proportion_ci(level, method='wilson')
    return Interval(wins / n, float(bounds.low), float(bounds.high), n, n)


def clustered(wins: Sequence[float], raters: Sequence[object], level: float = 0.95, seed: int = 0) -> Interval | None:
    """Bootstrap interval of a share, whole raters drawn; None for a single rater.

    Args:
        wins: 1 or 0 a vote.
        raters: who gave it.
        level: coverage.
        seed: of the resampling.
    """
    number = len(set(raters))
    return None if number < 2 else mean_interval(wins, raters, _expanded(level, number), seed=seed)


def _expanded(level: float, n: int) -> float:
    """The level at which a percentile interval of n values has about the coverage wanted: it is too narrow for few
    values (Hesterberg 2015, What Teachers Should Know About the Bootstrap, 5.3).
    """
    from scipy.stats import norm, t

    tail = norm.cdf(np.sqrt(n / (n - 1)) * t.ppf((1 - level) / 2, n - 1))
    return float(min(1 - 2 * tail, 1 - 1e-9))


def bradley_terry(wins: np.ndarray, prior: float = _PRIOR, steps: int = 10_000, tolerance: float = 1e-10) -> np.ndarray:
    """Log strengths by Hunter's MM iteration (2004, eq. 3), mean zero: P(i over j) = sigmoid(s_i - s_j).

    Args:
        wins: (..., M, M), how often i was chosen over j.
        prior: wins added both ways to each pair that was compared.
        steps: at most.
        tolerance: largest change of a strength at the end.

    Returns:
        (..., M); NaN where the comparisons do not connect all methods.

    >>> bradley_terry(np.array([[0, 3], [1, 0]]), prior=0).round(3)
    array([ 0.549, -0.549])
    """
    wins = np.asarray(wins, np.float64)
    wins = wins + prior * ((wins + np.swapaxes(wins, -1, -2)) > 0)
    games, won = wins + np.swapaxes(wins, -1, -2), wins.sum(-1)
    s = np.zeros(won.shape)
    for _ in range(steps):
        p = np.exp(s)
        with np.errstate(divide='ignore', invalid='ignore'):
            new = np.log(won / (games / (p[..., :, None] + p[..., None, :])).sum(-1))
            new = new - new.mean(-1, keepdims=True)
        change = np.nanmax(np.abs(new - s), initial=0.0)
        s = new
        if change < tolerance:
            break
    return np.where(_connected(games)[..., None], s, np.nan)


def _connected(games: np.ndarray) -> np.ndarray:
    """(...,): every method can be reached from the first by comparisons."""
    m = games.shape[-1]
    reach = (games > 0) | np.eye(m, dtype=bool)
    for _ in range(max(1, int(np.ceil(np.log2(m))))):
        reach = np.matmul(reach.astype(np.int64), reach.astype(np.int64)) > 0
    return reach[..., 0, :].all(-1)


def bradley_terry_intervals(
    wins: Mapping[object, np.ndarray], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> list[Interval]:
    """Log strengths with percentile bootstrap intervals over raters.

    Args:
        wins: {rater: (M, M)}, see `bradley_terry`; of two raters or more.
        level: coverage.
        draws: resamples of raters; those that leave the methods unconnected do not count.
        seed: of the resampling.

    Returns:
        One a method.
    """
    tables = np.stack([np.asarray(w, np.float64) for w in wins.values()])
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(tables), np.full(len(tables), 1 / len(tables)), draws)
    level = _expanded(level, len(tables))
    drawn = bradley_terry(np.einsum('dr,rij->dij', times, tables), tolerance=1e-6, steps=1000)
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    means = bradley_terry(tables.sum(0))
    return [Interval(float(m), float(a), float(b), int(tables.sum()), len(tables)) for m, a, b in zip(means, low, high)]


def agreement(
    votes: Sequence[tuple[object, object, str]], level: float = 0.95, draws: int = 500, seed: int = 0
) -> Interval | None:
    """Krippendorff's alpha of nominal answers, with a bootstrap interval over the comparisons.

    Args:
        votes: (rater, comparison, answer); a rater answers a comparison once.
        level: coverage.
        draws: resamples of comparisons.
        seed: of the resampling.

    Returns:
        None where no comparison has two raters, or all answers are the same.
    """
    counts = _value_counts(votes)
    if len(counts) < 1 or (counts.sum(0) > 0).sum() < 2:
        return None
    from krippendorff import alpha

    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        sample = counts[rng.integers(0, len(counts), len(counts))]
        if (sample.sum(0) > 0).sum() > 1:
            drawn.append(alpha(value_counts=sample, level_of_measurement='nominal'))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    whole = alpha(value_counts=counts, level_of_measurement='nominal')
    return Interval(float(whole), float(low), float(high), int(counts.sum()), len(counts))


def _value_counts(votes: Sequence[tuple[object, object, str]]) -> np.ndarray:
    """(comparisons, answers) counts of those with at least two answers."""
    units = {unit: i for i, unit in enumerate(dict.fromkeys(v[1] for v in votes))}
    values = {value: i for i, value in enumerate(sorted({v[2] for v in votes}))}
    counts = np.zeros((len(units), max(1, len(values))), int)
    for _, unit, value in votes:
        counts[units[unit], values[value]] += 1
    return counts[counts.sum(1) >= 2]
