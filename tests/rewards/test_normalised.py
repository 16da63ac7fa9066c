import pytest
import torch
from torch import nn

from finpercep_plugin.curriculum.statistics import ScoreStatistics
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.normalised import NormalisedReward


class Distance(nn.Module):
    higher_is_better = False

    def forward(self, sr, lq=None, gt=None, prompt=None):
        return RewardOutput((sr - gt).abs().mean(dim=(1, 2, 3)), {'seen': sr.mean(dim=(1, 2, 3))})


def test_scale_and_sign_by_hand():
    """|0.5 - 0.2| = 0.3, negated; mu -0.1, sd 0.05: (-0.3 + 0.1) / 0.05 = -4."""
    statistics = ScoreStatistics()
    reward = NormalisedReward(Distance(), statistics)
    sr, gt = torch.full((1, 3, 2, 2), 0.5, requires_grad=True), torch.full((1, 3, 2, 2), 0.2)
    with pytest.raises(RuntimeError, match='not measured'):
        reward(sr, gt=gt)
    statistics.set(0, mu=-0.1, sd=0.05)
    out = reward(sr, gt=gt)
    assert out.score.item() == pytest.approx(-4.0, abs=1e-5)
    assert out.terms['raw'].item() == pytest.approx(-0.3) and out.terms['seen'].item() == pytest.approx(0.5)
    out.score.sum().backward()
    assert (sr.grad < 0).all()
