"""What a reward returns, and the formulas that rewards share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

__all__ = ['RewardOutput', 'luma', 'raw_reward', 'robust_max']


@dataclasses.dataclass
class RewardOutput:
    """A reward's answer for a batch.

    Attributes:
        score: (B,), one a sample.
        terms: {name: (B,)}, what the score is made of, for logs.
        maps: {name: (B, 1, H, W)}, [0, 1], where the reward sees something.
    """

    score: Tensor
    terms: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    maps: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def robust_max(maps: Tensor, top: float = 0.01) -> Tensor:
    """max^: the mean of the largest `top` share of each map's pixels, of one pixel at least (METHOD.md §4).

    Args:
        maps: (B, 1, H, W).
        top: in (0, 1]; 1 is the mean.

    Returns:
        (B,).

    Raises:
        ValueError: `top` out of range.

    >>> robust_max(torch.tensor([[[[0.0, 0.2], [0.4, 0.6]]]]), top=0.5)
    tensor([0.5000])
    """
    if not 0 < top <= 1:
        raise ValueError(f'top: expected a share in (0, 1], got {top:g}')
    flat = maps.flatten(1).float()
    return flat.topk(max(1, round(top * flat.shape[1])), dim=1).values.mean(1)


def raw_reward(
    score: Tensor, degradation: Tensor | None, stage: int, l1: float = 1.0, l2: float = 1.0, top: float = 0.01
) -> Tensor:
    """raw_0 = S_0; raw_k = l1 S_k + l2 (1 - max^(M_k)) for k = 1, 2 (METHOD.md §4).

    Args:
        score: S_k (B,).
        degradation: M_k (B, 1, H, W), [0, 1]; not used at stage 0.
        stage: k.
        l1, l2: weights of the two.
        top: see `robust_max`.

    Returns:
        (B,).

    >>> raw_reward(torch.tensor([0.5]), torch.full((1, 1, 4, 4), 0.25), stage=2)
    tensor([1.2500])
    """
    if stage == 0:
        return score.float()
    assert degradation is not None, 'RM_1 and RM_2 have a map'
    return l1 * score.float() + l2 * (1 - robust_max(degradation, top))


def luma(image: Tensor) -> Tensor:
    """ITU-R BT.601 Y in [16, 235] / 255, as MATLAB's rgb2ycbcr: what published SR figures are measured on.

    Args:
        image: (B, 3, H, W), RGB, [0, 1].

    Returns:
        (B, 1, H, W).

    >>> round(luma(torch.ones(1, 3, 1, 1)).item() * 255, 3)
    235.0
    """
    weight = torch.tensor([65.481, 128.553, 24.966], dtype=image.dtype, device=image.device) / 255
    return (image * weight.view(1, 3, 1, 1)).sum(1, keepdim=True) + 16 / 255
