"""The weighted sum, by hand."""

import pytest
import torch
from torch import nn

from finpercep_plugin.config import ConfigError, build
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.kind import RewardKind, reward_kind
from finpercep_plugin.rewards.weighted_reward import WeightedReward


class Mean(nn.Module):
    """The mean of each image times `factor`."""

    gives_map = True

    def __init__(self, factor=1.0, higher=True, needs=(), differentiable=True):
        super().__init__()
        self.factor, self.higher_is_better = factor, higher
        self.needs, self.differentiable = frozenset(needs), differentiable

    def forward(self, sr, lq=None, gt=None, prompt=None):
        score = self.factor * sr.mean(dim=(1, 2, 3))
        return RewardOutput(score, {'half': score / 2}, {'map': sr[:, :1]})


def images(*means: float) -> torch.Tensor:
    return torch.tensor(means).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()


def test_sum_by_hand():
    """Means 0.2, 0.4 | 0.5, 0.1 of two groups: z = -1, 1 | 1, -1; of the negated one 1, -1 | -1, 1. 2 z - 0.5 z."""
    reward = WeightedReward({'good': Mean(), 'bad': Mean(10.0, higher=False)}, {'good': 2.0, 'bad': 0.5})
    assert reward.higher_is_better
    out = reward(images(0.2, 0.4, 0.5, 0.1), groups=[0, 0, 1, 1])
    torch.testing.assert_close(out.score, torch.tensor([-1.5, 1.5, 1.5, -1.5]))
    torch.testing.assert_close(out.terms['bad'], torch.tensor([2.0, 4.0, 5.0, 1.0]))
    torch.testing.assert_close(out.terms['bad_half'], torch.tensor([1.0, 2.0, 2.5, 0.5]))
    torch.testing.assert_close(out.terms['bad_normalised'], torch.tensor([1.0, -1.0, -1.0, 1.0]))
    assert set(out.maps) == {'good_map', 'bad_map', 'map'}
    torch.testing.assert_close(reward.combine(out.terms, [0, 0, 1, 1]), out.score)


def test_terms_of_two_calls_are_combined_as_one():
    reward, both = WeightedReward({'a': Mean(), 'b': Mean(-3.0)}, {'b': 0.25}), images(0.1, 0.2, 0.6, 0.9)
    parts = [reward(x, groups=[0, 0]).terms for x in (both[:2], both[2:])]
    gathered = {name: torch.cat([part[name] for part in parts]) for name in ('a', 'b')}
    whole = reward(both, groups=[7] * 4).score
    torch.testing.assert_close(reward.combine(gathered, [7] * 4), whole)
    own = reward.combine(parts[1], [7, 7], everywhere=(gathered, [7] * 4))
    assert torch.equal(own, reward.combine(gathered, [7] * 4)[2:])


def test_statistics_by_hand():
    # (0.6 - 0.5) / 0.1 = 1 and -(6 - 4) / 2 = -1, weights 1 and 3; without groups, and whatever else is in the batch
    reward = WeightedReward(
        {'a': Mean(), 'b': Mean(10.0, higher=False)}, {'b': 3.0}, 'statistics', {'a': (0.5, 0.1), 'b': (4.0, 2.0)}
    )
    torch.testing.assert_close(reward(images(0.6)).score, torch.tensor([-2.0]))
    torch.testing.assert_close(reward(images(0.1, 0.6, 0.9)).score[1:2], reward(images(0.6)).score)
    sr = images(0.6).requires_grad_()
    reward(sr).score.sum().backward()
    assert sr.grad.sum().item() == pytest.approx(1 / 0.1 - 3 * 10 / 2)


def test_statistics_are_measured_once():
    reward = WeightedReward(
        {'a': Mean(), 'b': Mean(higher=False)}, normalise='statistics', statistics={'b': (0.0, 1.0)}
    )
    with pytest.raises(RuntimeError, match='mean and sd of a are not measured yet'):
        reward(images(0.1))
    terms = {'a': torch.tensor([1.0, 3.0]), 'b': torch.tensor([5.0, 7.0])}
    reward.measure(terms)
    reward.measure({name: value * 2 for name, value in terms.items()})
    assert reward.statistics == {'a': (2.0, 1.0), 'b': (0.0, 1.0)}
    with pytest.raises(ValueError, match='a needs the finite scores of at least 2 images'):
        reward.measure({'a': torch.tensor([1.0]), 'b': torch.tensor([1.0])})


def test_plain_sum():
    rewards = {'a': Mean(), 'b': Mean(2.0, higher=False)}
    torch.testing.assert_close(WeightedReward(rewards, normalise='none')(images(0.3)).score, torch.tensor([-0.3]))


@pytest.mark.parametrize('how', ['group', 'range'])
def test_a_sample_by_itself_is_scored_by_statistics(how):
    """For logs: whatever else is in the batch. The training score is that of `combine`."""
    reward = WeightedReward({'a': Mean(), 'b': Mean(2.0, higher=False)}, {'b': 0.5}, how)
    assert reward.needs_groups and not WeightedReward({'a': Mean()}, normalise='statistics').needs_groups
    with pytest.raises(
        RuntimeError, match='mean and sd of a are not measured yet; give statistics, or normalise: none'
    ):
        reward(images(0.3))
    measured = images(0.2, 0.4)  # a: 0.3 +- 0.1, b: 0.6 +- 0.2
    terms = reward.terms(measured)
    assert set(terms) == {'a', 'b'}
    reward.measure(terms)
    torch.testing.assert_close(reward(images(0.5)).score, torch.tensor([2.0 - 0.5 * 2.0]))
    same = WeightedReward(dict(reward.rewards.items()), {'b': 0.5}, 'statistics', reward.statistics)
    torch.testing.assert_close(reward(measured).score, same(measured).score)
    assert not torch.equal(reward.combine(terms, [0, 0]), reward.combine(terms))


