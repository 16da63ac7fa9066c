"""How far a network is from a given clean latent: what preference learning compares."""

from __future__ import annotations

from typing import Any

import torch

from finpercep_plugin.diffusion.prediction import add_noise, target, to_x0
from finpercep_plugin.generators.condition import Condition

__all__ = ['denoising_error', 'one_step_error']


def denoising_error(
    generator: Any, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, cond: Condition
) -> torch.Tensor:
    """Squared error of the prediction, eps, v or velocity, at x0 noised to t: its mean over C, h, w, (B,).

    Args:
        generator: see docs/adding.md; predicts without guidance.
        x0: (B, C, h, w).
        noise: the same, standard normal.
        t: (B,) timesteps.
        cond: of the same batch.
    """
    level = generator.schedule.level(t, x0)
    out = generator.predict(add_noise(x0, noise, level, generator.prediction), t.to(x0.device), cond)
    return (out - target(x0, noise, level, generator.prediction)).square().flatten(1).mean(1)


def one_step_error(generator: Any, x0: torch.Tensor, noise: torch.Tensor, cond: Condition) -> torch.Tensor:
    """Squared error of the x0 that a one-step generator makes of its start: its mean over C, h, w, (B,).

    Such a network never sees a noised x0: its start is made of the low-quality image, and its answer is the policy's mean.

    Args:
        generator: with one step.
        x0: (B, C, h, w).
        noise: the same, standard normal, for the start.
        cond: of the same batch.
    """
    t, x_t = generator.steps[0].item(), generator.start(cond, noise)
    out = generator.predict(x_t, t, cond)
    answer = to_x0(x_t, out, generator.schedule.level(t, x_t), generator.prediction)
    return (answer - x0).square().flatten(1).mean(1)
