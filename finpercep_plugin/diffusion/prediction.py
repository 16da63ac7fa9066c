"""What a network's output says about the clean image and the noise, for eps, v and flow models (METHOD.md §5).

`level` is `a_t` for eps and v, `sigma` for flow, broadcastable to x_t; see `diffusion.schedule`. Everything is computed
in float32.
"""

from __future__ import annotations

from typing import Literal

import torch

__all__ = ['Prediction', 'add_noise', 'target', 'to_eps', 'to_x0']

Prediction = Literal['eps', 'v', 'flow']


def add_noise(x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor, prediction: Prediction) -> torch.Tensor:
    """x_t: `sqrt(a) x0 + sqrt(1 - a) noise`; flow: `(1 - sigma) x0 + sigma noise`.

    >>> add_noise(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.64]), 'eps')
    tensor([2.2000])
    """
    x0, noise = x0.float(), noise.float()
    if _check(prediction) == 'flow':
        return (1 - level) * x0 + level * noise
    return level.sqrt() * x0 + (1 - level).sqrt() * noise


def to_x0(x_t: torch.Tensor, out: torch.Tensor, level: torch.Tensor, prediction: Prediction) -> torch.Tensor:
    """x0: eps `(x_t - sqrt(1 - a) eps) / sqrt(a)`; v `sqrt(a) x_t - sqrt(1 - a) v`; flow `x_t - sigma v`.

    Raises:
        ValueError: eps at a = 0, where the noise says nothing about the image.

    >>> to_x0(torch.tensor([2.2]), torch.tensor([1.0]), torch.tensor([0.64]), 'eps')
    tensor([2.])
    """
    x_t, out = x_t.float(), out.float()
    if _check(prediction) == 'flow':
        return x_t - level * out
    if prediction == 'v':
        return level.sqrt() * x_t - (1 - level).sqrt() * out
    if bool((level == 0).any()):
        raise ValueError(
            'x0 is not defined by an eps prediction at a_t = 0 (zero terminal SNR); '
            'use a v model, or a schedule whose last level is above 0'
        )
    return (x_t - (1 - level).sqrt() * out) / level.sqrt()


def to_eps(x_t: torch.Tensor, out: torch.Tensor, level: torch.Tensor, prediction: Prediction) -> torch.Tensor:
    """Noise: eps as it is; v `sqrt(a) v + sqrt(1 - a) x_t`; flow `x_t + (1 - sigma) v`.

    >>> to_eps(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.64]), 'v')
    tensor([1.])
    """
    x_t, out = x_t.float(), out.float()
    if _check(prediction) == 'flow':
        return x_t + (1 - level) * out
    return level.sqrt() * out + (1 - level).sqrt() * x_t if prediction == 'v' else out


def target(x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor, prediction: Prediction) -> torch.Tensor:
    """What the network's output is trained towards: eps `noise`; v `sqrt(a) noise - sqrt(1 - a) x0`; flow `noise - x0`.

    >>> target(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.64]), 'v')
    tensor([-0.4000])
    """
    x0, noise = x0.float(), noise.float()
    if _check(prediction) == 'flow':
        return noise - x0
    return level.sqrt() * noise - (1 - level).sqrt() * x0 if prediction == 'v' else noise


def _check(prediction: str) -> str:
    if prediction not in ('eps', 'v', 'flow'):
        raise ValueError(f"prediction must be 'eps', 'v' or 'flow', got {prediction!r}")
    return prediction
