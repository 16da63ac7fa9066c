"""How much better samples are than the others of their group, as a whole and region by region (the latter is ours)."""

from __future__ import annotations

import logging
from typing import Any, Dict, Literal, Optional, Sequence, Set, Tuple

import torch
import torch.nn.functional as F

from finpercep_plugin.algorithms.group_scores import group_scores
from finpercep_plugin.algorithms.grpo_objective import group_advantage
from finpercep_plugin.algorithms.members import Exchange
from finpercep_plugin.diffusion.regions import region_mean
from finpercep_plugin.rewards.base import RewardOutput

__all__ = ['Advantages', 'mixed_advantage', 'region_rewards']

logger = logging.getLogger(__name__)


def region_rewards(degradation: torch.Tensor, side: int, grid: Sequence[int]) -> torch.Tensor:
    """`r(p) = 1 - mean of M over region p`, (B, rows, columns).

    Args:
        degradation: M (B, 1, H, W), [0, 1], 1 = fully degraded.
        side: of the regions, in pixels.
        grid: (rows, columns) of the latents, whose padding below and to the right can make them more than the picture
            has: 1 there.

    >>> region_rewards(torch.tensor([[[[0.5, 0.3, 0.0, 0.2]]]]), 2, (1, 3))
    tensor([[[0.6000, 0.9000, 1.0000]]])
    """
    seen = region_mean(degradation.detach().float(), side)
    return 1 - F.pad(seen, (0, grid[1] - seen.shape[2], 0, grid[0] - seen.shape[1]))


def mixed_advantage(whole: torch.Tensor, regions: torch.Tensor, dense: float) -> torch.Tensor:
    """`A(p) = (1 - dense) A + dense A_region(p)`, (n, rows, columns).

    Args:
        whole: (n,) A, of the score.
        regions: (n, rows, columns), of the rewards of regions.
        dense: 0..1.

    >>> mixed_advantage(torch.tensor([1.0]), torch.tensor([[[-1.0, 3.0]]]), 0.5)
    tensor([[[0., 2.]]])
    """
    return (1 - dense) * whole.view(-1, 1, 1) + dense * regions


class Advantages:
    """Advantages of samples from what a reward says of them.

    Args:
        std: see `group_advantage`.
        clip: the same.
        dense: share of the advantage that is that of the region, 0..1; 0: there are no regions.
        region_size: side of the regions, in pixels of sr.
    """

    def __init__(self, std: Literal['group', 'batch'], clip: float, dense: float, region_size: int):
        self.std, self.clip, self.dense, self.region_size = std, clip, dense, region_size
        self._said: Set[str] = set()

    def side(self, generator: Any) -> Optional[int]:
        """Of the regions, in latent cells; None: there are none.

        Raises:
            ValueError: regions that do not have whole cells.
        """
        if not self.dense:
            return None
        if self.region_size % generator.stride:
            raise ValueError(
                f'FlowGRPO: region_size must be a multiple of {generator.stride}, the pixels of a latent cell, got '
                f'{self.region_size}'
            )
        return self.region_size // generator.stride

    def __call__(
        self,
        reward_fn: Any,
        outputs: Sequence[RewardOutput],
        ids: torch.Tensor,
        exchange: Exchange,
        grid: Sequence[int],
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """(n,), with regions (n, rows, columns), or (n, 1, 1) if the reward gives no map; and what is seen of the groups.

        Args:
            reward_fn: what gave the outputs.
            outputs: batches of n samples in all.
            ids: (n,) of the low-quality image of each.
            exchange: ((n, ...) values, (n,) ids) -> those of all ranks.
            grid: (rows, columns) of the regions of a latent, if there are any.
        """
        scores, everywhere = group_scores(reward_fn, outputs, ids, exchange)
        whole, seen = group_advantage(scores, ids, everywhere or exchange(scores, ids), self.std, clip=self.clip)
        if seen['zero_std_groups'] > 0 or seen['group_min'] < 2:
            self._say(
                'some groups teach nothing: %.0f %% have rewards that are all equal, and the smallest has %d sample(s); '
                'this is said once, watch zero_std_groups',
                100 * seen['zero_std_groups'],
                seen['group_min'],
            )
        if not self.dense:
            return whole, seen
        if 'map' not in outputs[0].maps:
            self._say('dense = %s, but this reward gives no map: advantages are the same everywhere', self.dense)
            return whole.view(-1, 1, 1), seen
        rewards = torch.cat([region_rewards(output.maps['map'], self.region_size, grid) for output in outputs])
        regions, _ = group_advantage(rewards, ids, exchange(rewards, ids), self.std, clip=self.clip)
        return mixed_advantage(whole, regions, self.dense), seen

    def _say(self, message: str, *values: Any) -> None:
        """Warn, the first time."""
        if message not in self._said:
            logger.warning(f'FlowGRPO: {message}', *values)
            self._said.add(message)
