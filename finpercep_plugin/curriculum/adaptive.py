"""Leaving a stage of the curriculum when it has nothing more to give, or is being hacked (METHOD.md §4)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Mapping, Sequence

from finpercep_plugin.curriculum.schedule import Decision, planned_starts

__all__ = ['AdaptiveOptions', 'AdaptivePolicy', 'problems', 'trend']

REWARD = 'reward'
"""Name of what is optimised among the statistics; all others are never optimised, and higher is better."""


@dataclasses.dataclass(frozen=True)
class AdaptiveOptions:
    """`train.ccl.adaptive:`. The lengths in `train.ccl.stages` are then upper bounds.

    Statistics are observed every `train.monitor.every` steps, in units of their spread over the starting generator's
    outputs.

    Attributes:
        window: observations that a slope is fitted to; there is none before that many of a stage.
        smoothing: what is kept of the moving average of the slopes at each observation; 0 for none.
        flat: standard errors up to which a slope is flat.
        min_gain: a rise over the window up to this, in units, is flat however sure it is.
        drop: a fall over the window from this, in units, while the reward rises, is hacking.
        min_steps: no stage is left before.
        patience: observations in a row that must agree.
        metrics: names of the measures that count; null for all.
    """

    window: int = 12
    smoothing: float = 0.5
    flat: float = 2.0
    min_gain: float = 0.05
    drop: float = 0.5
    min_steps: int = 1000
    patience: int = 3
    metrics: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.window < 4 or self.min_steps < 1 or self.patience < 1:
            raise ValueError('expected window >= 4, min_steps >= 1 and patience >= 1')
        if not 0 <= self.smoothing < 1 or min(self.flat, self.min_gain) < 0 or self.drop <= 0:
            raise ValueError('expected smoothing in [0, 1), flat >= 0, min_gain >= 0 and drop > 0')
        if self.metrics is not None and (not self.metrics or REWARD in self.metrics):
            raise ValueError(f'metrics: expected names of measures that are not optimised, got {list(self.metrics)}')


def trend(steps: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Slope of the least-squares line, and its standard error from the residuals.

    Args:
        steps: 3 or more, not all equal.
        values: as many.

    >>> trend([1, 2, 3, 4], [1.0, 3.0, 2.0, 4.0])  # residuals -0.3, 0.9, -0.9, 0.3: sqrt(1.8 / 2 / 5)
    (0.8, 0.4242640687119285)
    """
    count = len(steps)
    x_mean, y_mean = math.fsum(steps) / count, math.fsum(values) / count
    spread = math.fsum((x - x_mean) ** 2 for x in steps)
    slope = math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(steps, values)) / spread
    left = math.fsum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in zip(steps, values))
    return slope, math.sqrt(left / (count - 2) / spread)


