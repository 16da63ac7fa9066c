"""Watches for a hacked reward: a reward that rises while measures that nothing optimises get worse (RL.md).

The same few lq images are super-resolved now and then, and each is compared with what the starting generator made of
it. Numbers only: who makes the images and measures them is no business of this file.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any, Iterable, Literal, Mapping

from finpercep_plugin.config import Unbounded
from finpercep_plugin.curriculum.signs import SIGNS, Sign

__all__ = ['LEVELS', 'HackingMonitor', 'MonitorOptions', 'RewardHacked', 'Verdict']

LEVELS = ('ok', 'warn', 'hacked')

WORST = 5.0
"""A sample's largest change, in units: one wild image among many decides nothing."""


class RewardHacked(RuntimeError):
    """A run that `train.monitor.stop` ended."""


@dataclasses.dataclass(frozen=True)
class MonitorOptions:
    """`train.monitor:`.

    A change is counted in units: the spread of a measure over the starting generator's outputs (1.4826 x the median
    absolute deviation), within the bounds of `signs.SIGNS`: 1 to 2 dB for lq_psnr, 10 dB for the spectrum and flat areas.

    Attributes:
        every: steps between observations; 0 turns the monitor off.
        samples: lq images that are looked at; always the same. With 8, noise alone may raise alarms.
        smoothing: what is kept of the moving average at each observation; 0 for none.
        warn, hacked: units by which a measure is worse than at the start.
        rise: units of the reward above the start from which a worse measure is hacking.
        sure: standard errors, over the images, that a change must have to count.
        patience: observations in a row that must look hacked.
        units: {measure: its unit}, instead of the above; `.inf` mutes one, and a start that is far too smooth wants
            larger ones for hf_energy and flat_tv.
        stop: end the run when it is hacked.
        keep_best: keep the weights of the best observation that was safe.
    """

    every: int = 100
    samples: int = 16
    smoothing: float = 0.5
    warn: float = 0.5
    hacked: float = 1.0
    rise: float = 0.25
    sure: float = 3.0
    patience: int = 2
    units: dict[str, Unbounded] = dataclasses.field(default_factory=dict)
    stop: bool = False
    keep_best: bool = True

    def __post_init__(self) -> None:
        if self.every < 0 or self.samples < 4 or self.patience < 1:
            raise ValueError('expected every >= 0, samples >= 4 and patience >= 1')
        if not 0 <= self.smoothing < 1 or not 0 < self.warn <= self.hacked < WORST or self.sure < 0:
            raise ValueError(f'expected smoothing in [0, 1), 0 < warn <= hacked < {WORST:g} and sure >= 0')
        if not all(unit > 0 for unit in self.units.values()):
            raise ValueError(f'units: expected numbers above 0, got {self.units}')


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What an observation says.

    Attributes:
        step: of the observation.
        level: 'ok', 'warn' or 'hacked'.
        reasons: the measures that are worse by `warn` units or more, the worst first.
        reward: mean reward of the samples.
        gains: {measure: mean change since the start, in units, positive for better}, not smoothed.
        best: the best safe observation so far: its weights are to be kept.
        evidence: every number behind it, by name: 'reward'; 'rise', smoothed, in units; of each measure its mean, and
            with '_z' its smoothed gain, with '_se' the gain's standard error.
    """

    step: int
    level: Literal['ok', 'warn', 'hacked']
    reasons: tuple[str, ...]
    reward: float
    gains: dict[str, float]
    best: bool
    evidence: dict[str, float]

    def text(self) -> str:
        """One line for the log."""
        e = self.evidence
        parts = [f'{name} {e[name]:.4g} ({e[name + "_z"]:+.2f} units)' for name in self.reasons]
        return f'{self.level}: reward {self.reward:.3g} ({e["rise"]:+.2f} units); {", ".join(parts) or "nothing worse"}'


class HackingMonitor:
    """Compares the optimised reward with measures that are never optimised, on a fixed set of samples.

    A run is hacked when, `patience` times in a row, the reward is `rise` above the starting generator's and a measure is
    `hacked` below it, both smoothed. That is a statement about an observation, not about the run: a later stage of the
    reward may repair the images. Decisions follow from the numbers given alone, in exact sums: ranks that are given the
    same numbers agree.

    Args:
        options: thresholds.
        signs: how measures are judged; one that is not named here, such as a held-out reward, is better when higher.

    Attributes:
        best_safe_step: step of the best safe observation: of the latest stage, the highest smoothed reward where nothing
            was worse by `warn`, smoothed or not, sure or not. 0 is the starting generator.
    """

    def __init__(self, options: MonitorOptions = MonitorOptions(), signs: Mapping[str, Sign] | None = None):
        self.options, self.signs = options, dict(SIGNS if signs is None else signs)
        self.best_safe_step = 0
        self._best = (-1, -math.inf)
        self._start: dict[str, list[float]] = {}
        self._rewards: dict[int, list[float]] = {}
        self._units: dict[str, float] = {}
        self._smoothed: dict[str, float] = {}
        self._rise: float | None = None
        self._stage, self._streak, self._step = -1, 0, 0

    @property
    def started(self) -> bool:
        """Whether `start` was called, or a state with it loaded."""
        return bool(self._start)

    def due(self, step: int) -> bool:
        """Whether `step`, counted from 1, is to be observed."""
        return self.options.every > 0 and step % self.options.every == 0

    def start(self, rewards: Mapping[int, Iterable[float]], metrics: Mapping[str, Iterable[float]]) -> None:
        """What the starting generator's outputs give; called once, before training.

        Args:
            rewards: {stage: normalised reward R of each sample}; of a stage that is left out, since its reward model
                does not exist yet, 0 is taken, which is the mean of its calibration.
            metrics: {measure: value of each sample}, as `observe` is given them.

        Raises:
            ValueError: no measures, one called 'reward' or 'rise', or not those that `units` names; other than `samples`
                values of one, or fewer than 4 finite ones.
        """
        values = {name: self._values(name, of) for name, of in metrics.items()}
        if not values or {'reward', 'rise'} & set(values):
            raise ValueError(f"expected measures, none called 'reward' or 'rise', got {sorted(values)}")
        if unknown := sorted(set(self.options.units) - set(values) - set(self.signs)):
            raise ValueError(f'units: no measure is called {unknown}; there are {sorted(values)}')
        self._units = {name: self._unit(name, of) for name, of in values.items()}
        self._rewards = {int(stage): self._values('reward', of) for stage, of in rewards.items()}
        self._start = values

    def observe(
        self, step: int, reward: Iterable[float], metrics: Mapping[str, Iterable[float]], stage: int = 0
    ) -> Verdict:
        """Compare the samples at `step` with those of the start, in the same order.

        Args:
            step: counted from 1, above the last one.
            reward: R of each sample, by the reward model of `stage`.
            metrics: {measure: value of each sample}; one that is not finite counts as the worst.
            stage: of the reward; its smoothing starts anew with a new one.

        Raises:
            RuntimeError: `start` was not called.
            ValueError: other measures or another number of samples than at the start; a step that is not above the last.
        """
        if not self._start:
            raise RuntimeError('the hacking monitor does not know the starting generator; call start first')
        if set(metrics) != set(self._start):
            raise ValueError(f'the run began with the measures {sorted(self._start)}, not {sorted(metrics)}')
        if step <= self._step:
            raise ValueError(f'the monitor has seen step {self._step}; got {step}')
        if stage != self._stage:
            self._stage, self._streak, self._rise = int(stage), 0, None
        self._step = int(step)
        mean, rise = self._reward(self._values('reward', reward))
        evidence = {'reward': mean, 'rise': rise}
        gains, harms = {}, {}
        for name in self._start:  # the order of the start, whatever that of the argument
            gains[name], harms[name], numbers = self._judge(name, self._values(name, metrics[name]))
            evidence.update(numbers)
        return self._conclude(mean, rise, gains, harms, evidence)

    def _reward(self, values: list[float]) -> tuple[float, float]:
        """Mean reward, and its smoothed rise above the start."""
        start = self._rewards.get(self._stage, [0.0] * len(values))
        pairs = [(then, now) for then, now in zip(start, values) if math.isfinite(then) and math.isfinite(now)]
        if not pairs:
            return math.nan, 0.0
        self._rise = self._smooth(self._rise, math.fsum(now - then for then, now in pairs) / len(pairs))
        return math.fsum(now for _, now in pairs) / len(pairs), self._rise

    def _judge(self, name: str, values: list[float]) -> tuple[float, float, dict[str, float]]:
        """Mean gain of a measure; how much worse it is, smoothed, 0 where that is not sure; the numbers behind them."""
        unit, better = self._units[name], self.signs.get(name, Sign()).better
        sign, worst = -1 if better == 'lower' else 1, 0.0 if math.isinf(unit) else -WORST
        changes, seen = [], []
        for then, now in zip(self._start[name], values):
            if math.isfinite(then):
                change = sign * (now - then) / unit if math.isfinite(now) else worst
                changes.append(min(max(change, -WORST), WORST))
                seen.append(now)
        change = math.fsum(changes) / len(changes)
        error = math.sqrt(math.fsum((c - change) ** 2 for c in changes) / (len(changes) - 1) / len(changes))
        smoothed = self._smoothed[name] = self._smooth(self._smoothed.get(name), change)
        gain, smooth_gain = (-abs(x) if better == 'same' else x for x in (change, smoothed))
        harm = -smooth_gain if -smooth_gain > self.options.sure * error else 0.0
        mean = math.fsum(seen) / len(seen) if all(map(math.isfinite, seen)) else math.nan
        return gain, harm, {name: mean, f'{name}_z': smooth_gain, f'{name}_se': error}

    def _conclude(
        self,
        reward: float,
        rise: float,
        gains: dict[str, float],
        harms: dict[str, float],
        evidence: dict[str, float],
    ) -> Verdict:
        options = self.options
        worse = {name: harm for name, harm in harms.items() if harm >= options.warn}
        looks_hacked = rise >= options.rise and max(worse.values(), default=0.0) >= options.hacked
        self._streak = self._streak + 1 if looks_hacked else 0
        level = 'hacked' if self._streak >= options.patience else 'warn' if worse else 'ok'
        lowest = min(min(gain, evidence[f'{name}_z']) for name, gain in gains.items())
        safe = lowest > -options.warn and math.isfinite(reward)
        best = safe and (self._stage, rise) > self._best
        if best:
            self._best, self.best_safe_step = (self._stage, rise), self._step
        reasons = tuple(sorted(worse, key=lambda name: (-worse[name], name)))
        return Verdict(self._step, level, reasons, reward, gains, best, evidence)

    def _smooth(self, before: float | None, now: float) -> float:
        keep = self.options.smoothing
        return now if before is None else keep * before + (1 - keep) * now

    def _unit(self, name: str, values: list[float]) -> float:
        """1.4826 times the median absolute deviation, within the bounds of the measure."""
        finite = [v for v in values if math.isfinite(v)]
        if len(finite) < 4:
            raise ValueError(
                f'{name}: {len(finite)} of {len(values)} values of the start are finite; expected 4 or more'
            )
        if name in self.options.units:
            return self.options.units[name]
        middle = statistics.median(finite)
        spread = 1.4826 * statistics.median(abs(v - middle) for v in finite)
        sign = self.signs.get(name, Sign())
        return min(max(spread, sign.least), sign.most)

    def _values(self, name: str, values: Iterable[float]) -> list[float]:
        result = [float(v) for v in values]
        if len(result) != self.options.samples:
            raise ValueError(f'{name}: expected the values of {self.options.samples} samples, got {len(result)}')
        return result

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for `torch.load(weights_only=True)`."""
        return {
            'step': self._step,
            'stage': self._stage,
            'streak': self._streak,
            'rise': self._rise,
            'smoothed': dict(self._smoothed),
            'start': {name: list(values) for name, values in self._start.items()},
            'rewards': {stage: list(values) for stage, values in self._rewards.items()},
            'units': dict(self._units),
            'best': list(self._best),
            'best_safe_step': self.best_safe_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the state is of a run with another number of samples.
        """
        start = {name: [float(v) for v in values] for name, values in state['start'].items()}
        count = len(next(iter(start.values()), ()))
        if start and count != self.options.samples:
            raise ValueError(
                f'the run to resume was watched on {count} samples, the YAML says {self.options.samples}; '
                'set train.monitor.samples as it was'
            )
        self._start, self._rewards = start, {int(k): [float(x) for x in v] for k, v in state['rewards'].items()}
        self._units, self._smoothed = dict(state['units']), dict(state['smoothed'])
        self._step, self._stage, self._streak = int(state['step']), int(state['stage']), int(state['streak'])
        self._rise, self.best_safe_step = state['rise'], int(state['best_safe_step'])
        self._best = (int(state['best'][0]), float(state['best'][1]))
