"""SSIM against gt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.psnr_reward import comparable

__all__ = ['SSIMReward', 'ssim']


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 x 11 and sigma 1.5, where it fits; mean over all.

    Args:
        image, reference: (B, C, H, W), [0, 1], sides of 11 or more.

    Returns:
        (B,), at most 1.

    Raises:
        ValueError: smaller than the window.
    """
    if min(image.shape[-2:]) < 11:
        raise ValueError(f'SSIM needs sides of 11 pixels or more, got {tuple(image.shape[-2:])}')
    at = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(at**2) / (2 * 1.5**2))
    window = (window / window.sum()).to(image.device, image.dtype)
    x, y = (t.flatten(0, 1)[:, None] for t in (image, reference))

    def blur(t: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(t, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    mu_x, mu_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mu_x**2, blur(y * y) - mu_y**2, blur(x * y) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    return index.mean(dim=(1, 2, 3)).view(len(image), -1).mean(1)


@REWARDS.register('SSIM')
class SSIMReward(nn.Module):
    """SSIM, at most 1.

    Args:
        y_channel: on luma, as published SR figures; otherwise the mean over RGB.
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
            ValueError: no gt, one of another size, or smaller than the window.
        """
        sr, gt = comparable('SSIM', sr, gt, self.y_channel, self.crop_border)
        with torch.autocast(sr.device.type, enabled=False):  # variances are differences of nearly equal numbers
            return RewardOutput(ssim(sr.float(), gt.float()))
