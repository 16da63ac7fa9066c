"""Any reward on the scale that the algorithms expect: R = (r - mu) / sd, mu and sd of the starting generator (METHOD.md §4)."""

from __future__ import annotations

from typing import Mapping

from torch import Tensor, nn

from finpercep_plugin.curriculum.statistics import ScoreStatistics
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.groups import Groups

__all__ = ['NormalisedReward']


class NormalisedReward(nn.Module):
    """A reward without stages, with the interface of one that has them: its only stage is `stage`.

    A reward that puts several together (it has `combine`) is measured in two steps, both by `measure`: each of its parts,
    then their sum. If it scores the samples of a group against each other, R is what `combine` makes of the whole group,
    which has a scale already; a sample by itself has the R of its sum by those statistics, for logs and the monitor.

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

    @property
    def needs_groups(self) -> bool:
        """Whether training scores come from `combine`."""
        return getattr(self.reward, 'needs_groups', False)

    @property
    def term_names(self) -> list[str]:
        """Of what `terms` returns."""
        return list(self.reward.rewards) if self._several else ['raw']

    @property
    def measured(self) -> dict[str, tuple[float, float]]:
        """Mean and sd of each part of a reward that puts several together, for a training state; mu and sd are not here."""
        return dict(self.reward.statistics) if self._several else {}

    def restore(self, measured: Mapping[str, tuple[float, float]]) -> None:
        """Inverse of `measured`."""
        if self._several:
            self.reward.statistics.update({name: measured[name] for name in self.term_names if name in measured})

    def terms(
        self, sr: Tensor, lq: Tensor | None = None, gt: Tensor | None = None, prompt: list[str] | None = None
    ) -> dict[str, Tensor]:
        """{name: (B,)}, what `measure` takes; nothing has to be measured before. Arguments as of the reward."""
        if self._several:
            return self.reward.terms(sr, lq=lq, gt=gt, prompt=prompt)
        return {'raw': self._signed(self.reward(sr, lq=lq, gt=gt, prompt=prompt).score)}

    def measure(self, terms: Mapping[str, Tensor]) -> None:
        """Set mu and sd, and what a reward that puts several together measures, from outputs of the starting generator.

        Args:
            terms: {name: (N,)}, N >= 2, of all processes.

        Raises:
            ValueError: see `ScoreStatistics.measure`, and `measure` of the reward.
        """
        if self._several:
            self.reward.measure(terms)
        raw = self._signed(self.reward.combine(terms)) if self._several else terms['raw']
        self.statistics.measure(self.stage, raw)

    def combine(
        self,
        terms: Mapping[str, Tensor],
        groups: Groups,
        everywhere: tuple[Mapping[str, Tensor], Groups] | None = None,
    ) -> Tensor:
        """R (N,) of whole groups, of a reward that `needs_groups`; see `WeightedReward.combine`."""
        return self._signed(self.reward.combine(terms, groups, everywhere))

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
        score = self._signed(out.score)
        return RewardOutput(score, {'raw': score, **out.terms}, out.maps)

    def forward(
        self, sr: Tensor, lq: Tensor | None = None, gt: Tensor | None = None, prompt: list[str] | None = None
    ) -> RewardOutput:
        """(raw - mu) / sd.

        Raises:
            RuntimeError: mu and sd are not measured yet.
        """
        out = self.raw(sr, self.stage, lq, gt, prompt)
        return RewardOutput(self.statistics.normalise(self.stage, out.score), out.terms, out.maps)

    @property
    def _several(self) -> bool:
        return hasattr(self.reward, 'combine')

    def _signed(self, score: Tensor) -> Tensor:
        return score if self.reward.higher_is_better else -score
