"""Rewards that score the samples of a group against each other: in one process and in several, by DPO and Flow-GRPO."""

import math

import pytest
import torch
from torch import nn

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.algorithms.dpo import DPO  # noqa: E402
from finpercep_plugin.algorithms.group_scores import group_scores  # noqa: E402
from finpercep_plugin.algorithms.grpo import FlowGRPO  # noqa: E402
from finpercep_plugin.curriculum.statistics import ScoreStatistics  # noqa: E402
from finpercep_plugin.rewards.base import RewardOutput  # noqa: E402
from finpercep_plugin.rewards.normalised import NormalisedReward  # noqa: E402
from finpercep_plugin.rewards.weighted_reward import WeightedReward  # noqa: E402


class Part(nn.Module):
    differentiable, needs, higher_is_better = True, frozenset(), True

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, sr, lq=None, gt=None, prompt=None):
        return RewardOutput(self.function(sr), {'twice': 2 * self.function(sr)}, {'map': (sr[:, :1] - 0.5).abs()})


def weighted(how='group'):
    """Brightness on a small scale and contrast on a large one, measured on outputs around 0.5."""
    parts = {'bright': Part(lambda sr: sr.mean((1, 2, 3))), 'contrast': Part(lambda sr: 100 * sr.std((1, 2, 3)))}
    reward = NormalisedReward(WeightedReward(parts, {'contrast': 0.5}, how), ScoreStatistics())
    outputs = 0.5 + 0.1 * torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(8))
    reward.measure(reward.terms(outputs))
    return reward


def unit(values):
    return (values - values.mean()) / values.std(correction=0)


def ranged(values):
    return (values - values.min()) / (values.max() - values.min())


def sums(terms, ids, scaled=unit):
    """By hand: each part scaled within each image, 1 and 0.5 of them."""
    result = torch.zeros(len(ids))
    for image in ids.unique():
        inside = ids == image
        result[inside] = scaled(terms['bright'][inside]) + 0.5 * scaled(terms['contrast'][inside])
    return result


def test_of_several_processes_is_that_of_one(tiny):
    """Image 4 is in both; batches of different sizes."""
    reward, sr = weighted(), torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([4, 4, 9, 9, 9, 4, 4, 4, 7, 7, 7, 7])
    outputs = [reward(part) for part in sr.split([5, 7])]
    scores, (everywhere, all_ids) = group_scores(reward, outputs, ids, tiny.alone)
    assert torch.equal(everywhere, scores) and torch.equal(all_ids, ids)
    terms = {name: torch.cat([output.terms[name] for output in outputs]) for name in ('bright', 'contrast')}
    torch.testing.assert_close(scores, sums(terms, ids), atol=1e-4, rtol=1e-4)

    def process(part):
        return lambda exchange: group_scores(reward, [reward(sr[part])], ids[part], exchange)

    both = tiny.ranks([process(slice(0, 6)), process(slice(6, 12))])
    torch.testing.assert_close(torch.cat([own for own, _ in both]), scores, atol=1e-5, rtol=1e-5)
    for _, (gathered, gathered_ids) in both:
        torch.testing.assert_close(gathered, scores, atol=1e-5, rtol=1e-5)
        assert torch.equal(gathered_ids, ids)
    assert torch.equal(torch.cat([own for own, _ in both]), both[0][1][0])


def test_other_rewards_are_not_gathered():
    def nobody(values, ids):
        raise AssertionError('a collective call that other processes may not make')

    ids, outputs = torch.tensor([1, 1]), [RewardOutput(torch.tensor([0.5])), RewardOutput(torch.tensor([2.0]))]
    for reward in (None, weighted('statistics')):
        scores, everywhere = group_scores(reward, outputs, ids, nobody)
        assert scores.tolist() == [0.5, 2.0] and everywhere is None


def make(tiny):
    generator = tiny.make('eps')
    generator.trainable('all')
    return generator


