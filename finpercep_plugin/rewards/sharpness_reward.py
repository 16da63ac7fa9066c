"""Mean gradient of luma: easily raised, and by noise as well, which is what it is good for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.base import RewardOutput, luma

__all__ = ['SharpnessReward', 'sharpness']


def sharpness(image: Tensor) -> Tensor:
    """Mean |difference| of horizontal neighbours plus that of vertical ones.

    Args:
        image: (B, 1, H, W), sides of 2 or more.

    Returns:
        (B,).

    >>> sharpness(torch.tensor([[[[0.0, 0.5], [0.25, 0.25]]]]))
    tensor([0.5000])
    """
    across, down = image.diff(dim=-1).abs(), image.diff(dim=-2).abs()
    return torch.mean(across, dim=(1, 2, 3)) + torch.mean(down, dim=(1, 2, 3))


@REWARDS.register('Sharpness')
class SharpnessReward(nn.Module):
    """`sharpness` of luma. A reward that hacks itself, for comparison, and a sign of over-sharpening when watched."""

    differentiable = True
    needs: frozenset[str] = frozenset()
    higher_is_better = True

    def forward(
        self, sr: Tensor, lq: Tensor | None = None, gt: Tensor | None = None, prompt: list[str] | None = None
    ) -> RewardOutput:
        """
        Args:
            sr: (B, 3, H, W), RGB, [0, 1].
        """
        return RewardOutput(sharpness(luma(sr.float())))
