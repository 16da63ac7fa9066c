"""Noise schedules: what a timestep means.

A *level* is the one number that a timestep stands for: `a_t` = alphas_cumprod for eps and v models, `sigma` for flow
models. The other modules of this package take levels, never timesteps.
"""

from __future__ import annotations

import math
from typing import Literal, Union

import numpy as np
import torch

__all__ = [
    'DiscreteSchedule',
    'FlowSchedule',
    'Kind',
    'Schedule',
    'Spacing',
    'alphas_cumprod',
    'respaced_timesteps',
    'zero_terminal_snr',
]

Kind = Literal['linear', 'scaled_linear', 'cosine']
Spacing = Literal['leading', 'trailing', 'linspace', 'accumulated']


def alphas_cumprod(
    kind: Kind = 'scaled_linear', train_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> torch.Tensor:
    """`a_t = prod_{s <= t} (1 - beta_s)`, (train_steps,), float32, descending.

    In float32 and in the order of operations of diffusers, so that released models see the numbers they were trained
    with.

    Args:
        kind: 'linear': betas evenly spaced (DDPM); 'scaled_linear': their square roots are (Stable Diffusion);
            'cosine': `a_t` follows a squared cosine (Nichol & Dhariwal 2021, Eq. 17), betas at most 0.999.
        train_steps: number of timesteps.
        beta_start: first beta; unused by 'cosine'.
        beta_end: last beta; unused by 'cosine'.

    Raises:
        ValueError: an unknown kind, or betas outside 0 < beta_start <= beta_end < 1.

    >>> alphas_cumprod('linear', 2, 0.1, 0.5)
    tensor([0.9000, 0.4500])
    """
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f'betas must be 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}')
    if kind == 'linear':
        betas = torch.linspace(beta_start, beta_end, train_steps, dtype=torch.float32)
    elif kind == 'scaled_linear':
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, train_steps, dtype=torch.float32) ** 2
    elif kind == 'cosine':
        bar = [math.cos((i / train_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(train_steps + 1)]
        betas = torch.tensor([min(1 - after / before, 0.999) for before, after in zip(bar, bar[1:])])
    else:
        raise ValueError(f"schedule must be 'linear', 'scaled_linear' or 'cosine', got {kind!r}")
    return torch.cumprod(1.0 - betas, dim=0)


def zero_terminal_snr(alphas: torch.Tensor) -> torch.Tensor:
    """The schedule shifted and scaled: its last level is exactly 0, its first is kept (Lin et al. 2023, Alg. 1).

    Args:
        alphas: (T,) alphas_cumprod.

    >>> zero_terminal_snr(torch.tensor([0.81, 0.25, 0.01]))
    tensor([0.8100, 0.2025, 0.0000])
    """
    root = alphas.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def respaced_timesteps(
    steps: int, train_steps: int = 1000, spacing: Spacing = 'trailing', offset: int = 0
) -> torch.Tensor:
    """`steps` of the `train_steps` timesteps, descending, (steps,), int64.

    Args:
        steps: how many.
        train_steps: of how many.
        spacing: as diffusers' schedulers mean it: 'leading' ends at `offset`, 'trailing' starts at train_steps - 1,
            'linspace' does both; 'accumulated' does both by adding up the distance before it rounds, which decides ties
            otherwise (Improved DDPM's code, and with it StableSR's and DiffBIR's).
        offset: added to 'leading' (`steps_offset`; 1 for Stable Diffusion).

    Raises:
        ValueError: steps is not in 1..train_steps (2.. for 'accumulated'), or an unknown spacing.

    >>> respaced_timesteps(4, 1000, 'leading', 1)
    tensor([751, 501, 251,   1])
    >>> respaced_timesteps(4)
    tensor([999, 749, 499, 249])
    >>> respaced_timesteps(5, 1000, 'accumulated')
    tensor([999, 749, 500, 250,   0])
    """
    least = 2 if spacing == 'accumulated' else 1
    if not least <= steps <= train_steps:
        raise ValueError(f'sampling steps must be {least}..{train_steps}, got {steps}')
    if spacing == 'leading':
        values = np.arange(steps)[::-1] * (train_steps // steps) + offset
    elif spacing == 'trailing':
        values = np.round(train_steps - np.arange(steps) * (train_steps / steps)) - 1
    elif spacing == 'linspace':
        values = np.round(np.linspace(0, train_steps - 1, steps))[::-1]
    elif spacing == 'accumulated':
        distances = np.full(steps - 1, (train_steps - 1) / (steps - 1))
        values = np.round(np.cumsum([0.0, *distances]))[::-1]
    else:
        raise ValueError(f"spacing must be 'leading', 'trailing', 'linspace' or 'accumulated', got {spacing!r}")
    return torch.from_numpy(values.astype(np.int64))


class DiscreteSchedule:
    """Integer timesteps 0..T-1 with `a_t` as their level; any t < 0 is the clean end, level 1.

    Args:
        alphas: (T,) alphas_cumprod.

    >>> DiscreteSchedule(torch.tensor([0.9, 0.5])).level(torch.tensor([1, -1]), like=torch.zeros(2, 3, 4, 4)).flatten()
    tensor([0.5000, 1.0000])
    """

    clean = 1.0

    def __init__(self, alphas: torch.Tensor):
        self.alphas = alphas

    @property
    def train_steps(self) -> int:
        return len(self.alphas)

    def level(self, t: Union[int, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """Levels of `t`, float32, on the device of `like` and ready to multiply it: (1, 1, ..), or (B, 1, ..) of (B,).

        Raises:
            IndexError: t >= T.
        """
        t = torch.as_tensor(t).cpu().reshape(-1)
        levels = torch.where(t < 0, self.alphas.new_tensor(self.clean), self.alphas[t.clamp(min=0)])
        return levels.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


class FlowSchedule:
    """Timesteps `1000 sigma`, level `sigma` in [0, 1]; sigma 0 is clean.

    Args:
        shift: of the sampler's sigmas towards noise: `s sigma / (1 + (s - 1) sigma)` (Stable Diffusion 3: 3).
        train_steps: what sigma = 1 is called.

    >>> FlowSchedule(shift=3.0).timesteps(2)
    tensor([1000.0000,    8.9286])
    """

    clean = 0.0

    def __init__(self, shift: float = 1.0, train_steps: int = 1000):
        self.shift, self.train_steps = shift, train_steps

    def timesteps(self, steps: int) -> torch.Tensor:
        """The sampler's timesteps, (steps,), float32, descending.

        As diffusers' FlowMatchEulerDiscreteScheduler makes them, which shifts the smallest sigma twice.
        """
        last = self._shifted(1 / self.train_steps)
        values = [self._shifted(s) * self.train_steps for s in np.linspace(1.0, last, steps)]
        return torch.tensor(values, dtype=torch.float32)

    def level(self, t: Union[int, float, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """`sigma` of `t` on the device of `like`, float32, (1, 1, ..) or (B, 1, ..)."""
        t = torch.as_tensor(t, dtype=torch.float32).reshape(-1)
        return (t / self.train_steps).to(like.device).reshape(-1, *[1] * (like.ndim - 1))

    def _shifted(self, sigma: float) -> float:
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


Schedule = Union[DiscreteSchedule, FlowSchedule]
