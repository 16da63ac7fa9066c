"""How good a reward model is on FGR triplets it has not trained on (METHOD.md §2): order, and the map against its truth."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['map_sums', 'order_accuracy', 'summarise_maps']


def order_accuracy(lower: Tensor, higher: Tensor) -> Tensor:
    """Share of pairs in which `lower` (B,) is strictly below `higher` (B,).

    >>> order_accuracy(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])).item()
    0.5
    """
    return (lower < higher).float().mean()


def map_sums(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """What `summarise_maps` needs of a batch, as sums that add up over batches and ranks.

    Args:
        prediction, target: maps (B, 1, H, W), [0, 1].
        mask: (B, 1, H, W), the swapped region, > 0.5 inside.

    Returns:
        (11,) float64: n, x, y, xx, yy, xy, |x - y|, inside count and sum, outside count and sum.
    """
    x, y = prediction.detach().double().cpu(), target.detach().double().cpu()
    inside = (mask.detach().cpu() > 0.5).double()
    count = torch.tensor(float(x.numel()), dtype=torch.float64)
    moments = [count, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum(), (x - y).abs().sum()]
    return torch.stack([*moments, inside.sum(), (x * inside).sum(), (1 - inside).sum(), (x * (1 - inside)).sum()])


def summarise_maps(sums: Tensor) -> dict[str, float]:
    """Pearson correlation of all pixels with the truth, L1, and the mean map inside and outside the mask with their ratio.

    Args:
        sums: `map_sums`, added up.
    """
    n, x, y, xx, yy, xy, l1, n_in, s_in, n_out, s_out = sums.tolist()
    spread = max(xx - x * x / n, 0.0) * max(yy - y * y / n, 0.0)
    inside, outside = s_in / max(n_in, 1.0), s_out / max(n_out, 1.0)
    return {
        'map_corr': (xy - x * y / n) / spread**0.5 if spread > 0 else 0.0,
        'map_l1': l1 / n,
        'map_inside': inside,
        'map_outside': outside,
        'map_ratio': inside / max(outside, 1e-12),
    }