def test_map_is_the_mean_of_those_that_count():
    rewards = {'a': Mean(), 'b': Mean(), 'against': Mean()}
    reward = WeightedReward(rewards, {'a': 3.0, 'against': -1.0}, 'none')
    reward.rewards['b'].forward = lambda sr, **inputs: RewardOutput(sr.mean((1, 2, 3)), {}, {'map': 1 - sr[:, :1]})
    out = reward(images(0.2))
    torch.testing.assert_close(out.maps['map'], torch.full((1, 1, 2, 2), 0.75 * 0.2 + 0.25 * 0.8))
    assert reward.gives_map and not WeightedReward({'a': Mean()}, {'a': -1.0}).gives_map


def test_kind_is_told_from_the_section():
    rewards = {
        'a': {'type': 'Function', 'function': 'math:sqrt', 'differentiable': True, 'gives_map': True},
        'b': {'type': 'PSNR'},
    }
    section = {'type': 'Weighted', 'rewards': rewards}
    assert reward_kind(section) == RewardKind(True, frozenset({'gt'}), True, True)
    assert reward_kind({**section, 'normalise': 'none', 'weights': {'a': -1.0}}) == RewardKind(True, frozenset({'gt'}))
    assert WeightedReward.uncalibrated(section) == ['a', 'b']
    assert WeightedReward.uncalibrated({**section, 'statistics': {'a': [0, 1]}}) == ['b']
    assert WeightedReward.uncalibrated({**section, 'normalise': 'none'}) == []


def test_a_sum_in_a_sum_is_not_measured():
    inner = {'type': 'Weighted', 'rewards': {'x': {'type': 'Sharpness'}}}
    message = r'rewards.both: a weighted sum inside another needs statistics of its own'
    with pytest.raises(ConfigError, match=message):
        WeightedReward.check({'rewards': {'both': inner}}, '$.reward')
    with pytest.raises(ValueError, match=message):
        WeightedReward({'both': WeightedReward({'x': Mean()})})
    for more in ({'normalise': 'none'}, {'statistics': {'x': [0.5, 2.0]}}):
        WeightedReward.check({'rewards': {'both': {**inner, **more}}}, '$.reward')
    outer = WeightedReward({'both': WeightedReward({'x': Mean()}, statistics={'x': (0.5, 0.1)})}, normalise='none')
    assert outer(images(0.6)).score.item() == pytest.approx(1.0)


def test_what_it_needs_and_whether_it_has_a_gradient():
    reward = WeightedReward({'a': Mean(needs=['gt']), 'b': Mean(needs=['prompt'], differentiable=False)})
    assert reward.needs == {'gt', 'prompt'} and not reward.differentiable
    assert WeightedReward({'a': Mean()}).differentiable


def test_from_yaml():
    section = {
        'type': 'Weighted',
        'rewards': {'fidelity': {'type': 'PSNR', 'y_channel': False}, 'detail': {'type': 'Sharpness'}},
        'weights': {'fidelity': 0.5},
        'normalise': 'statistics',
        'statistics': {'fidelity': [20, '1e1'], 'detail': [0.0, 1.0]},
    }
    reward = build(REWARDS, section, '$.reward')
    assert reward.needs == {'gt'} and reward.weights == {'fidelity': 0.5, 'detail': 1.0}
    # flat images 0.1 apart: 20 dB, the mean; nothing sharp
    assert reward(images(0.5), gt=images(0.6)).score.item() == pytest.approx(0.0, abs=1e-5)
    with pytest.raises(ConfigError, match=r"weights: no reward is called 'fidelty'; did you mean 'fidelity'"):
        build(REWARDS, {**section, 'weights': {'fidelty': 1.0}}, '$.reward')
    inner = {**section['rewards'], 'fidelity': {'type': 'PSNR', 'crop': 1}}
    with pytest.raises(ConfigError, match=r'rewards.fidelity.crop: unknown key'):
        build(REWARDS, {**section, 'rewards': inner}, '$.reward')
    for wrong, message in (
        ({'rewards': {}}, 'rewards: expected at least one'),
        ({'floor': 0.0}, 'floor: expected a number above 0'),
        ({'statistics': {'detail': [0.0, 0.0]}}, 'with sd above 0'),
    ):
        with pytest.raises(ConfigError, match=message):
            build(REWARDS, {**section, **wrong}, '$.reward')


def test_check_builds_nothing_and_names_every_problem():
    sections = {
        'a': {'type': 'PSNRR'},
        'b': {'type': 'PSNR', 'crop': 1},
        'c': {'type': 'PickScore', 'weights': 'none'},
        'd': 3,
    }
    with pytest.raises(ConfigError) as caught:
        WeightedReward.check({'rewards': sections, 'weights': {'e': 1.0}}, '$.reward')
    problems = caught.value.problems
    assert problems[0] == "$.reward: weights: no reward is called 'e'; one of: a, b, c, d"
    assert problems[1].startswith("$.reward.rewards.a.type: no reward named 'PSNRR'; did you mean 'PSNR'")
    assert problems[2].startswith('$.reward.rewards.b.crop: unknown key')
    assert problems[3].startswith('$.reward.rewards.d: expected a section with `type: <reward>`') and len(problems) == 4
    inner = {'type': 'Weighted', 'rewards': {'x': {'type': 'SSIM', 'y': 1}}}
    with pytest.raises(ConfigError, match=r'\$\.reward\.rewards\.both\.rewards\.x\.y: unknown key'):
        WeightedReward.check({'rewards': {'both': inner}}, '$.reward')
    WeightedReward.check({'rewards': {'a': {'type': 'PSNR'}}}, '$.reward')
