"""Normalisation within groups and the weighted sum, by hand."""

import pytest
import torch
from torch import nn

from finpercep_plugin.config import ConfigError, build
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.weighted_reward import WeightedReward, normalise_groups


class Mean(nn.Module):
    """The mean of each image times `factor`."""

    def __init__(self, factor=1.0, higher=True, needs=(), differentiable=True):
        super().__init__()
        self.factor, self.higher_is_better = factor, higher
        self.needs, self.differentiable = frozenset(needs), differentiable

    def forward(self, sr, lq=None, gt=None, prompt=None):
        score = self.factor * sr.mean(dim=(1, 2, 3))
        return RewardOutput(score, {'half': score / 2}, {'map': sr[:, :1]})


def images(*means: float) -> torch.Tensor:
    return torch.tensor(means).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()


def test_groups_by_hand():
    values, groups = torch.tensor([1.0, 10.0, 2.0, 30.0, 6.0]), torch.tensor([4, 1, 4, 1, 4])
    # group 4: 1, 2, 6: mean 3, variance (4 + 1 + 9) / 3; group 1: 10, 30
    sd = (14 / 3) ** 0.5
    torch.testing.assert_close(normalise_groups(values, groups), torch.tensor([-2 / sd, -1, -1 / sd, 1, 3 / sd]))
    torch.testing.assert_close(normalise_groups(values, groups, by='range'), torch.tensor([0, 0, 0.2, 1, 1]))
    with pytest.raises(ValueError, match='a group id for each of 5 samples, got 2'):
        normalise_groups(values, [0, 1])


@pytest.mark.parametrize('by, tie', [('spread', 0.0), ('range', 0.5)])
def test_ties_and_single_samples_give_no_signal(by, tie):
    values = torch.tensor([2.0, 2.0 + 1e-5, 7.0], requires_grad=True)
    out = normalise_groups(values, [0, 0, 1], by)
    assert out.tolist() == [tie, tie, tie] and not out.requires_grad


def test_a_group_depends_on_itself_alone():
    generator = torch.Generator().manual_seed(0)
    values, groups = torch.randn(40, generator=generator), torch.arange(40) % 5
    whole = normalise_groups(values, groups)
    order = torch.randperm(40, generator=generator)
    torch.testing.assert_close(normalise_groups(values[order], groups[order]), whole[order])
    torch.testing.assert_close(normalise_groups(values[groups == 3], [9] * 8), whole[groups == 3])


def test_gradient_is_that_of_the_reward_over_its_spread():
    """mean and sd count as constants; if not, the gradient of the sum over a group would be 0."""
    values = torch.tensor([1.0, 3.0], requires_grad=True)
    normalise_groups(values, [0, 0]).sum().backward()
    assert values.grad.tolist() == [1.0, 1.0]  # 1 / sd


def test_sum_by_hand():
    """Means 0.2, 0.4 | 0.5, 0.1 of two groups: z = -1, 1 | 1, -1; of the negated one 1, -1 | -1, 1. 2 z - 0.5 z."""
    reward = WeightedReward({'good': Mean(), 'bad': Mean(10.0, higher=False)}, {'good': 2.0, 'bad': 0.5})
    assert reward.higher_is_better
    out = reward(images(0.2, 0.4, 0.5, 0.1), groups=[0, 0, 1, 1])
    torch.testing.assert_close(out.score, torch.tensor([-1.5, 1.5, 1.5, -1.5]))
    torch.testing.assert_close(out.terms['bad'], torch.tensor([2.0, 4.0, 5.0, 1.0]))
    torch.testing.assert_close(out.terms['bad_half'], torch.tensor([1.0, 2.0, 2.5, 0.5]))
    torch.testing.assert_close(out.terms['bad_normalised'], torch.tensor([1.0, -1.0, -1.0, 1.0]))
    assert set(out.maps) == {'good_map', 'bad_map'}
    torch.testing.assert_close(reward.combine(out.terms, [0, 0, 1, 1]), out.score)


def test_terms_of_two_calls_are_combined_as_one():
    reward, both = WeightedReward({'a': Mean(), 'b': Mean(-3.0)}, {'b': 0.25}), images(0.1, 0.2, 0.6, 0.9)
    parts = [reward(x, groups=[0, 0]).terms for x in (both[:2], both[2:])]
    gathered = {name: torch.cat([part[name] for part in parts]) for name in ('a', 'b')}
    torch.testing.assert_close(reward.combine(gathered, [7] * 4), reward(both, groups=[7] * 4).score)


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


def test_plain_sum_and_missing_groups():
    rewards = {'a': Mean(), 'b': Mean(2.0, higher=False)}
    torch.testing.assert_close(WeightedReward(rewards, normalise='none')(images(0.3)).score, torch.tensor([-0.3]))
    for how in ('group', 'range'):
        with pytest.raises(ValueError, match=f"normalise '{how}': pass the group id of each sample as groups="):
            WeightedReward(rewards, normalise=how)(images(0.3))


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
        'c': {'type': 'PyIQA', 'metric': 'none'},
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