class Watched(DPO):
    """Keeps the pairs that it learns from, and what it was told of all samples."""

    def pair_updates(self, generator, lq, pairs, *rest, **more):
        self.pairs = pairs
        return super().pair_updates(generator, lq, pairs, *rest, **more)

    def _sample(self, *rest):
        latents, self.outputs = super()._sample(*rest)
        return latents, self.outputs


@pytest.mark.parametrize('how', ['group', 'range'])
def test_dpo_pairs_are_of_the_combined_score(tiny, how):
    """Undecided at the start; pairs are those of the sum by hand, which samples by themselves would pair otherwise."""
    (lq, gt), kept = tiny.data(), {}
    for name in (how, 'statistics'):
        kept[name] = algorithm = Watched(members=6, best=1, gap_power=1.0, sample_batch=5)
        ((total, seen, _),) = tiny.run(algorithm, make(tiny), lq, gt, reward=weighted(name))
        assert all(d['implicit_accuracy'] == 0.5 and d['margin'] == 0 for d in seen)
        assert total == pytest.approx(math.log(2), rel=1e-5)
        alone = torch.cat([output.score for output in algorithm.outputs])
        assert seen[0]['reward'].item() == pytest.approx(alone.mean().item())  # logs stay comparable over iterations
    terms = {name: torch.cat([o.terms[name] for o in kept[how].outputs]) for name in ('bright', 'contrast')}
    ids = torch.arange(4).repeat_interleave(6)
    scores = sums(terms, ids, unit if how == 'group' else ranged).split(6)
    expected = [(int(score.argmax()), int(score.argmin())) for score in scores]
    assert [key[1:] for key in kept[how].pairs.keys] == expected
    gaps = torch.stack([score.max() - score.min() for score in scores])
    torch.testing.assert_close(kept[how].pairs.gap, gaps, atol=1e-4, rtol=0)
    assert [key[1:] for key in kept['statistics'].pairs.keys] != expected


def test_dpo_of_several_processes(tiny):
    (lq, gt), reward = tiny.data(), weighted()

    def process(rows):
        algorithm = DPO(members=4, best=1, gap_power=1.0, beta=50.0)
        return lambda exchange: tiny.run(
            algorithm, make(tiny), lq[rows], gt[rows], 1, [10 + i for i in rows], reward, exchange
        )[0]

    whole, parts = process([0, 1, 2, 3])(tiny.alone), tiny.ranks([process([0, 1]), process([2, 3])])
    assert (parts[0][0] + parts[1][0]) / 2 == pytest.approx(whole[0], rel=1e-5)
    for name, value in whole[2].items():
        torch.testing.assert_close((parts[0][2][name] + parts[1][2][name]) / 2, value, atol=1e-5, rtol=2e-3)


@pytest.mark.parametrize('dense', [0.0, 0.5])
def test_grpo_of_several_processes(tiny, dense):
    """An image in each, and groups that span both: on-policy, ratio 1, gradients those of one process."""
    (lq, gt), reward = tiny.data(2), weighted()

    def process(rows, group=4, first=0):
        algorithm = FlowGRPO(group=group, kl_weight=0.0, micro_batch=3, dense=dense, region_size=4)
        algorithm.first_member = first
        return lambda exchange: tiny.run(
            algorithm, make(tiny), lq[rows], gt[rows], 1, [10 + i for i in rows], reward, exchange
        )[0]

    whole = process([0, 1])(tiny.alone)
    assert all(d['ratio'] == 1 and d['ratio_away'] == 0 for d in whole[1]) and whole[1][0]['group_min'] == 4
    for processes in ([process([0]), process([1])], [process([0, 1], 2), process([0, 1], 2, 2)]):
        parts = tiny.ranks(processes)
        assert parts[0][1][0]['group_min'] == 4
        assert (parts[0][0] + parts[1][0]) / 2 == pytest.approx(whole[0], abs=1e-5)
        for name, value in whole[2].items():
            torch.testing.assert_close((parts[0][2][name] + parts[1][2][name]) / 2, value, atol=1e-5, rtol=5e-3)
