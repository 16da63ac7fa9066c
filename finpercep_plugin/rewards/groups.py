"""Scores relative to the other samples of the same low-quality image."""

from __future__ import annotations

from typing import Literal, Sequence

import torch
from torch import Tensor

__all__ = ['Groups', 'normalise_groups']

Groups = Tensor | Sequence[int]


def normalise_groups(
    values: Tensor,
    groups: Groups,
    by: Literal['spread', 'range'] = 'spread',
    floor: float = 1e-4,
    everywhere: tuple[Tensor, Groups] | None = None,
) -> Tensor:
    """(r - mean) / sd, or (r - min) / (max - min), within each group.

    A value depends on its group alone. In a group whose sd or range is below `floor` no sample is better than another:
    all get 0 (by spread) or 0.5 (by range), without a gradient. Mean, sd, min and max count as constants in the
    gradient, which would otherwise sum to 0 over a group.

    Args:
        values: (N,).
        groups: N group ids, e.g. of the lq images that samples were drawn for.
        by: 'spread': mean and (population) sd, as in GRPO; 'range': minimum and maximum, as in DP2O-SR.
        floor: see above.
        everywhere: values and group ids of all processes, these included, where groups span processes.

    Returns:
        (N,), float32.

    Raises:
        ValueError: another number of ids than of values.

    >>> normalise_groups(torch.tensor([1.0, 3.0, 30.0, 10.0]), [7, 7, 9, 9])
    tensor([-1.,  1.,  1., -1.])
    """
    ids = torch.as_tensor(groups, device=values.device).flatten()
    if len(ids) != len(values):
        raise ValueError(f'expected a group id for each of {len(values)} samples, got {len(ids)}')
    pool, pool_groups = (values, ids) if everywhere is None else everywhere
    pool, pool_ids = pool.detach().double(), torch.as_tensor(pool_groups, device=pool.device).flatten()
    result = torch.empty_like(values, dtype=torch.float32)
    for group in ids.unique():
        inside, seen = ids == group, pool[pool_ids == group]
        part = values[inside].double()
        if by == 'spread':
            shift, scale, tie = seen.mean(), seen.std(correction=0), 0.0
        else:
            shift, scale, tie = seen.min(), seen.max() - seen.min(), 0.5
        scaled = (part - shift) / scale if scale >= floor else torch.full_like(part.detach(), tie)
        result[inside] = scaled.float()
    return result
