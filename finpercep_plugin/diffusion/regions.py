"""Means over the dimensions of a sample: over all of them, or region by region."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F

__all__ = ['region_mean', 'region_shares']


def region_mean(values: torch.Tensor, side: Optional[int] = None) -> torch.Tensor:
    """Mean of each sample, (B,), or of each of its regions, (B, rows, columns).

    Args:
        values: (B, ...); (B, C, h, w) where there are regions.
        side: of the square regions, all C channels of side x side cells from the upper left; those at the lower and the
            right edge are what is left. None: one mean of everything.

    >>> region_mean(torch.tensor([[[[1.0, 2.0, 5.0], [3.0, 6.0, 7.0]]]]), side=2)
    tensor([[[3., 6.]]])
    """
    if side is None:
        return values.flatten(1).mean(1)
    return F.avg_pool2d(values.mean(1, keepdim=True), side, ceil_mode=True)[:, 0]


def region_shares(height: int, width: int, side: int) -> torch.Tensor:
    """(rows, columns): how large each region of `region_mean` is, relative to their mean.

    >>> region_shares(2, 3, side=2)
    tensor([[1.3333, 0.6667]])
    """
    rows, columns = (torch.tensor([min(side, n - first) for first in range(0, n, side)]) for n in (height, width))
    cells = torch.outer(rows, columns).float()
    return cells / cells.mean()
