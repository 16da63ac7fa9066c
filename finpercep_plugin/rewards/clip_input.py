"""What CLIP-like rewards read: an image as one square in the network's own scale, and a prompt a sample."""

from __future__ import annotations

from typing import Literal, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep_plugin.generators.pixels import straight_through_clamp

__all__ = ['Resize', 'cosine', 'normalised', 'prompts', 'to_square']

Resize = Literal['crop', 'pad', 'squash']


def to_square(image: Tensor, size: int, resize: Resize = 'crop', antialias: bool = True) -> Tensor:
    """A square of `size` pixels, by bicubic interpolation.

    With antialias it is PIL's (and so the public scorers', on 8-bit images) but for rounding: a = -0.5, the kernel as
    wide as a reduction asks for, clamped at the end; the gradient passes through the clamp. Without, torch's: a = -0.75,
    four taps, which alias when an image is reduced.

    Args:
        image: (B, 3, H, W), [0, 1].
        size: side of the square.
        resize: 'crop': the shorter side becomes `size`, and the centre is cut out (CLIP); 'pad': the longer side does,
            and black fills the rest evenly (HPSv2); 'squash': both do.
        antialias: see above.

    Returns:
        (B, 3, size, size), float32, [0, 1].

    Raises:
        ValueError: `resize` is none of the three.

    >>> to_square(torch.ones(1, 3, 8, 4), 4, 'pad')[0, 0, 0]
    tensor([0., 1., 1., 0.])
    """
    sides = tuple(image.shape[-2:])
    if resize == 'crop':
        new = tuple(size * side // min(sides) for side in sides)
    elif resize == 'pad':
        new = tuple(max(1, round(side * (size / max(sides)))) for side in sides)
    elif resize == 'squash':
        new = (size, size)
    else:
        raise ValueError(f"resize: expected 'crop', 'pad' or 'squash', got {resize!r}")
    image = image.float()
    if new != sides:
        image = F.interpolate(image, new, mode='bicubic', align_corners=False, antialias=antialias)
        image = straight_through_clamp(image)
    if resize == 'pad':
        top, left = ((size - side) // 2 for side in new)
        return F.pad(image, (left, size - new[1] - left, top, size - new[0] - top))
    top, left = (round((side - size) / 2) for side in new)  # torchvision's CenterCrop
    return image[..., top : top + size, left : left + size]


def normalised(image: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """(image - mean) / std, by channel, in float32."""
    mean, std = (torch.as_tensor(x, dtype=torch.float32, device=image.device).view(1, -1, 1, 1) for x in (mean, std))
    return (image.float() - mean) / std


def prompts(prompt: Sequence[str] | None, count: int, reward: str) -> list[str]:
    """The prompts, checked.

    Args:
        prompt: one a sample; '' is a text like any other.
        count: samples.
        reward: its name, for messages.

    Raises:
        ValueError: there are none, or another number of them.
    """
    if prompt is None:
        raise ValueError(f'reward {reward} compares with a prompt, and there is none')
    if isinstance(prompt, str) or len(prompt) != count:
        got = 'a single text' if isinstance(prompt, str) else str(len(prompt))
        raise ValueError(f'reward {reward}: expected {count} prompts, one a sample, got {got}')
    return list(prompt)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of rows, in float32: (B, D), (B, D) -> (B,).

    >>> cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([0.6000])
    """
    return (F.normalize(a.float(), dim=-1) * F.normalize(b.float(), dim=-1)).sum(-1)
