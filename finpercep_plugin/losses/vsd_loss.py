"""Variational score distillation of a one-step generator against a frozen and a trained diffusion model.

OSEDiff (Wu et al. 2024), Sec. 3.3, Eq. 5-8; the normalised gradient is that of DMD (Yin et al. 2024), Eq. 8. The
*regulariser* is a diffusion model with its own LoRA that follows the generator's outputs by `diff_loss`; the *prior* is
the same model without it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from finpercep_plugin.losses.reduce import Reduction, reduce

__all__ = ['GUIDANCE', 'T_RANGE', 'diff_loss', 'draw_vsd_t', 'guided', 'vsd_gradient', 'vsd_loss']

GUIDANCE = 7.5
"""Of the prior."""

T_RANGE = (20, 980)
"""First timestep index that `vsd_loss` is taken at, and the first above it that is not; of 1000."""


def draw_vsd_t(rng: torch.Generator) -> torch.Tensor:
    """One sample's timestep for `vsd_loss`, uniform over `T_RANGE`, scalar int64 on the CPU."""
    return torch.randint(*T_RANGE, (), generator=rng)


def guided(unconditional: torch.Tensor, conditional: torch.Tensor, guidance: float = GUIDANCE) -> torch.Tensor:
    """Classifier-free guidance, `u + g (c - u)`, in float32.

    >>> guided(torch.tensor([1.0]), torch.tensor([1.5]), 4.0)
    tensor([3.])
    """
    unconditional, conditional = unconditional.float(), conditional.float()
    return unconditional + guidance * (conditional - unconditional)


def vsd_gradient(latent: torch.Tensor, x0_regulariser: torch.Tensor, x0_prior: torch.Tensor) -> torch.Tensor:
    """`(x0_regulariser - x0_prior) / mean |latent - x0_prior|`, the mean over each sample; without gradient.

    Both x0 are closed-form clean latents seen in the same noised `latent` at the same timestep.

    Args:
        latent: (B, C, h, w) of the generator.
        x0_regulariser: (B, C, h, w), of the model that follows the generator.
        x0_prior: (B, C, h, w), of the frozen model, guided.

    Raises:
        ValueError: the shapes differ, which would broadcast.
    """
    shapes = [tuple(x.shape) for x in (latent, x0_regulariser, x0_prior)]
    if len(set(shapes)) > 1:
        raise ValueError(f'latent, x0_regulariser and x0_prior have shapes {shapes}')
    latent, x0_regulariser, x0_prior = (x.detach().float() for x in (latent, x0_regulariser, x0_prior))
    distance = (latent - x0_prior).abs().flatten(1).mean(1)
    return (x0_regulariser - x0_prior) / distance.reshape(-1, *[1] * (latent.ndim - 1))


def vsd_loss(
    latent: torch.Tensor, x0_regulariser: torch.Tensor, x0_prior: torch.Tensor, reduction: Reduction = 'mean'
) -> torch.Tensor:
    """Half of whose derivative by `latent`, times its number of elements, is `vsd_gradient`: `mean (z - sg(z - g))^2`.

    Args:
        latent: (B, C, h, w), scaled; the only argument that gets a gradient.
        x0_regulariser: see `vsd_gradient`.
        x0_prior: see `vsd_gradient`.
        reduction: over samples; 'none' gives (B,).

    >>> z = torch.tensor([[[[1.0, 3.0]]]], requires_grad=True)
    >>> loss = vsd_loss(z, torch.full((1, 1, 1, 2), 2.0), torch.zeros(1, 1, 1, 2))  # g = 2 / mean(1, 3) = 1
    >>> loss.backward()
    >>> loss.item(), z.grad.tolist()
    (1.0, [[[[1.0, 1.0]]]])
    """
    latent = latent.float()
    goal = (latent - vsd_gradient(latent, x0_regulariser, x0_prior)).detach()
    return reduce((latent - goal).square().flatten(1).mean(1), reduction)


def diff_loss(out: torch.Tensor, noise: torch.Tensor, reduction: Reduction = 'mean') -> torch.Tensor:
    """Squared error of the regulariser's noise prediction, by which it follows the generator.

    Args:
        out: (B, C, h, w), its prediction at the noised, detached latent of the generator, at any timestep.
        noise: (B, C, h, w), standard normal, that was added.
        reduction: over samples; 'none' gives (B,).

    Raises:
        ValueError: the shapes differ, which would broadcast.

    >>> diff_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 1.0]]))
    tensor(1.)
    """
    if out.shape != noise.shape:
        raise ValueError(f'prediction of shape {tuple(out.shape)} and noise of {tuple(noise.shape)}')
    return reduce(F.mse_loss(out.float(), noise.float(), reduction='none').flatten(1).mean(1), reduction)
