"""One sampler step as a Gaussian: its mean and standard deviation, and the log-density of what was drawn."""

from __future__ import annotations

import math
from typing import Optional

import torch

from finpercep_plugin.diffusion.prediction import Prediction, to_eps, to_x0
from finpercep_plugin.diffusion.regions import region_mean

__all__ = ['gaussian_log_prob', 'step']


def step(
    x_t: torch.Tensor,
    out: torch.Tensor,
    level: torch.Tensor,
    level_prev: torch.Tensor,
    prediction: Prediction,
    eta: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """From x_t to the next, less noisy sample: (mean as x_t, std as level), float32.

    eps and v (DDIM, Song et al. 2021, Eq. 12 and 16; a' is `level_prev`)::

        std  = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a')
        mean = sqrt(a') x0 + sqrt(1 - a' - std^2) eps

    eta = 1 is respaced DDPM with its small variance; the step to a' = 1 has std 0 and mean x0. flow: Euler, `x_t +
    (sigma' - sigma) v`, std 0.

    Args:
        x_t: (B, C, h, w).
        out: the network's output at x_t, same shape.
        level: `a_t` or `sigma` of x_t, broadcastable to it.
        level_prev: of the next sample.
        prediction: what `out` is.
        eta: 0 deterministic .. 1 DDPM; eps and v only.

    Raises:
        ValueError: eta outside 0..1, or above 0 for flow.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f'eta must be in 0..1, got {eta}')
    if prediction == 'flow':
        if eta:
            raise ValueError(f'eta is defined for eps and v models; this flow model needs eta = 0, got {eta}')
        return x_t.float() + (level_prev - level) * out.float(), torch.zeros_like(level)
    x0, eps = to_x0(x_t, out, level, prediction), to_eps(x_t, out, level, prediction)
    variance = eta**2 * (1 - level_prev) / (1 - level) * (1 - level / level_prev)
    mean = level_prev.sqrt() * x0 + (1 - level_prev - variance).clamp(min=0).sqrt() * eps
    return mean, variance.sqrt()


def gaussian_log_prob(
    x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, side: Optional[int] = None
) -> torch.Tensor:
    """Log-density of x under N(mean, std^2), the **mean** over all but the first dimension, (B,), or over each region.

    The mean, since the sum over 10^5 dimensions makes policy ratios useless (RL.md). The sample is detached: a policy
    gradient goes through the mean.

    Args:
        x: (B, ...) the sample drawn.
        mean: (B, ...).
        std: broadcastable to it, above 0.
        side: of the regions, see `region_mean`; None: one mean.

    Raises:
        ValueError: std is 0 somewhere: a deterministic step has no density and belongs in no policy ratio.

    >>> gaussian_log_prob(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor(2.0))
    tensor([-1.8621])
    """
    if bool((std <= 0).any()):
        raise ValueError(
            'the step has std 0, so its sample has no density; leave deterministic steps out of policy ratios'
        )
    x, mean = x.detach().float(), mean.float()
    log = -((x - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
    return region_mean(log, side)
