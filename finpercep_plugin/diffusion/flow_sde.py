"""Stochastic steps of flow models: a sampler with noise in it, so that its samples have a density (Flow-GRPO; CPS)."""

from __future__ import annotations

import math
from typing import Optional

import torch

from finpercep_plugin.diffusion.regions import region_mean

__all__ = ['cps_step', 'sde_step', 'std_free_log_prob']


def sde_step(
    x_t: torch.Tensor, v: torch.Tensor, sigma: torch.Tensor, sigma_prev: torch.Tensor, noise_level: float = 0.7
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of the SDE with the marginals of the flow's ODE: (mean as x_t, std as sigma), float32.

    Flow-GRPO (Liu et al. 2025), Eq. 9, with dt = sigma' - sigma < 0::

        s    = a sqrt(sigma / (1 - sigma))
        mean = x (1 + s^2 dt / (2 sigma)) + v (1 + s^2 (1 - sigma) / (2 sigma)) dt
        std  = s sqrt(-dt)

    At sigma = 1, s is not defined: 1 - sigma' takes the place of 1 - sigma in its denominator, and nowhere else. The
    marginals are kept to first order in dt. a = 0 is the Euler step.

    Args:
        x_t: (B, C, h, w).
        v: the network's output at x_t, same shape.
        sigma: noise level of x_t in (0, 1], broadcastable to it.
        sigma_prev: of the next sample, below sigma.
        noise_level: a.

    Raises:
        ValueError: a below 0, or sigmas that do not descend within 0..1.

    >>> one = torch.ones(1)
    >>> [value.item() for value in sde_step(one, 2 * one, 0.75 * one, 0.5 * one, noise_level=1.0)]
    [-0.25, 0.8660253882408142]
    """
    if noise_level < 0:
        raise ValueError(f'noise_level must not be negative, got {noise_level}')
    sigma, sigma_prev = _check(sigma, sigma_prev)
    x_t, v, dt = x_t.float(), v.float(), sigma_prev - sigma
    s = noise_level * (sigma / (1 - torch.where(sigma >= 1, sigma_prev, sigma))).sqrt()
    drift = s**2 / (2 * sigma)
    mean = x_t * (1 + drift * dt) + v * (1 + drift * (1 - sigma)) * dt
    return mean, s * (-dt).sqrt()


def cps_step(
    x_t: torch.Tensor, v: torch.Tensor, sigma: torch.Tensor, sigma_prev: torch.Tensor, noise_level: float = 0.8
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step in which clean image and noise keep the coefficients of the flow: (mean as x_t, std as sigma), float32.

    Coefficients-preserving sampling (Wang & Yu 2025)::

        std  = sigma' sin(a pi / 2)
        mean = (1 - sigma') x0 + sqrt(sigma'^2 - std^2) x1,      x0 = x - sigma v,  x1 = x + (1 - sigma) v

    The noise that is left and the noise that is new add up to variance sigma'^2. The step to sigma' = 0 has std 0. a = 0
    is the Euler step, a = 1 replaces all noise.

    Args:
        x_t: (B, C, h, w).
        v: the network's output at x_t, same shape.
        sigma: noise level of x_t in (0, 1], broadcastable to it.
        sigma_prev: of the next sample, below sigma.
        noise_level: a, 0..1.

    Raises:
        ValueError: a outside 0..1, or sigmas that do not descend within 0..1.

    >>> one = torch.ones(1)
    >>> [round(value.item(), 4) for value in cps_step(one, 2 * one, 0.75 * one, 0.5 * one, noise_level=0.5)]
    [0.2803, 0.3536]
    """
    if not 0 <= noise_level <= 1:
        raise ValueError(f'noise_level of CPS must be in 0..1, got {noise_level}')
    sigma, sigma_prev = _check(sigma, sigma_prev)
    x_t, v, angle = x_t.float(), v.float(), noise_level * math.pi / 2
    x0, x1 = x_t - sigma * v, x_t + (1 - sigma) * v
    return (1 - sigma_prev) * x0 + sigma_prev * math.cos(angle) * x1, sigma_prev * math.sin(angle)


def std_free_log_prob(x: torch.Tensor, mean: torch.Tensor, side: Optional[int] = None) -> torch.Tensor:
    """`-(x - mean)^2`, the mean over all but the first dimension, (B,): the public log-probability of CPS.

    It is `diffusion.steps.gaussian_log_prob` times 2 std^2, less a constant: late steps, whose std is small, count as
    much as early ones. The sample is detached. With `side`, a mean over each region, see `region_mean`.

    >>> std_free_log_prob(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([-2.])
    """
    return region_mean(-((x.detach().float() - mean.float()) ** 2), side)


def _check(sigma: torch.Tensor, sigma_prev: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sigma, sigma_prev = sigma.float(), sigma_prev.float()
    if not bool(((0 <= sigma_prev) & (sigma_prev < sigma) & (sigma <= 1)).all()):
        raise ValueError(
            f'sigmas must descend within 0..1, got {sigma.flatten().tolist()} to {sigma_prev.flatten().tolist()}'
        )
    return sigma, sigma_prev
