"""Advantages of regions: from maps, mixed with those of the whole, over ranks; and what they do to a gradient's noise."""

import logging
from types import SimpleNamespace

import pytest
import torch

from finpercep_plugin.algorithms.advantages import Advantages, region_rewards
from finpercep_plugin.algorithms.grpo_objective import group_advantage, grpo_objective
from finpercep_plugin.diffusion.steps import gaussian_log_prob
from finpercep_plugin.rewards.base import RewardOutput


def alone(values, ids):
    return values, ids


def outputs_of(count=6, size=(8, 8), seed=0, sizes=(4, 2)):
    """Scores and maps of `count` samples in batches, of two images."""
    rng = torch.Generator().manual_seed(seed)
    score, place = torch.rand(count, generator=rng), torch.rand(count, 1, *size, generator=rng)
    parts = zip(score.split(sizes), place.split(sizes))
    return [RewardOutput(s, {}, {'map': m}) for s, m in parts], torch.tensor([3, 3, 3, 5, 5, 5][:count])


def test_rewards_of_regions_by_hand():
    degradation = torch.zeros(1, 1, 4, 6)
    degradation[..., :2, :2], degradation[..., 3, 4] = 0.5, 0.8
    rewards = region_rewards(degradation, 2, (2, 3))
    torch.testing.assert_close(rewards, torch.tensor([[[0.5, 1.0, 1.0], [1.0, 1.0, 0.8]]]))
    odd = region_rewards(degradation[..., :3, :5], 2, (2, 4))  # cut pictures have cut regions, padded latents more
    torch.testing.assert_close(odd, torch.tensor([[[0.5, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]]))


@pytest.mark.parametrize(
    ('stride', 'latent', 'picture'), [(8, (6, 4), (41, 32)), (4, (5, 3), (20, 12)), (1, (9, 6), (9, 6))]
)
def test_regions_of_maps_and_latents_are_the_same_places(stride, latent, picture):
    """A map that is 1 under one latent cell lowers the reward of the region of that cell, and of no other."""
    from finpercep_plugin.diffusion.regions import region_mean

    for row in range(latent[0]):
        for column in range(latent[1]):
            cells, degradation = torch.zeros(1, 1, *latent), torch.zeros(1, 1, *picture)
            cells[..., row, column] = 1
            degradation[..., row * stride : (row + 1) * stride, column * stride : (column + 1) * stride] = 1
            seen = region_mean(cells, 2)
            rewards = region_rewards(degradation, 2 * stride, seen.shape[1:])
            assert torch.equal(rewards < 1, seen > 0)


def test_advantage_by_place_by_hand():
    # place 0: 1, 3 | place 1: 2, 2 | place 2: 0, 4: means 2, 2, 2, variances 1, 0, 4, root of their mean sqrt(5 / 3)
    rewards = torch.tensor([[[1.0, 2.0, 0.0]], [[3.0, 2.0, 4.0]]])
    advantage, seen = group_advantage(rewards, torch.tensor([8, 8]), floor=0.5)
    scale = (5 / 3) ** 0.5 + 0.5
    expected = [[-1 / scale, 0, -2 / scale], [1 / scale, 0, 2 / scale]]
    torch.testing.assert_close(advantage[:, 0], torch.tensor(expected))
    assert seen['zero_std_groups'] == 0 and seen['group_min'] == 2
    # over the batch, with another image: each place's own variance over all four
    more, ids = torch.cat([rewards, torch.tensor([[[7.0, 1.0, 0.0]]] * 2)]), torch.tensor([8, 8, 2, 2])
    advantage, seen = group_advantage(more, ids, std='batch', floor=0.0)
    scale = ((6.75 + 0.25 + 3) / 3) ** 0.5
    torch.testing.assert_close(advantage[:2, 0], torch.tensor([[-1.0, 0, -2], [1, 0, 2]]) / scale)
    assert not advantage[2:].any() and seen['zero_std_groups'] == 0.5
    # a place where all are equal has exactly none, though their mean is rounded
    ties = torch.tensor([[[0.1, 1.0]], [[0.1, 2.0]], [[0.1, 6.0]]], dtype=torch.float64)
    assert not group_advantage(ties, torch.zeros(3).long())[0][:, 0, 0].any()


@pytest.mark.parametrize('std', ['group', 'batch'])
def test_one_region_is_the_whole_and_many_have_its_scale(std):
    rng = torch.Generator().manual_seed(3)
    rewards, ids = torch.randn(32, 4, 4, generator=rng), torch.arange(32) % 4
    whole, _ = group_advantage(rewards[:, 0, 0], ids, std=std)
    assert torch.equal(group_advantage(rewards[:, :1, :1], ids, std=std)[0].view(-1), whole)
    regions, _ = group_advantage(rewards, ids, std=std)
    for advantage in (whole, regions):
        assert advantage.square().mean().sqrt().item() == pytest.approx(1, abs=0.08)


def test_mix_by_hand_and_none():
    outputs, ids = outputs_of()
    for dense in (0.25, 1.0):
        mixed, seen = Advantages('group', 5.0, dense, 4)(None, outputs, ids, alone, (2, 2))
        score, place = (
            torch.cat([getattr(o, n) if n == 'score' else o.maps['map'] for o in outputs]) for n in ('score', 'map')
        )
        whole, regions = group_advantage(score, ids)[0], group_advantage(region_rewards(place, 4, (2, 2)), ids)[0]
        torch.testing.assert_close(mixed, (1 - dense) * whole.view(-1, 1, 1) + dense * regions)
    none, _ = Advantages('group', 5.0, 0.0, 4)(None, outputs, ids, alone, ())
    assert torch.equal(none, whole)


def test_over_ranks():
    """A group in two processes: each gets its part of what one process would have."""
    outputs, ids = outputs_of(sizes=(2, 4))
    advantages = Advantages('group', 5.0, 0.5, 4)
    whole, seen = advantages(None, outputs, ids, alone, (2, 2))
    own = [(outputs[:1], ids[:2]), (outputs[1:], ids[2:])]
    shares = [[], []]
    for rank, (mine, names) in enumerate(own):
        advantages(None, mine, names, lambda v, i, r=rank: (shares[r].append((v, i)), (v, i))[1], (2, 2))
    everywhere = [tuple(torch.cat(both) for both in zip(*calls)) for calls in zip(*shares)]
    assert len(everywhere) == 2 and everywhere[1][0].shape == (6, 2, 2)
    parts = []
    for mine, names in own:
        answers = iter(everywhere)
        part, also = advantages(None, mine, names, lambda v, i, a=answers: next(a), (2, 2))
        assert also['group_min'] == seen['group_min'] == 3
        parts.append(part)
    assert torch.equal(torch.cat(parts), whole)


def test_without_a_map_the_whole_counts(caplog):
    outputs, ids = outputs_of()
    expected = group_advantage(torch.cat([o.score for o in outputs]), ids)[0]
    bare, advantages = [RewardOutput(o.score) for o in outputs], Advantages('group', 5.0, 0.5, 4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            advantage, _ = advantages(None, bare, ids, alone, (2, 2))
    assert torch.equal(advantage, expected.view(-1, 1, 1))
    assert [r.message for r in caplog.records] == [
        'FlowGRPO: dense = 0.5, but this reward gives no map: advantages are the same everywhere'
    ]


def test_side_in_latent_cells():
    assert Advantages('group', 5.0, 0.5, 32).side(SimpleNamespace(stride=8)) == 4
    assert Advantages('group', 5.0, 0.0, 30).side(SimpleNamespace(stride=8)) is None
    with pytest.raises(ValueError, match='region_size must be a multiple of 8, the pixels of a latent cell, got 30'):
        Advantages('group', 5.0, 0.5, 30).side(SimpleNamespace(stride=8))


def test_the_noise_of_other_places_is_left_out():
    """A policy N(theta, 1) over 8 x 8 cells, the reward of each cell -(x - 1)^2: the gradient that is wanted is the same
    everywhere. Signal to noise, |mean|^2 / variance over 200 estimates, rises as the 16 regions do."""
    theta, rng = torch.zeros(1, 1, 8, 8, requires_grad=True), torch.Generator().manual_seed(0)
    gradients = {'whole': [], 'regions': []}
    for _ in range(200):
        x = torch.randn(16, 1, 8, 8, generator=rng)
        degradation = ((x - 1) ** 2 / 20).clamp(max=1)
        output, ids = RewardOutput(1 - degradation.mean((1, 2, 3)), {}, {'map': degradation}), torch.zeros(16).long()
        for name, dense, side in (('whole', 0.0, None), ('regions', 1.0, 2)):
            advantage, _ = Advantages('group', 5.0, dense, 2)(None, [output], ids, alone, (4, 4))
            log_prob = gaussian_log_prob(x, theta.expand_as(x), torch.tensor(1.0), side)
            loss, _ = grpo_objective(log_prob, log_prob.detach(), advantage, 0.1)
            gradients[name].append(torch.autograd.grad(loss, theta)[0].flatten())
    ratio, spread = {}, {}
    for name, estimates in gradients.items():
        estimates = torch.stack(estimates)
        variance, mean = estimates.var(0).sum(), estimates.mean(0)
        ratio[name] = ((mean.square().sum() - variance / len(estimates)) / variance).item()
        spread[name] = variance.sqrt().item()
        assert (mean < 0).all()
    print(f'signal to noise: whole {ratio["whole"]:.4f}, regions {ratio["regions"]:.4f}; sd {spread}')
    assert 10 < ratio['regions'] / ratio['whole'] < 25
    assert spread['regions'] == pytest.approx(spread['whole'], rel=0.25)
