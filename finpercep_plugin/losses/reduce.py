"""From one value a sample to the loss."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

__all__ = ['Reduction', 'reduce']

Reduction = Literal['mean', 'sum', 'none']


def reduce(values: Tensor, reduction: Reduction) -> Tensor:
    """(B,) -> a scalar, or unchanged for 'none'. With 'mean', equal shards averaged over ranks equal the whole batch.

    Raises:
        ValueError: an unknown reduction.
    """
    if reduction not in ('mean', 'sum', 'none'):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    return values if reduction == 'none' else values.mean() if reduction == 'mean' else values.sum()
