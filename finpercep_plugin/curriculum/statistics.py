"""mu_k and sd_k, which put the raw rewards of all stages on one scale: R_k = (raw_k - mu_k) / sd_k (METHOD.md §4)."""

from __future__ import annotations

import logging
import math
from typing import Any, Iterable

import torch
from torch import Tensor

__all__ = ['ScoreStatistics', 'mean_and_spread']

log = logging.getLogger(__name__)


def mean_and_spread(raw: Tensor, floor: float) -> tuple[float, float]:
    """Mean and (population) standard deviation, the latter at least `floor`.

    Args:
        raw: raw rewards (N,), N > 0.
        floor: smallest deviation given.

    >>> mean_and_spread(torch.tensor([1.0, 3.0]), 1e-3)
    (2.0, 1.0)
    """
    raw = raw.detach().double().flatten().cpu()
    return float(raw.mean()), max(float(raw.std(correction=0)), floor)


class ScoreStatistics:
    """mu_k, sd_k of each stage, measured once and then frozen.

    A running mean would hide every improvement, keep the hinge from ever closing and make each switch of the stage a
    jump.

    Args:
        floor: smallest sd_k; what is measured below it is raised to it, with a warning.
    """

    def __init__(self, floor: float = 1e-3):
        self.floor = floor
        self._values: dict[int, tuple[float, float]] = {}

    def measure(self, stage: int, raw: Tensor) -> None:
        """Set mu_k, sd_k from the raw rewards of the starting generator's outputs.

        Args:
            stage: k.
            raw: raw_k (N,), N >= 2.

        Raises:
            ValueError: fewer than two values, one that is not finite, or all the same: such a reward model tells no
                image from another.
            RuntimeError: they are set already.
        """
        raw = raw.detach().double().flatten().cpu()
        if len(raw) < 2:
            raise ValueError(f'stage {stage}: mu and sd need the rewards of at least 2 images, got {len(raw)}')
        if not bool(torch.isfinite(raw).all()):
            bad = int((~torch.isfinite(raw)).sum())
            raise ValueError(f'stage {stage}: {bad} of {len(raw)} calibration rewards are not finite')
        mu, sd = mean_and_spread(raw, 0.0)
        if sd <= 1e-7 * max(1.0, abs(mu)):
            raise ValueError(
                f'stage {stage}: all {len(raw)} calibration rewards are {mu:.6g}; '
                'the reward model tells no image from another'
            )
        if sd < self.floor:
            log.warning('stage %d: calibration rewards spread by %.3g only; sd is set to %.3g', stage, sd, self.floor)
        self.set(stage, mu, max(sd, self.floor))

    def set(self, stage: int, mu: float, sd: float) -> None:
        """Set mu_k, sd_k as given.

        Raises:
            ValueError: not finite, or sd not above 0.
            RuntimeError: they are set already.
        """
        mu, sd = float(mu), float(sd)
        if not (math.isfinite(mu) and math.isfinite(sd) and sd > 0):
            raise ValueError(f'stage {stage}: expected finite mu and sd > 0, got {mu:g} and {sd:g}')
        if stage in self._values:
            raise RuntimeError(f'mu and sd of stage {stage} are frozen: they were set before')
        self._values[int(stage)] = (mu, sd)

    def ready(self, stages: Iterable[int]) -> bool:
        """Whether all these stages have their values."""
        return all(stage in self._values for stage in stages)

    def moments(self, stage: int) -> tuple[float, float]:
        """(mu_k, sd_k).

        Raises:
            RuntimeError: not measured yet.
        """
        if stage not in self._values:
            raise RuntimeError(f'mu and sd of stage {stage} are not measured yet; calibrate the reward first')
        return self._values[stage]

    def normalise(self, stage: int, raw: Tensor) -> Tensor:
        """R_k = (raw_k - mu_k) / sd_k.

        Raises:
            RuntimeError: not measured yet.

        >>> statistics = ScoreStatistics()
        >>> statistics.set(1, mu=2.0, sd=0.5)
        >>> statistics.normalise(1, torch.tensor([3.0]))
        tensor([2.])
        """
        mu, sd = self.moments(stage)
        return (raw - mu) / sd

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for `torch.load(weights_only=True)`."""
        return {'mu': {k: v[0] for k, v in self._values.items()}, 'sd': {k: v[1] for k, v in self._values.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; replaces what is set."""
        self._values = {int(k): (float(mu), float(state['sd'][k])) for k, mu in state['mu'].items()}