class AdaptivePolicy:
    """Leaves a stage when none of the measures that are never optimised rises any more ('flat'), or when the reward
    rises and one of them falls ('hacked').

    Of each statistic the slope over the last `window` observations of the stage is fitted and smoothed. It rises when
    its slope is above `flat` standard errors and amounts to more than `min_gain` over the window. A fall counts from
    `flat` standard errors below 0 and `drop` over the window. Sums are exact, so that ranks that are given the same
    numbers agree.

    Args:
        options: thresholds.
    """

    def __init__(self, options: AdaptiveOptions = AdaptiveOptions()):
        self.options = options
        self._begin(-1)

    def _begin(self, stage: int) -> None:
        self._stage = stage
        self._steps: list[int] = []
        self._values: dict[str, list[float]] = {}
        self._slopes: dict[str, float] = {}
        self._flat = self._hacked = 0

    def decide(
        self, step: int, stage: int, first: int, last: int, statistics: Mapping[str, float], hacked: bool = False
    ) -> Decision:
        """
        Args:
            step: the one just done, above the last one given.
            stage: in force at `step`.
            first, last: its first step, and its last one unless it is left early.
            statistics: 'reward' and measures that are never optimised, of this stage, all higher for better.
            hacked: a monitor says so; the stage is then left as soon as it has had `min_steps`.

        Returns:
            reason: 'hacked', 'flat', 'limit' (the planned end), or, if it stays: 'short' (too few steps or observations),
            'rising', 'patience' (not often enough in a row), 'not finite' (statistics that cannot be used, and are not).
            evidence: of each statistic with a slope, what it amounts to over the window ('_rise') and its standard error
            ('_se'); 'steps' of the stage so far; 'flat' and 'hacked' observations in a row.

        Raises:
            ValueError: no reward or no measure among the statistics, or other ones than before; a step that is not above
                the last.
        """
        if stage != self._stage:
            self._begin(stage)
        values = self._chosen(statistics)
        if self._steps and step <= self._steps[-1]:
            raise ValueError(f'the curriculum has seen step {self._steps[-1]}; got {step}')
        evidence = {'steps': float(step - first + 1)}
        finite = all(map(math.isfinite, values.values()))
        if finite:
            self._note(step, values)
            evidence.update(self._judge())
        evidence |= {'flat': float(self._flat), 'hacked': float(self._hacked), 'monitor': float(hacked)}
        reason = self._reason(step - first + 1, finite, hacked)
        if step >= last and reason not in ('hacked', 'flat'):
            reason = 'limit'
        return Decision(step, stage, reason in ('hacked', 'flat', 'limit'), reason, evidence)

    def _chosen(self, statistics: Mapping[str, float]) -> dict[str, float]:
        """The reward and the measures that count, in a fixed order."""
        names = sorted(set(statistics) - {REWARD}) if self.options.metrics is None else list(self.options.metrics)
        missing = sorted({REWARD, *names} - set(statistics))
        if missing or not names:
            raise ValueError(f'adaptive CCL needs {missing or "measures"}; there are {sorted(statistics)}')
        if self._values and set(self._values) != {REWARD, *names}:
            raise ValueError(f'the statistics of stage {self._stage} were {sorted(self._values)}, not {names}')
        return {name: float(statistics[name]) for name in (REWARD, *names)}

    def _note(self, step: int, values: Mapping[str, float]) -> None:
        keep = self.options.window
        self._steps = [*self._steps, int(step)][-keep:]
        self._values = {name: [*self._values.get(name, ()), value][-keep:] for name, value in values.items()}

    def _judge(self) -> dict[str, float]:
        """Count the observations in a row that are flat or look hacked; the numbers behind it."""
        options, evidence = self.options, {}
        if len(self._steps) < options.window:
            return {}
        rising, falling, span = set(), set(), self._steps[-1] - self._steps[0]
        for name, values in self._values.items():
            slope, error = trend(self._steps, values)
            before = self._slopes.get(name, slope)
            slope = self._slopes[name] = options.smoothing * before + (1 - options.smoothing) * slope
            evidence |= {f'{name}_rise': slope * span, f'{name}_se': error * span}
            if slope > options.flat * error and slope * span > options.min_gain:
                rising.add(name)
            if slope < -options.flat * error and slope * span <= -options.drop:
                falling.add(name)
        self._flat = 0 if rising - {REWARD} else self._flat + 1
        self._hacked = self._hacked + 1 if REWARD in rising and falling else 0
        return evidence

    def _reason(self, steps: int, finite: bool, hacked: bool) -> str:
        if steps < self.options.min_steps:
            return 'short'
        if hacked or self._hacked >= self.options.patience:
            return 'hacked'
        if not finite:
            return 'not finite'
        if len(self._steps) < self.options.window:
            return 'short'
        if self._flat >= self.options.patience:
            return 'flat'
        return 'patience' if self._flat or self._hacked else 'rising'

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for `torch.load(weights_only=True)`."""
        return {
            'stage': self._stage,
            'steps': list(self._steps),
            'values': {name: list(values) for name, values in self._values.items()},
            'slopes': dict(self._slopes),
            'flat': self._flat,
            'hacked': self._hacked,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._stage, self._flat, self._hacked = int(state['stage']), int(state['flat']), int(state['hacked'])
        self._steps = [int(step) for step in state['steps']]
        self._values = {name: [float(v) for v in values] for name, values in state['values'].items()}
        self._slopes = {name: float(slope) for name, slope in state['slopes'].items()}


def problems(options: AdaptiveOptions, stages: Sequence[int], every: int) -> list[str]:
    """Why an adaptive curriculum could never leave a stage early, one line a reason; none if it could.

    Args:
        options: thresholds.
        stages: planned lengths.
        every: steps between observations; 0 for none.

    >>> problems(AdaptiveOptions(min_steps=100), [10_000, 500, 0], every=100)
    []
    >>> problems(AdaptiveOptions(min_steps=100), [10_000, 500, 500], every=100)
    ['stage 1 has at most 500 steps; a decision takes 1400: 12 + 3 - 1 observations, one in 100 steps']
    """
    if every < 1:
        return ['adaptive stages are decided on what the monitor observes; set train.monitor.every']
    count = options.window + options.patience - 1
    needed = max(options.min_steps, count * every)
    why = f'{options.window} + {options.patience} - 1 observations, one in {every} steps'
    return [
        f'stage {stage} has at most {stages[stage]} steps; a decision takes {needed}: '
        + (why if needed > options.min_steps else 'min_steps')
        for stage in list(planned_starts(stages))[:-1]
        if stages[stage] < needed
    ]
