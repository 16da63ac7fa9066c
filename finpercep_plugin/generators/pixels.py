"""What generators share on the image side: upscaling the input, and a clamp that lets gradients through."""

from __future__ import annotations

from typing import Any, Literal, Optional, Tuple

import torch
import torch.nn.functional as F

__all__ = ['Kernel', 'Region', 'crop', 'straight_through_clamp', 'upscale']

Region = Tuple[int, int, int, int]
Kernel = Literal['torch', 'pillow']


class _StraightThroughClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: torch.Tensor) -> torch.Tensor:
        return image.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


def straight_through_clamp(image: torch.Tensor) -> torch.Tensor:
    """`image.clamp(0, 1)` whose gradient is the identity, so that a saturated pixel can still be pulled back.

    >>> x = torch.tensor([-0.5, 0.5, 1.5], requires_grad=True)
    >>> y = straight_through_clamp(x)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([0.0, 0.5, 1.0], [1.0, 1.0, 1.0])
    """
    return _StraightThroughClamp.apply(image)


def upscale(lq: torch.Tensor, scale: int, kernel: Kernel = 'torch') -> torch.Tensor:
    """Bicubic upscaling, clamped: (B, 3, h, w), [0, 1] -> (B, 3, h * scale, w * scale), [0, 1].

    Args:
        lq: see above.
        scale: side of the result / side of lq.
        kernel: 'torch': a cubic with a = -0.75; 'pillow': with a = -0.5, rows and then columns, each clamped, which is
            what Pillow does with 8-bit pictures, but for its rounding.

    >>> upscale(torch.full((1, 3, 4, 6), 0.5), 4).shape
    torch.Size([1, 3, 16, 24])

    Raises:
        TypeError: integers, which would be taken for [0, 1].
    """
    if not lq.is_floating_point():
        raise TypeError(f'lq: expected floats in [0, 1], got {lq.dtype}')
    if kernel == 'torch':
        return F.interpolate(lq, scale_factor=scale, mode='bicubic').clamp(0, 1)
    for factors in ((1.0, float(scale)), (float(scale), 1.0)):  # `antialias` gives a = -0.5, and else nothing here
        lq = F.interpolate(lq, scale_factor=factors, mode='bicubic', antialias=True).clamp(0, 1)
    return lq


def crop(image: torch.Tensor, region: Optional[Region]) -> torch.Tensor:
    """The (top, left, height, width) part of (B, C, H, W), or all of it for None.

    Raises:
        ValueError: the region does not lie inside the image.
    """
    if region is None:
        return image
    top, left, height, width = region
    if min(top, left) < 0 or min(height, width) < 1 or top + height > image.shape[-2] or left + width > image.shape[-1]:
        raise ValueError(f'region (top, left, height, width) = {tuple(region)} is not inside {tuple(image.shape[-2:])}')
    return image[..., top : top + height, left : left + width]
