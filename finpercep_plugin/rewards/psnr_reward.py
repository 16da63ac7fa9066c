"""PSNR against gt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.base import RewardOutput, luma

__all__ = ['PSNRReward', 'psnr']


def psnr(image: Tensor, reference: Tensor, floor: float = 1e-10) -> Tensor:
    """-10 log10 of the mean squared error of each sample, in dB.

    Args:
        image, reference: (B, C, H, W), [0, 1].
        floor: smallest error, which gives equal images 100 dB.

    Returns:
        (B,).

    >>> psnr(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.1))
    tensor([20.])
    """
    error = (image.float() - reference.float()).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error.clamp_min(floor))


@REWARDS.register('PSNR')
class PSNRReward(nn.Module):
    """PSNR in dB.

    Args:
        y_channel: on luma, as published SR figures; otherwise on RGB.
        crop_border: pixels left out at each side.
    """

    differentiable = True
    needs = frozenset({'gt'})
    higher_is_better = True

    def __init__(self, y_channel: bool = True, crop_border: int = 0):
        super().__init__()
        self.y_channel, self.crop_border = y_channel, crop_border

    def forward(
        self, sr: Tensor, lq: Tensor | None = None, gt: Tensor | None = None, prompt: list[str] | None = None
    ) -> RewardOutput:
        """
        Args:
            sr, gt: (B, 3, H, W), RGB, [0, 1].

        Raises:
            ValueError: no gt, or one of another size.
        """
        sr, gt = comparable('PSNR', sr, gt, self.y_channel, self.crop_border)
        return RewardOutput(psnr(sr, gt))


def comparable(name: str, sr: Tensor, gt: Tensor | None, y_channel: bool, crop_border: int) -> tuple[Tensor, Tensor]:
    """sr and gt as a full-reference measure takes them: luma or RGB, without border.

    Raises:
        ValueError: no gt, one of another size, or nothing left inside the border.
    """
    if gt is None:
        raise ValueError(f'reward {name} compares with gt, and there is none')
    if sr.shape != gt.shape:
        raise ValueError(f'reward {name}: sr of shape {tuple(sr.shape)}, gt of shape {tuple(gt.shape)}')
    if min(sr.shape[-2:]) <= 2 * crop_border:
        raise ValueError(f'reward {name}: crop_border {crop_border} leaves nothing of {tuple(sr.shape[-2:])} pixels')
    sr, gt = (luma(x.float()) if y_channel else x.float() for x in (sr, gt))
    inside = (..., slice(crop_border, sr.shape[-2] - crop_border), slice(crop_border, sr.shape[-1] - crop_border))
    return sr[inside], gt[inside]
