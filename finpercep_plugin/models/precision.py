"""Frozen networks in bfloat16: half the memory, and what autocast would turn them into anyway."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ['cast_frozen']


def cast_frozen(module: nn.Module, dtype: torch.dtype = torch.bfloat16) -> int:
    """Hold the weights of linear, convolution and attention layers without a trained parameter in `dtype`, in place.

    Norms, embeddings and all trained parameters stay float32. Calls must then be under autocast to `dtype`.

    Returns:
        How many parameters were cast.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    >>> _ = net[0].requires_grad_(False)
    >>> cast_frozen(net), [p.dtype for p in net.parameters()][::2]
    (6, [torch.bfloat16, torch.float32, torch.float32])
    """
    count = 0
    for layer in module.modules():
        plain = isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention))
        own = list(layer.parameters(recurse=False))
        if plain and own and not any(p.requires_grad for p in layer.parameters()):
            layer.to(dtype)
            count += sum(p.numel() for p in own)
    return count
