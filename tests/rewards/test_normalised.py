import pytest
import torch
from torch import nn

from finpercep_plugin.curriculum.statistics import ScoreStatistics
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.normalised import NormalisedReward
from finpercep_plugin.rewards.weighted_reward import WeightedReward


class Distance(nn.Module):
    higher_is_better, differentiable, needs = False, True, frozenset({'gt'})

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


class Bright(nn.Module):
    higher_is_better, differentiable, needs = True, True, frozenset()

    def forward(self, sr, lq=None, gt=None, prompt=None):
        return RewardOutput(sr.mean(dim=(1, 2, 3)))


def pictures(*means):
    return torch.tensor(means).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()


def test_a_plain_reward_is_measured_as_it_is():
    reward = NormalisedReward(Distance(), ScoreStatistics())
    sr, gt = pictures(0.1, 0.5), pictures(0.0, 0.0)
    assert not reward.needs_groups and reward.term_names == ['raw']
    terms = reward.terms(sr, gt=gt)
    torch.testing.assert_close(terms, {'raw': torch.tensor([-0.1, -0.5])})
    reward.measure(terms)
    assert reward.statistics.moments(0) == pytest.approx((-0.3, 0.2)) and reward.measured == {}
    torch.testing.assert_close(reward(sr, gt=gt).score, torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize('how', ['group', 'range', 'statistics'])
def test_a_weighted_sum_is_measured_in_two_steps(how):
    """bright 0.2, 0.4, 0.9: mean 0.5; far from 0.4: 0.2, 0, 0.5. Both on one scale first, then their sum."""
    weighted = WeightedReward({'bright': Bright(), 'far': Distance()}, {'far': 2.0}, how)
    reward = NormalisedReward(weighted, ScoreStatistics())
    sr, gt = pictures(0.2, 0.4, 0.9), pictures(0.4, 0.4, 0.4)
    assert reward.needs_groups == (how != 'statistics') and reward.term_names == ['bright', 'far']
    reward.measure(reward.terms(sr, gt=gt))

    def unit(values):
        return (values - values.mean()) / values.std(correction=0)

    total = unit(torch.tensor([0.2, 0.4, 0.9])) - 2 * unit(torch.tensor([0.2, 0.0, 0.5]))
    out = reward(sr, gt=gt)
    torch.testing.assert_close(out.score, unit(total), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.terms['raw'], total, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reward(sr[1:2], gt=gt[1:2]).score, out.score[1:2], atol=1e-5, rtol=1e-5)
    if how == 'group':  # of the whole group: no mu and sd again
        torch.testing.assert_close(reward.combine(out.terms, [4, 4, 4]), total, atol=1e-5, rtol=1e-5)


def test_what_is_measured_is_restored():
    sections = {'bright': Bright(), 'far': Distance()}
    first, second = (NormalisedReward(WeightedReward(sections), ScoreStatistics()) for _ in range(2))
    first.measure({'bright': torch.tensor([0.0, 2.0, 1.0, 1.0]), 'far': torch.tensor([1.0, 4.0, 1.0, 4.0])})
    assert first.measured == {'bright': (1.0, 0.5**0.5), 'far': (2.5, 1.5)}
    second.restore(first.measured)
    second.statistics.load_state_dict(first.statistics.state_dict())
    sr, gt = pictures(0.2, 0.7), pictures(0.1, 0.1)
    assert torch.equal(first(sr, gt=gt).score, second(sr, gt=gt).score)
    NormalisedReward(Distance(), ScoreStatistics()).restore({'raw': (0.0, 1.0)})  # nothing to keep
