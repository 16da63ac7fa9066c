"""Which steps of a sampler draw, and how: the options of a policy over sampler steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Literal, Optional, Union

from finpercep_plugin.algorithms.policy import StepPolicy
from finpercep_plugin.algorithms.unfit import Unfit
from finpercep_plugin.rng import keyed_numpy

__all__ = ['NoisySteps']


@dataclass(frozen=True)
class NoisySteps:
    """The steps of a sampler that draw; the others are deterministic.

    Args:
        window: how many neighbouring steps draw; None: all but the last ones. Fewer cost less.
        window_start: index of the first of them; None: anew each iteration, the same for all processes.
        drop_last: steps at the end that never draw; None: 2 for eps and v, whose noise there is so small that the
            ratio's gradient is several times that of other steps; 1 for flow; 0 for a one-step generator.
        std_floor: smallest std of a step that draws, in units of the latent, eps and v only; see `policy.StepPolicy`.
            What a one-step generator draws with.
        eta: noise of the steps that draw, 0 .. 1 (DDPM), eps and v only; None: 1.
        sde: 'sde', which keeps the marginals of the flow, or 'cps', which keeps the coefficients; flow only.
        noise_level: a of either; None: 0.7 for 'sde', 0.8 for 'cps'.
        std_free: take -(x - mean)^2 for the log-probability, as CPS is published; flow only.

    Raises:
        ValueError: numbers out of range.
    """

    window: Optional[int] = None
    window_start: Optional[int] = None
    drop_last: Optional[int] = None
    std_floor: float = 0.0
    eta: Optional[float] = None
    sde: Literal['sde', 'cps'] = 'sde'
    noise_level: Optional[float] = None
    std_free: bool = False

    def __post_init__(self) -> None:
        wrong = [] if self.window is None or self.window >= 1 else [f'window must be 1 or more, got {self.window}']
        for name in ('window_start', 'drop_last', 'std_floor'):
            value = getattr(self, name)
            if value is not None and value < 0:
                wrong.append(f'{name} must not be negative, got {value}')
        if self.eta is not None and not 0 < self.eta <= 1:
            wrong.append(
                f'eta must be above 0, since a step without noise has no density, and at most 1, got {self.eta}'
            )
        if self.noise_level is not None and (self.noise_level <= 0 or self.sde == 'cps' and self.noise_level > 1):
            wrong.append(f"noise_level must be above 0, and at most 1 for 'cps', got {self.noise_level}")
        if self.window_start is not None and self.window is None:
            wrong.append('window_start says where a window begins, so it needs window')
        if wrong:
            raise ValueError('; '.join(wrong))

    def check(self, generator: Any, number: int) -> None:
        """Whether these options are defined for a generator and a sampler of that many steps.

        Raises:
            ValueError: they are not; says what to set.
        """
        name, flow = type(generator).__name__, generator.prediction == 'flow'
        if flow and self.eta is not None:
            raise ValueError(f'eta is for eps and v models; set noise_level for {name}, which is a flow model')
        if flow and self.std_floor:
            raise ValueError(f'std_floor is for eps and v models; leave it 0 for {name}, which is a flow model')
        if not flow and (self.noise_level is not None or self.sde != 'sde' or self.std_free):
            raise ValueError(
                f'sde, noise_level and std_free are for flow models; set eta for {name}, which predicts '
                f'{generator.prediction}'
            )
        allowed = self.allowed(generator, number)
        window, start = self.window or 1, self.window_start or 0
        if start + window > allowed:
            raise ValueError(
                f'a window of {window} from step {start} does not fit: the sampler has {number} '
                f'step{"s" if number > 1 else ""}, of which the last {number - allowed} never draw (drop_last)'
            )
        if allowed == number and self.std_floor == 0 and (not flow or self.sde == 'cps'):
            raise Unfit(
                f'the last step of {name} ends clean, so it has no noise and no density: set '
                + ('drop_last to 1 or more' if number > 1 else 'std_floor (such as 0.1) for it to draw with')
                + (', or std_floor' if number > 1 and not flow else ''),
                {'train.algorithm.noise.drop_last': 1} if number > 1 else {'train.algorithm.noise.std_floor': 0.1},
            )

    def allowed(self, generator: Any, number: int) -> int:
        """How many of the sampler's first steps may draw."""
        default = 0 if number == 1 else 1 if generator.prediction == 'flow' else 2
        return max(number - (default if self.drop_last is None else self.drop_last), 0)

    def indices(self, generator: Any, number: int, *key: Union[int, str]) -> List[int]:
        """The steps that draw; where the window is placed anew, its place is drawn for `key`.

        Args:
            generator: whose sampler it is.
            number: of its steps.
            key: (seed, iteration), alike for all processes.
        """
        allowed = self.allowed(generator, number)
        if self.window is None:
            return list(range(allowed))
        start = self.window_start
        if start is None:
            start = int(keyed_numpy(*key, 'window').integers(allowed - self.window + 1))
        return list(range(start, start + self.window))

    def policy(self, generator: Any) -> StepPolicy:
        """What a step that draws does."""
        if generator.prediction != 'flow':
            return StepPolicy('ddim', 1.0 if self.eta is None else self.eta, self.std_floor)
        level = {'sde': 0.7, 'cps': 0.8}[self.sde] if self.noise_level is None else self.noise_level
        return StepPolicy(self.sde, level, std_free=self.std_free)
