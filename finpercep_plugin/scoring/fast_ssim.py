"""pyiqa's SSIM in a tenth of the time: its window is one of rows times one of columns, so it is applied as two."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ['FastSSIM', 'speed_up']


class FastSSIM(nn.Module):
    """What pyiqa's SSIM computes, in float64 as there; equal to about 1e-9.

    Args:
        original: pyiqa's, without its downsampling.
    """

    def __init__(self, original: nn.Module):
        super().__init__()
        from pyiqa.matlab_utils import fspecial

        assert not original.downsample
        self.test_y_channel, self.color_space = original.test_y_channel, original.color_space
        self.crop_border, self.data_range = int(original.crop_border), original.data_range
        window = fspecial(11, 1.5, 1)[0, 0].double()  # rounded to float32 there; its sum is kept
        rows = window.sum(1)
        self.taps = (rows / rows.sum() * window.sum().sqrt()).tolist()

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """
        Args:
            image, reference: (B, 3, H, W), RGB, [0, 1].

        Returns:
            (B,), float64.
        """
        from pyiqa.archs.func_util import preprocess_rgb

        if self.crop_border:
            inside = slice(self.crop_border, -self.crop_border)
            image, reference = image[..., inside, inside], reference[..., inside, inside]
        assert image.shape == reference.shape, f'{tuple(image.shape)} and {tuple(reference.shape)} are not of one shape'
        assert min(image.shape[-2:]) >= 11, f'SSIM needs sides of 11 pixels or more, got {tuple(image.shape[-2:])}'
        x, y = (
            preprocess_rgb(t, self.test_y_channel, self.data_range, self.color_space).double()
            for t in (image, reference)
        )
        mu_x, mu_y, xx, yy, xy = self._blur(torch.stack([x, y, x * x, y * y, x * y]))
        var_x, var_y, cov = xx - mu_x * mu_x, yy - mu_y * mu_y, xy - mu_x * mu_y
        c1, c2 = (0.01 * self.data_range) ** 2, (0.03 * self.data_range) ** 2
        contrast = ((2 * cov + c2) / (var_x + var_y + c2)).relu_()  # pyiqa's, against negative values
        index = (2 * mu_x * mu_y + c1) / (mu_x * mu_x + mu_y * mu_y + c1) * contrast
        return index.mean((1, 2, 3))

    def _blur(self, maps: Tensor) -> Tensor:
        for dim in (-1, -2):
            size = maps.shape[dim] - len(self.taps) + 1
            total = maps.narrow(dim, 0, size) * self.taps[0]
            for at, tap in enumerate(self.taps[1:], 1):
                total.add_(maps.narrow(dim, at, size), alpha=tap)
            maps = total
        return maps


def speed_up(model: nn.Module) -> nn.Module:
    """A pyiqa metric, with `FastSSIM` in it where that computes the same."""
    if type(model.net).__name__ == 'SSIM' and not model.net.downsample:
        model.net = FastSSIM(model.net)
    return model
