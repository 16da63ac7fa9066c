"""Feature pyramid that turns encoder features into the logits of a degradation map (Lin et al. 2017; METHOD.md §1)."""

from __future__ import annotations

import math
from typing import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['FPNDecoder']


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, H, W): the token norms of a CLIP ViT differ by orders between blocks."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class FPNDecoder(nn.Module):
    """1x1 laterals to one width, coarser levels upsampled and added to finer ones, two 3x3 convolutions.

    A plain ViT has one grid, so level i is first resampled to `scales[i]` times the grid.

    Args:
        channels: of each level, finest first.
        levels: which levels are read.
        scales: side of each level's map in units of the patch grid, e.g. (8, 4, 2, 1).
        width: channels inside.
    """

    def __init__(self, channels: Sequence[int], levels: Sequence[int], scales: Sequence[float], width: int):
        super().__init__()
        if len(scales) != len(channels):
            raise ValueError(f'scales: expected one for each of the {len(channels)} levels, got {tuple(scales)}')
        self.levels, self.scales = tuple(levels), tuple(scales)
        self.laterals = nn.ModuleList(
            nn.Sequential(ChannelNorm(channels[i]), nn.Conv2d(channels[i], width, 1)) for i in self.levels
        )
        self.smooth = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, features: Sequence[Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """
        Args:
            features: [(B, C_i, h_i, w_i)], all levels.
            grid: patch grid (h, w).
            size: side lengths (H, W) of the map to return.

        Returns:
            logits (B, 1, H, W).
        """
        x = None
        for level, lateral in reversed(list(zip(self.levels, self.laterals))):
            shape = (round(grid[0] * self.scales[level]), round(grid[1] * self.scales[level]))
            y = F.interpolate(lateral(features[level]), size=shape, mode='bilinear', align_corners=False)
            x = y if x is None else y + F.interpolate(x, size=shape, mode='bilinear', align_corners=False)
        logits = self.out(F.gelu(self.smooth(F.gelu(x))))
        return F.interpolate(logits, size=size, mode='bilinear', align_corners=False)

    def start_at(self, prior: float) -> None:
        """Make the map of an untrained decoder about `prior` everywhere, through the last layer's bias (Lin et al. 2017b, focal loss)."""
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.constant_(self.out.bias, math.log(prior / (1 - prior)))

    def zero_last(self) -> None:
        """Make the output zero, through the last layer only, so that the branch still gets gradient."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
