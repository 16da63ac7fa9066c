"""What the cells found, as tables of numbers: units, curves, paired differences with intervals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from finpercep_plugin.replication.grid import VARIANTS, Cell, Variant, cells
from finpercep_plugin.report.bootstrap import Interval, crossed_interval

__all__ = ['CURVE_FIGURES', 'MEASURES', 'Measure', 'Results']


@dataclasses.dataclass(frozen=True)
class Measure:
    """How a measure is shown.

    Attributes:
        title: with its unit.
        higher: better when higher.
        digits: after the point.
        scale: factor.
    """

    title: str
    higher: bool = True
    digits: int = 2
    scale: float = 1.0


MEASURES = {
    'reward': Measure('reward R'),
    'held_out': Measure('held-out R'),
    'psnr': Measure('PSNR (dB)'),
    'ssim': Measure('SSIM', digits=3),
    'lq_psnr': Measure('fidelity to lq (dB)'),
    'distance': Measure('feature distance x 100', higher=False, scale=100.0),
    'artifacts': Measure('artifacts (%)', higher=False, scale=100.0, digits=1),
    'lattice_4': Measure('lattice of 4 px (dB)', higher=False, digits=1),
}
"""Of the final generator on every held-out crop."""

CURVE_FIGURES = {
    'variance': Measure('variance of R, last third', higher=False, digits=3),
    'training_variance': Measure("variance of the training batches' R, last third", higher=False, digits=3),
    'drop': Measure('largest drop of R', higher=False),
}
"""Of a cell's reward curve."""


class Results:
    """The result files of a replication.

    Args:
        out: its folder.

    Attributes:
        about: `replication.json`: photos, plan, seed.
        base: of the starting generator, bicubic enlargement and ground truth.
        cells: {(algorithm, variant): {seed: result}}.

    Raises:
        FileNotFoundError: nothing was measured yet.
    """

    def __init__(self, out: Path):
        file = out / 'results' / 'base.json'
        if not file.is_file():
            raise FileNotFoundError(f'{file}: not there; the replication in {out} has measured nothing yet')
        self.about, self.base = _read(out / 'replication.json'), _read(file)
        self.cells: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        for cell in cells():
            path = out / 'results' / f'{cell.name}.json'
            if path.is_file():
                self.cells.setdefault(_key(cell.variant), {})[cell.seed] = _read(path)
        self.units = {
            name: (float(np.mean(values)), float(np.std(values)))
            for name in ('reward', 'held_out')
            for values in [self.base['images']['base'][name]]
        }

    def missing(self) -> list[Cell]:
        return [cell for cell in cells() if cell.seed not in self.cells.get(_key(cell.variant), {})]

    def present(self, algorithm: str | None = None) -> list[Variant]:
        """Variants with a result, in the order of the grid."""
        return [v for v in VARIANTS if self.cells.get(_key(v)) and algorithm in (None, v.algorithm)]

    def seeds(self, v: Variant) -> list[int]:
        return sorted(self.cells.get(_key(v), {}))

    def of_base(self, measure: str, method: str = 'base') -> np.ndarray:
        """(N,) of the starting generator, 'bicubic' or 'gt', in the units of `MEASURES`."""
        return self._scaled(measure, self.base['images'][method][measure])

    def of(self, v: Variant, measure: str) -> dict[int, np.ndarray]:
        """{seed: (N,)} of a variant; of a figure of the curve {seed: (1,)}."""
        runs = self.cells.get(_key(v), {})
        if measure in CURVE_FIGURES:
            return {seed: np.array([self.curve_figures(runs[seed])[measure]]) for seed in sorted(runs)}
        return {seed: self._scaled(measure, runs[seed]['images'][measure]) for seed in sorted(runs)}

    def mean(self, v: Variant, measure: str) -> float:
        return float(np.mean(list(self.of(v, measure).values())))

    def against_base(self, v: Variant, measure: str) -> Interval:
        """Mean of variant - start, over seeds x photos."""
        base = self.of_base(measure)
        return self._interval([values - base for values in self.of(v, measure).values()])

    def difference(self, first: Variant, second: Variant, measure: str) -> Interval | None:
        """Mean of first - second over the seeds that both have, x photos; None if there are none."""
        rows = self._differences(first, second, measure)
        return self._interval(rows) if rows else None

    def seed_means(self, first: Variant, second: Variant, measure: str) -> list[float]:
        """The mean of first - second of each seed that both have."""
        return [float(np.mean(row)) for row in self._differences(first, second, measure)]

    def _differences(self, first: Variant, second: Variant, measure: str) -> list[np.ndarray]:
        ours, theirs = self.of(first, measure), self.of(second, measure)
        return [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]

    def optimised(self, v: Variant) -> Interval:
        """Mean of the reward that was optimised over the last third of training, in its own units from its own start."""
        rows = [[float(np.mean(_last_third(run['training']['reward'])))] for run in self.cells[_key(v)].values()]
        return crossed_interval(rows)

    def curve(self, run: dict[str, Any], measure: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, means over the crops): rewards as changes from the start, in spreads of the start's outputs; PSNR in dB."""
        steps, values = (np.asarray(run['curve'][name]) for name in ('step', measure))
        _, sd = self.units.get(measure, (0.0, 1.0))
        return steps, (values - values[0]) / sd

    def curve_figures(self, run: dict[str, Any]) -> dict[str, float]:
        """Each of `CURVE_FIGURES`."""
        steps, values = self.curve(run, 'reward')
        late = values[steps > 2 / 3 * steps[-1]]
        drop = float(np.max(np.maximum.accumulate(values) - values))
        noise = float(np.var(_last_third(run['training']['reward'])))
        return {'variance': float(np.var(late)), 'training_variance': noise, 'drop': drop}

    def _interval(self, rows: list[np.ndarray]) -> Interval:
        return crossed_interval(rows, self.base['photos'] if len(rows[0]) > 1 else None)

    def _scaled(self, measure: str, values: list[float]) -> np.ndarray:
        mu, sd = self.units.get(measure, (0.0, 1 / MEASURES[measure].scale))
        return (np.asarray(values, np.float64) - mu) / sd


def _last_third(curve: dict[str, list[float]]) -> np.ndarray:
    steps, values = np.asarray(curve['step']), np.asarray(curve['value'])
    return values[steps > 2 / 3 * steps[-1]]


def _key(v: Variant) -> tuple[str, str]:
    return v.algorithm, v.name


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding='utf-8'))
