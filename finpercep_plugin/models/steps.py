"""Small parts of a training step: the learning rate, means of what was measured, pieces of gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ['buckets', 'cosine_rate', 'mean_terms']


def cosine_rate(step: int, total: int, floor: float = 0.0) -> float:
    """Factor of the learning rate at `step` (from 1) of `total`: half a cosine from 1 to `floor`.

    >>> [round(cosine_rate(s, 11), 3) for s in (1, 6, 11)]
    [1.0, 0.5, 0.0]
    """
    done = min(max(step - 1, 0) / max(total - 1, 1), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def mean_terms(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of each term over the parts that have it.

    >>> {k: float(v) for k, v in mean_terms([{'a': torch.tensor(1.0)}, {'a': torch.tensor(3.0), 'b': torch.tensor(5.0)}]).items()}
    {'a': 2.0, 'b': 5.0}
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.stack([p[name].reshape(()) for p in parts if name in p]).mean() for name in names}


def buckets(tensors: list[Tensor], size: int) -> list[list[Tensor]]:
    """Runs of `tensors` of at most `size` elements each, or one tensor."""
    pieces: list[list[Tensor]] = []
    held = size
    for tensor in tensors:
        if held + tensor.numel() > size:
            pieces.append([])
            held = 0
        pieces[-1].append(tensor)
        held += tensor.numel()
    return pieces
