"""The formulas of Flow-GRPO, tensors in and out: advantages within groups, clipped policy ratio, KL to the reference.

Formulas: METHOD.md §5; FinPercep-RM supplement Eq. 4-6; Flow-GRPO (Liu et al. 2025), Eq. 4-6 and 11. Advantages, ratios
and clips of regions are ours.
"""

from __future__ import annotations

import math
from typing import Dict, Literal, Optional, Tuple

import torch

__all__ = ['default_clip', 'gaussian_kl', 'group_advantage', 'grpo_objective']


def default_clip(dimensions: int) -> float:
    """Clip range of a ratio whose log is a mean over that many dimensions: `1e-4 sqrt(65536 / D)`.

    Such a mean of D independent terms spreads by 1 / sqrt(D), so a small generator needs a wider range.

    >>> default_clip(65536), default_clip(1024)
    (0.0001, 0.0008)
    """
    return 1e-4 * math.sqrt(65536 / dimensions)


def group_advantage(
    rewards: torch.Tensor,
    ids: torch.Tensor,
    everywhere: Optional[Tuple[torch.Tensor, torch.Tensor]] = None,
    std: Literal['group', 'batch'] = 'group',
    floor: float = 1e-4,
    clip: float = 5.0,
) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
    """`A = (R - mean) / (std + floor)` within -clip..clip; mean over the samples of the same low-quality image.

    Rewards of regions have the mean of their own place, `A(p) = (R(p) - mean(p)) / (std + floor)`, and all places share
    one std, the root of the mean over places of the variance at each. So the mean square of A is 1 as of an advantage
    for the whole; a place where samples hardly differ keeps small advantages, and if what happens at places is
    independent, the policy gradient of A(p) is that of the mean over places of R, with the noise of other places left
    out.

    Args:
        rewards: (n,), or (n, rows, columns) by region.
        ids: (n,) of the low-quality image of each.
        everywhere: rewards and ids of all ranks, these included, where groups or the batch span ranks.
        std: over the 'group', or over the whole 'batch', which keeps the advantages of groups that hardly differ small.
        floor: added to it.
        clip: largest advantage.

    Returns:
        advantages as `rewards`, float32; and diagnostics of all ranks' groups, scalars: the share of groups whose
            rewards are all equal, `zero_std_groups`, and the samples of the smallest one, `group_min`.

    >>> rewards, ids = torch.tensor([1.0, 3.0, 5.0, 5.0]), torch.tensor([0, 0, 1, 1])
    >>> advantage, seen = group_advantage(rewards, ids, floor=1.0)
    >>> advantage.tolist(), seen['zero_std_groups'].item()
    ([-0.5, 0.5, 0.0, 0.0], 0.5)
    """
    pool, pool_ids = (rewards, ids) if everywhere is None else everywhere
    own, pool = rewards.detach().double(), pool.detach().double().to(rewards.device)
    names, group = pool_ids.to(ids.device).unique(return_inverse=True)
    count = torch.bincount(group, minlength=len(names)).double()
    places = [1] * (pool.ndim - 1)

    def mean(values: torch.Tensor) -> torch.Tensor:
        total = values.new_zeros(len(names), *values.shape[1:]).index_add(0, group, values)
        return total / count.view(-1, *places)

    means = mean(pool)
    equal = torch.stack([(pool[group == i] == pool[group == i][0]).all(0) for i in range(len(names))])
    mine = torch.searchsorted(names, ids)
    if std == 'group':
        variance = mean((pool - means[group]) ** 2).reshape(len(names), -1).mean(1)
        scale = variance.sqrt()[mine].view(-1, *places)
    else:
        scale = pool.var(0, unbiased=False).mean().sqrt() if places else pool.std(unbiased=False)
    advantage = torch.where(equal[mine], 0.0, (own - means[mine]) / (scale + floor)).clamp(-clip, clip)
    zero = equal.reshape(len(names), -1).all(1).float().mean()
    return advantage.float(), {'zero_std_groups': zero, 'group_min': count.min().float()}


def gaussian_kl(mean: torch.Tensor, mean_reference: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """KL of two Gaussians of the same std, the **mean** over dimensions of `(mu - mu_ref)^2 / (2 std^2)`, (B,).

    Args:
        mean: (B, ...).
        mean_reference: the same.
        std: the true one of the step, broadcastable to it, above 0.

    >>> gaussian_kl(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor(0.5))
    tensor([4.])
    """
    return ((mean.float() - mean_reference.float()) ** 2 / (2 * std**2)).flatten(1).mean(1)


def grpo_objective(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    clip: float,
    kl: Optional[torch.Tensor] = None,
    kl_weight: float = 0.0,
    shares: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
    """`-mean min(r A, clip(r, 1 - c, 1 + c) A) + kl_weight mean KL`, `r = exp(log p - log p_old)`.

    With regions, each has a ratio and a clip of its own, and the mean is over samples and dimensions. At ratio 1 its
    gradient is `-mean_p A(p) grad log p(p)`; with the same A everywhere that is the one without regions.

    Args:
        log_prob: (B,) of the samples under the policy, mean over dimensions; or (B, rows, columns) of their regions.
        old_log_prob: the same under the policy that drew them.
        advantage: (B,); broadcastable to (B, rows, columns).
        clip: c, of the ratio of a sample or a region; see `default_clip`.
        kl: (B,), of `gaussian_kl`.
        kl_weight: of it.
        shares: (rows, columns) of `region_shares`, where regions may differ in size.

    Returns:
        the loss, a scalar, and diagnostics, detached scalars: its two terms; mean `ratio` and its largest distance from
            1; `clipped`, the share of ratios that the range cuts off, in either direction; `approx_kl` to the
            policy that drew them, the mean of half the squared log-ratio; the KL to the reference.

    >>> loss, seen = grpo_objective(torch.tensor([0.0, 0.1]), torch.zeros(2), torch.tensor([1.0, 1.0]), clip=0.05)
    >>> round(loss.item(), 4), seen['clipped'].item()
    (-1.025, 0.5)
    """
    log_ratio = log_prob.float() - old_log_prob.detach().float()
    ratio, advantage = log_ratio.exp(), advantage.detach().float()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    l_policy = -(gain if shares is None else gain * shares).mean()
    diagnostics = {
        'l_policy': l_policy,
        'ratio': ratio.mean(),
        'ratio_away': (ratio - 1).abs().max(),
        'clipped': ((ratio - 1).abs() > clip).float().mean(),
        'approx_kl': 0.5 * (log_ratio**2).mean(),
    }
    loss = l_policy
    if kl is not None:
        loss = loss + kl_weight * kl.mean()
        diagnostics |= {'kl': kl.mean(), 'l_kl': kl_weight * kl.mean()}
    return loss, {name: value.detach() for name, value in diagnostics.items()}
