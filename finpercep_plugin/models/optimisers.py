"""The optimiser of a training run."""

from __future__ import annotations

from typing import Any

import torch

from finpercep_plugin.models.options import OptimOptions

__all__ = ['build_optimiser']


def build_optimiser(optim: OptimOptions, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """An optimiser over parameter groups, each with its own `lr`.

    Args:
        optim: its type, weight decay, betas and eps.
        groups: {'params', 'lr', 'initial_lr'}.
        device: of the parameters.

    >>> parameter = torch.nn.Parameter(torch.zeros(1))
    >>> type(build_optimiser(OptimOptions(), [{'params': [parameter], 'lr': 1.0}], torch.device('cpu'))).__name__
    'AdamW'
    """
    options: dict[str, Any] = {'weight_decay': optim.weight_decay, 'betas': optim.betas, 'eps': optim.eps}
    if optim.type == 'AdamW8bit':  # tensors of fewer than 4096 values keep moments of 32 bits
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(groups, **options)
    # Without `fused` the step on a GPU makes temporaries of the size of all trained parameters.
    fused = {'fused': True} if device.type == 'cuda' else {}
    return getattr(torch.optim, optim.type)(groups, **options, **fused)
