"""L_rank: the order sr < syn < gt of the scores (paper Eq. 6; METHOD.md §2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from finpercep_plugin.losses.reduce import Reduction, reduce
from finpercep_plugin.registry import LOSSES

__all__ = ['FinPercepRankLoss', 'rank_loss']


def rank_loss(s_sr: Tensor, s_syn: Tensor, s_gt: Tensor, m1: float, m2: float, reduction: Reduction = 'mean') -> Tensor:
    """L_rank = max(0, m1 - (S(syn) - S(sr))) + max(0, m2 - (S(gt) - S(syn))).

    Args:
        s_sr, s_syn, s_gt: scores (B,) of the super-resolved, the region-swapped and the true image of each sample.
        m1, m2: margins between them.
        reduction: over samples; 'none' gives (B,).

    Raises:
        ValueError: the scores' shapes differ, which would broadcast.

    >>> rank_loss(torch.tensor([0.0]), torch.tensor([0.3]), torch.tensor([0.9]), m1=0.5, m2=0.5)
    tensor(0.2000)
    """
    if not s_sr.shape == s_syn.shape == s_gt.shape:
        raise ValueError(f'scores of shapes {tuple(s_sr.shape)}, {tuple(s_syn.shape)}, {tuple(s_gt.shape)}')
    s_sr, s_syn, s_gt = s_sr.float(), s_syn.float(), s_gt.float()
    return reduce(torch.relu(m1 - (s_syn - s_sr)) + torch.relu(m2 - (s_gt - s_syn)), reduction)


@LOSSES.register('FinPercepRankLoss')
class FinPercepRankLoss(nn.Module):
    """`loss_weight` times `rank_loss`.

    Args:
        loss_weight: of the whole.
        m1, m2: margins, in units of the score; the default is a tenth of CLIP-IQA's range.
        reduction: 'mean' | 'sum' | 'none' over samples.

    Raises:
        ValueError: a negative margin.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        m1: float = 0.1,
        m2: float = 0.1,
        reduction: Literal['mean', 'sum', 'none'] = 'mean',
    ):
        super().__init__()
        if m1 < 0 or m2 < 0:
            raise ValueError(f'expected margins m1, m2 >= 0, got {m1:g} and {m2:g}')
        self.loss_weight, self.m1, self.m2 = loss_weight, m1, m2
        self.reduction: Reduction = reduction

    def forward(self, s_sr: Tensor, s_syn: Tensor, s_gt: Tensor) -> Tensor:
        """Scores (B,) of sr, syn and gt."""
        return self.loss_weight * rank_loss(s_sr, s_syn, s_gt, self.m1, self.m2, self.reduction)
