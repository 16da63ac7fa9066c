"""L_map: the predicted degradation map against the true one (paper Eq. 5; METHOD.md §2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from finpercep_plugin.losses.reduce import Reduction, reduce
from finpercep_plugin.registry import LOSSES

__all__ = ['FinPercepMapLoss', 'map_loss', 'quality_focal', 'soft_dice']


def soft_dice(pred: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """1 - 2 <p, t> / (<p, p> + <t, t>) of each sample (V-Net, arXiv 1606.04797).

    0 where the maps are equal, 1 where they do not overlap.
    A sample whose target is 0 everywhere gives 0: there is nothing to overlap with.

    Args:
        pred: (B, 1, H, W), [0, 1].
        target: (B, 1, H, W), [0, 1].
        eps: added to the denominator.

    Returns:
        (B,).

    >>> soft_dice(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[1.0, 1.0]]]]))
    tensor([0.3333])
    """
    p, t = pred.flatten(1), target.flatten(1)
    dice = 1 - 2 * (p * t).sum(1) / ((p * p).sum(1) + (t * t).sum(1) + eps)
    return torch.where((t > 0).any(1), dice, torch.zeros_like(dice))


def quality_focal(pred: Tensor, target: Tensor, gamma: float = 2.0, eps: float = 1e-4) -> Tensor:
    """Focal loss for soft targets: mean of |t - p|^gamma (-t log p - (1 - t) log(1 - p)) (arXiv 2006.04388, Eq. 4).

    Unlike L1, whose gradient a sigmoid near 0 all but removes and whose optimum is the median, it pulls p to the mean of t; gamma 0 is cross entropy.

    Args:
        pred: (B, 1, H, W), [0, 1].
        target: (B, 1, H, W), [0, 1].
        gamma: how much pixels that are right already are left out.
        eps: logarithms are taken of at least this.

    Returns:
        (B,).

    >>> quality_focal(torch.tensor([[[[0.5]]]]), torch.tensor([[[[1.0]]]]), gamma=2)
    tensor([0.1733])
    """
    p, t = pred.flatten(1), target.flatten(1)
    entropy = -t * p.clamp_min(eps).log() - (1 - t) * (1 - p).clamp_min(eps).log()
    return ((t - p).abs().pow(gamma) * entropy if gamma else entropy).mean(1)


def map_loss(
    pred: Tensor,
    target: Tensor,
    positive_weight: float = 1.0,
    dice_weight: float = 0.0,
    focal_weight: float = 0.0,
    focal_gamma: float = 2.0,
    reduction: Reduction = 'mean',
) -> Tensor:
    """L_map = |M - M_gt|_1, optionally with degraded pixels weighted up, a Dice and a focal term added (all ours).

    Maps are mostly 0, and so is their median, which is where a plain L1 leads. Weights average to one over each sample,
    so the scale of the loss depends neither on `positive_weight` nor on how much of a sample is degraded.

    Args:
        pred: M (B, 1, H, W), [0, 1].
        target: M_gt (B, 1, H, W), [0, 1].
        positive_weight: of pixels with M_gt > 0, against 1 for the others, before normalisation.
        dice_weight: of `soft_dice`.
        focal_weight, focal_gamma: of `quality_focal`.
        reduction: over samples; 'none' gives (B,).

    Raises:
        ValueError: the maps' shapes differ.

    >>> map_loss(torch.tensor([[[[0.5, 0.2]]]]), torch.tensor([[[[1.0, 0.0]]]]), positive_weight=3)
    tensor(0.4250)
    """
    if pred.shape != target.shape:
        raise ValueError(f'map of shape {tuple(pred.shape)} against a truth of shape {tuple(target.shape)}')
    pred, target = pred.float(), target.float()
    weight = torch.where(target > 0, positive_weight, 1.0)
    weight = weight / weight.mean(dim=(1, 2, 3), keepdim=True)
    loss = (weight * (pred - target).abs()).mean(dim=(1, 2, 3))
    if dice_weight:
        loss = loss + dice_weight * soft_dice(pred, target)
    if focal_weight:
        loss = loss + focal_weight * quality_focal(pred, target, focal_gamma)
    return reduce(loss, reduction)


@LOSSES.register('FinPercepMapLoss')
class FinPercepMapLoss(nn.Module):
    """`loss_weight` times `map_loss`.

    Args:
        loss_weight: of the whole.
        positive_weight: above 0.
        dice_weight, focal_weight, focal_gamma: not negative.
        reduction: 'mean' | 'sum' | 'none' over samples.

    Raises:
        ValueError: a weight out of range.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        positive_weight: float = 1.0,
        dice_weight: float = 0.0,
        focal_weight: float = 0.0,
        focal_gamma: float = 2.0,
        reduction: Literal['mean', 'sum', 'none'] = 'mean',
    ):
        super().__init__()
        options = {'dice_weight': dice_weight, 'focal_weight': focal_weight, 'focal_gamma': focal_gamma}
        if positive_weight <= 0 or min(options.values()) < 0:
            raise ValueError(f'expected positive_weight > 0 and the others >= 0, got {positive_weight:g} and {options}')
        self.loss_weight, self.reduction = loss_weight, reduction
        self.options = {'positive_weight': positive_weight, **options}

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """
        Args:
            pred: M (B, 1, H, W), [0, 1].
            target: M_gt (B, 1, H, W), [0, 1].
        """
        return self.loss_weight * map_loss(pred, target, **self.options, reduction=self.reduction)
