"""Means of methods, and differences between them on the same pictures, with 95 % bootstrap intervals."""

from __future__ import annotations

import dataclasses
from typing import Mapping, Sequence

from finpercep_plugin.report.bootstrap import Interval, mean_interval, paired_difference
from finpercep_plugin.scoring.table import Row

__all__ = ['Comparison', 'compare']


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that tables of methods show.

    Args:
        columns: {column: whether higher is better}.
        methods: in the order they were given.
        means: {method: {column: its mean}}; None where nothing was scored.
        baseline: the method that others are compared with; '' with one method.
        differences: {method: {column: mean of method - baseline over the pictures that both have}}.
        best, second: {column: method} by the mean, among methods scored on the same pictures.
        digits: {column: digits after the point, as papers have them: 2 from 10 on, 4 below}.
        uneven: columns in which methods were scored on different pictures, so that their means do not compare.
    """

    columns: Mapping[str, bool | None]
    methods: tuple[str, ...]
    means: dict[str, dict[str, Interval | None]]
    baseline: str
    differences: dict[str, dict[str, Interval | None]]
    best: dict[str, str]
    second: dict[str, str]
    digits: dict[str, int]
    uneven: tuple[str, ...]


def compare(
    rows: Sequence[Row], columns: Mapping[str, bool | None], baseline: str = '', seed: int = 0, draws: int = 10_000
) -> Comparison:
    """Means and paired differences.

    Args:
        rows: of all methods.
        columns: {column: whether higher is better}.
        baseline: what others are compared with; '' for the first method.
        seed: of the resampling.
        draws: resamples.
    """
    methods = tuple(dict.fromkeys(row.method for row in rows))
    baseline = baseline or methods[0]
    values = {
        m: {c: {r.key: r.values[c] for r in rows if r.method == m and r.values[c] is not None} for c in columns}
        for m in methods
    }
    means = {
        m: {c: mean_interval(list(v.values()), seed=seed, draws=draws) if v else None for c, v in values[m].items()}
        for m in methods
    }
    differences: dict[str, dict[str, Interval | None]] = {}
    for method in methods if len(methods) > 1 else ():
        if method == baseline:
            continue
        differences[method] = {}
        for column in columns:
            base, other = values[baseline][column], values[method][column]
            common = [key for key in base if key in other]
            pairs = [base[key] for key in common], [other[key] for key in common]
            differences[method][column] = paired_difference(*pairs, seed=seed, draws=draws) if common else None
    uneven = tuple(c for c in columns if len({frozenset(values[m][c]) for m in methods}) > 1)
    best, second = _ranked(columns, methods, means, uneven)
    largest = {c: max((abs(i[c].mean) for i in means.values() if i[c]), default=0.0) for c in columns}
    digits = {column: 2 if size >= 10 else 4 for column, size in largest.items()}
    return Comparison(
        columns, methods, means, baseline if differences else '', differences, best, second, digits, uneven
    )


def _ranked(
    columns: Mapping[str, bool | None],
    methods: Sequence[str],
    means: Mapping[str, Mapping[str, Interval | None]],
    uneven: Sequence[str],
) -> tuple[dict[str, str], dict[str, str]]:
    best: dict[str, str] = {}
    second: dict[str, str] = {}
    for column, higher in columns.items():
        scored = [m for m in methods if means[m][column] is not None]
        if higher is None or len(scored) < 2 or column in uneven:
            continue
        order = sorted(scored, key=lambda m: means[m][column].mean, reverse=higher)
        best[column] = order[0]
        if len(order) > 2:
            second[column] = order[1]
    return best, second
