"""L_align: keep the score of clean images at the base model's (paper Eq. 7; METHOD.md §2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from finpercep_plugin.losses.reduce import Reduction, reduce
from finpercep_plugin.registry import LOSSES

__all__ = ['FinPercepAlignLoss', 'align_loss']


def align_loss(s_gt: Tensor, s_base: Tensor, reduction: Reduction = 'mean') -> Tensor:
    """L_align = |S(gt) - S_base(gt)|_1.

    Args:
        s_gt: S(gt) (B,).
        s_base: S_base(gt) (B,); no gradient goes to it.
        reduction: over samples; 'none' gives (B,).

    Raises:
        ValueError: the scores' shapes differ, which would broadcast.

    >>> align_loss(torch.tensor([0.9, 0.2]), torch.tensor([0.5, 0.4]))
    tensor(0.3000)
    """
    if s_gt.shape != s_base.shape:
        raise ValueError(f'scores of shapes {tuple(s_gt.shape)} and {tuple(s_base.shape)}')
    return reduce(torch.abs(s_gt.float() - s_base.detach().float()), reduction)


@LOSSES.register('FinPercepAlignLoss')
class FinPercepAlignLoss(nn.Module):
    """`loss_weight` times `align_loss`.

    Args:
        loss_weight: of the whole.
        reduction: 'mean' | 'sum' | 'none' over samples.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: Literal['mean', 'sum', 'none'] = 'mean'):
        super().__init__()
        self.loss_weight = loss_weight
        self.reduction: Reduction = reduction

    def forward(self, s_gt: Tensor, s_base: Tensor) -> Tensor:
        """S(gt) (B,) and S_base(gt) (B,)."""
        return self.loss_weight * align_loss(s_gt, s_base, self.reduction)
