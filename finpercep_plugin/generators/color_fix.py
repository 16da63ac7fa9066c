"""Give an image the colours of another: AdaIN and wavelet colour fix, on tensors and differentiable.

Both as StableSR (Wang et al. 2024, §3.4) uses them, and with it SeeSR, OSEDiff, DiT4SR and DiffBIR.
"""

from __future__ import annotations

from typing import Literal, Tuple, get_args

import torch
import torch.nn.functional as F

__all__ = ['ColorFix', 'adain', 'check_kind', 'color_fix', 'wavelet_decomposition', 'wavelet_reconstruction']

ColorFix = Literal['adain', 'wavelet', 'none']


def adain(content: torch.Tensor, style: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """`(content - mean_c) / sd_c * sd_s + mean_s` per image and channel, `sd = sqrt(unbiased variance + eps)`.

    Args:
        content: (B, C, H, W).
        style: (B, C, H', W').
        eps: under the root.

    >>> adain(torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[4.0, 8.0]]]]), eps=0.0)
    tensor([[[[4., 8.]]]])
    """
    mean_c, sd_c = _moments(content, eps)
    mean_s, sd_s = _moments(style, eps)
    return (content - mean_c) / sd_c * sd_s + mean_s


def wavelet_decomposition(image: torch.Tensor, levels: int = 5) -> Tuple[torch.Tensor, torch.Tensor]:
    """(high, low) frequencies of (B, C, H, W), whose sum is the image.

    Level i blurs by the 3 x 3 binomial kernel with dilation 2^i (a trous), edges replicated.
    """
    high, low = torch.zeros_like(image), image
    for level in range(levels):
        blurred = _blur(low, 2**level)
        high, low = high + (low - blurred), blurred
    return high, low


def wavelet_reconstruction(content: torch.Tensor, style: torch.Tensor, levels: int = 5) -> torch.Tensor:
    """High frequencies of `content` on low frequencies of `style`, both (B, C, H, W)."""
    return wavelet_decomposition(content, levels)[0] + wavelet_decomposition(style, levels)[1]


def color_fix(image: torch.Tensor, reference: torch.Tensor, kind: ColorFix) -> torch.Tensor:
    """`image` with the colours of `reference`, both (B, 3, H, W), [0, 1]; computed in float32, not clamped.

    Raises:
        ValueError: an unknown kind.
    """
    check_kind(kind)
    if kind == 'none':
        return image
    return {'adain': adain, 'wavelet': wavelet_reconstruction}[kind](image.float(), reference.float())


def check_kind(kind: str) -> None:
    """
    Raises:
        ValueError: `kind` is no `ColorFix`.
    """
    if kind not in get_args(ColorFix):
        raise ValueError(f"color_fix must be 'adain', 'wavelet' or 'none', got {kind!r}")


def _moments(image: torch.Tensor, eps: float) -> Tuple[torch.Tensor, torch.Tensor]:
    flat = image.flatten(2)
    sd = (flat.var(dim=2, unbiased=True) + eps).sqrt()
    return flat.mean(dim=2)[..., None, None], sd[..., None, None]


def _blur(image: torch.Tensor, radius: int) -> torch.Tensor:
    # By sums, not by a convolution, which autocast would turn to bfloat16 and a GPU to TF32: steps larger than 1 / 255.
    for dim, sides in ((-2, (0, 0, radius, radius)), (-1, (radius, radius, 0, 0))):
        padded, length = F.pad(image, sides, mode='replicate'), image.shape[dim]
        left, middle, right = (padded.narrow(dim, start * radius, length) for start in range(3))
        image = 0.25 * left + 0.5 * middle + 0.25 * right
    return image
