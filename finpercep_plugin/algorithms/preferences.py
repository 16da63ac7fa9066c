"""Pairs of a better and a worse sample of one low-quality image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence, Tuple

import torch

__all__ = ['Pair', 'PreferenceBatch', 'best_worst_pairs']


@dataclass(frozen=True)
class Pair:
    """Sample `winner` of a list of samples is better than sample `loser`, by `gap` > 0 of reward."""

    winner: int
    loser: int
    gap: float


@dataclass(frozen=True)
class PreferenceBatch:
    """P pairs of stored samples.

    Args:
        rows: P rows of lq in the batch that the pairs are of.
        keys: P tuples, what the noise and timestep of each pair are drawn for: (id of the image, number of the winner,
            number of the loser), or another name that no other pair of the image has.
        winner: (P, C, h, w) latents, or (P, 3, H, W) images in [0, 1].
        loser: the same.
        gap: (P,), the reward of the winner less that of the loser, above 0; ones where it is not known.

    Raises:
        ValueError: parts of different lengths, of different shapes, or a gap that is not positive.
    """

    rows: List[int]
    keys: List[Tuple]
    winner: torch.Tensor
    loser: torch.Tensor
    gap: torch.Tensor

    def __post_init__(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in ('rows', 'keys', 'winner', 'loser', 'gap')}
        if len(set(sizes.values())) != 1 or self.winner.shape != self.loser.shape:
            raise ValueError(
                f'preference pairs have parts of different sizes: {sizes}; winners {tuple(self.winner.shape)}, '
                f'losers {tuple(self.loser.shape)}'
            )
        if bool((self.gap <= 0).any()):
            raise ValueError(f'a preference pair needs a gap above 0, got {float(self.gap.min())}; leave ties out')

    def __len__(self) -> int:
        return len(self.rows)


def best_worst_pairs(rewards: torch.Tensor, ids: Sequence[int], best: int, min_gap: float = 0.0) -> List[Pair]:
    """Each of the `best` best samples of an image with each of its `best` worst ones.

    A tie is no preference and is dropped, as is a pair that is closer than `min_gap`. Samples of equal reward keep their
    order.

    Args:
        rewards: (n,), higher better.
        ids: n image ids.
        best: N; 2 N must not be above the samples of an image.
        min_gap: smallest difference of reward that counts as a preference.

    Returns:
        image by image in the order of their first sample; the best winner first, and for each the worst loser first.

    Raises:
        ValueError: an image with fewer than 2 N samples.

    >>> best_worst_pairs(torch.tensor([1.0, 4.0, 2.5]), [7, 7, 7], best=1)
    [Pair(winner=1, loser=0, gap=3.0)]
    """
    values = rewards.detach().double().cpu().tolist()
    groups: dict = {}
    for index, image in enumerate(ids):
        groups.setdefault(image, []).append(index)
    pairs = []
    for image, members in groups.items():
        if len(members) < 2 * best:
            raise ValueError(f'image {image} has {len(members)} samples, too few for the {best} best and {best} worst')
        ranked = sorted(members, key=lambda i: values[i])
        for winner in ranked[: -best - 1 : -1]:
            for loser in ranked[:best]:
                gap = values[winner] - values[loser]
                if gap > 0 and gap >= min_gap:
                    pairs.append(Pair(winner, loser, gap))
    return pairs
