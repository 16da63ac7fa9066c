"""Any reward on the scale that the algorithms expect: R = (r - mu) / sd, mu and sd of the starting generator (METHOD.md §4)."""

from __future__ import annotations

from torch import Tensor, nn

from finpercep_plugin.curriculum.statistics import ScoreStatistics
from finpercep_plugin.rewards.base import RewardOutput

__all__ = ['NormalisedReward']


class NormalisedReward(nn.Module):
    """A reward without stages, with the interface of one that has them: its only stage is `stage`.

    Args:
        reward: called as (sr, lq=, gt=, prompt=); one that is lower for better images is negated.
        statistics: receives and keeps mu and sd.
    """

    stage = 0

    def __init__(self, reward: nn.Module, statistics: ScoreStatistics):
        super().__init__()
        self.reward, self.statistics = reward, statistics

    @property
    def encoders(self) -> list[nn.Module]:
        """Of the reward: what may be held in bfloat16."""
        return list(getattr(self.reward, 'encoders', ()))

    def raw(
        self,
        sr: Tensor,
        stage: int,
        lq: Tensor | None = None,
        gt: Tensor | None = None,
        prompt: list[str] | None = None,
    ) -> RewardOutput:
        """The reward itself, higher better; its value is also the term 'raw'. Arguments as of the reward."""
        out = self.reward(sr, lq=lq, gt=gt, prompt=prompt)
        score = out.score if self.reward.higher_is_better else -out.score
        return RewardOutput(score, {**out.terms, 'raw': score}, out.maps)

    def forward(
        self, sr: Tensor, lq: Tensor | None = None, gt: Tensor | None = None, prompt: list[str] | None = None
    ) -> RewardOutput:
        """(raw - mu) / sd.

        Raises:
            RuntimeError: mu and sd are not measured yet.
        """
        out = self.raw(sr, self.stage, lq, gt, prompt)
        return RewardOutput(self.statistics.normalise(self.stage, out.score), out.terms, out.maps)
