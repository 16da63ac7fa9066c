"""Advantages, KL and the clipped objective by hand; gradients by finite differences."""

import math

import pytest
import torch

from finpercep_plugin.algorithms.grpo_objective import default_clip, gaussian_kl, group_advantage, grpo_objective
from finpercep_plugin.diffusion.regions import region_shares
from finpercep_plugin.diffusion.steps import gaussian_log_prob

REWARDS, IDS = torch.tensor([1.0, 4.0, 3.0, 2.0, 4.0]), torch.tensor([9, 2, 9, 2, 9])


def test_advantage_by_hand():
    # image 9: 1, 3, 4, mean 8/3, variance (25 + 1 + 16) / 27; image 2: 4, 2, mean 3, std 1
    advantage, seen = group_advantage(REWARDS, IDS, floor=0.5)
    nine = [(value - 8 / 3) / (math.sqrt(42 / 27) + 0.5) for value in (1, 3, 4)]
    assert advantage.tolist() == pytest.approx([nine[0], 1 / 1.5, nine[1], -1 / 1.5, nine[2]])
    assert seen['zero_std_groups'] == 0 and seen['group_min'] == 2


def test_advantage_over_the_batch():
    # deviation of all five: mean 2.8, variance (3.24 + 1.44 + 0.04 + 0.64 + 1.44) / 5 = 1.36
    advantage, _ = group_advantage(REWARDS, IDS, std='batch', floor=0.0)
    assert (advantage * math.sqrt(1.36)).tolist() == pytest.approx([-5 / 3, 1, 1 / 3, -1, 4 / 3], rel=1e-5)


def test_advantage_of_groups_that_span_ranks():
    whole, _ = group_advantage(REWARDS, IDS)
    parts = [group_advantage(REWARDS[rows], IDS[rows], (REWARDS, IDS))[0] for rows in ([0, 1], [2, 3, 4])]
    torch.testing.assert_close(torch.cat(parts), whole)
    alone, _ = group_advantage(REWARDS[:2], IDS[:2])
    assert alone.tolist() == [0, 0]  # a group of one says nothing


def test_advantage_is_floored_and_clipped():
    rewards, ids = torch.tensor([0.3, 0.3, 0.3, 0.1, 0.1 + 1e-6] + [0.0] * 99 + [1.0]), [0] * 3 + [1] * 2 + [2] * 100
    advantage, seen = group_advantage(rewards, torch.tensor(ids))
    assert advantage[:3].tolist() == [0, 0, 0] and seen['zero_std_groups'].item() == pytest.approx(1 / 3)
    assert advantage[4].item() == pytest.approx(5e-7 / (5e-7 + 1e-4), rel=0.05)
    assert advantage.max() == 5 and advantage[-2].item() == pytest.approx(-0.01 / (math.sqrt(0.0099) + 1e-4), rel=1e-4)
    assert group_advantage(rewards, torch.tensor(ids), clip=2.0)[0].max() == 2


def test_kl_is_that_of_torch():
    rng = torch.Generator().manual_seed(0)
    mean, other = torch.randn(2, 3, 4, 5, generator=rng), torch.randn(2, 3, 4, 5, generator=rng)
    std = torch.tensor([0.3, 2.0]).reshape(2, 1, 1, 1)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(
        normal(mean, std.expand_as(mean)), normal(other, std.expand_as(mean))
    ).flatten(1).mean(1)  # fmt: skip
    torch.testing.assert_close(gaussian_kl(mean, other, std), theirs)


def test_objective_by_hand():
    # ratios 1.1, 0.8, 1.3, 0.7 with advantages 1, -1, 2, -2 and c = 0.2: 1.1, -0.8, 2.4, -1.6
    ratios, advantage = torch.tensor([1.1, 0.8, 1.3, 0.7]), torch.tensor([1.0, -1.0, 2.0, -2.0])
    kl = torch.tensor([0.1, 0.2, 0.3, 0.4])
    loss, seen = grpo_objective(ratios.log() - 5, torch.full((4,), -5.0), advantage, 0.2001, kl, 0.04)
    assert loss.item() == pytest.approx(-(1.1 - 0.8 + 2.4 - 1.6) / 4 + 0.01, abs=1e-3)
    approx_kl = sum(math.log(r) ** 2 for r in ratios.tolist()) / 8
    expected = {'ratio': 0.975, 'ratio_away': 0.3, 'clipped': 0.5, 'approx_kl': approx_kl, 'kl': 0.25, 'l_kl': 0.01}
    assert {name: seen[name].item() for name in expected} == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx((seen['l_policy'] + seen['l_kl']).item())
    assert not any(value.requires_grad for value in seen.values())


def test_what_is_clipped_gets_no_gradient():
    log_prob = torch.tensor([0.3, 0.3, -0.3, -0.3, 0.0], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    loss, _ = grpo_objective(log_prob, torch.zeros(5), advantage, clip=0.2)
    loss.backward()
    expected = [0, math.exp(0.3) / 5, -math.exp(-0.3) / 5, 0, -0.2]
    assert log_prob.grad.tolist() == pytest.approx(expected)


def test_gradient_by_finite_differences():
    """A Gaussian policy of mean theta x: samples that its likelihood is raised of pull theta to them."""
    rng = torch.Generator().manual_seed(1)
    x, sample = torch.rand(4, 3, generator=rng), torch.randn(4, 3, generator=rng)
    advantage, std = torch.tensor([1.0, -0.5, 0.3, 2.0]), torch.tensor(0.7)
    old = gaussian_log_prob(sample, 0.1 * x, std)

    def loss(theta):
        log_prob, kl = gaussian_log_prob(sample, theta * x, std), gaussian_kl(theta * x, 0.1 * x, std)
        return grpo_objective(log_prob, old, advantage, 0.5, kl, 0.3)[0]

    theta, h = torch.tensor(0.25, requires_grad=True), 1e-2
    loss(theta).backward()
    expected = (loss(torch.tensor(0.25 + h)) - loss(torch.tensor(0.25 - h))).item() / (2 * h)
    assert theta.grad.item() == pytest.approx(expected, rel=1e-3)


def test_objective_of_regions_by_hand():
    # one sample, regions of 4, 2, 2 and 1 cells: shares 16/9, 8/9, 8/9, 4/9; ratios 1.1, 1.3, 0.7, 1; clip 0.2
    ratios, advantage = torch.tensor([[[1.1, 1.3], [0.7, 1.0]]]), torch.tensor([[[1.0, 2.0], [-1.0, 0.5]]])
    shares = region_shares(3, 3, 2)
    loss, seen = grpo_objective(ratios.log(), torch.zeros(1, 2, 2), advantage, 0.2, shares=shares)
    gains = [1.1, 1.2 * 2, -0.8, 0.5]
    assert loss.item() == pytest.approx(-sum(g * s for g, s in zip(gains, (4, 2, 2, 1))) / 9, rel=1e-5)
    assert seen['clipped'] == 0.5 and seen['ratio'].item() == pytest.approx(1.025)
    whole, regions = (
        grpo_objective(ratios.log()[0, 0], torch.zeros(2), advantage[0, 0], 0.2),
        grpo_objective(ratios.log()[0, 0].view(2, 1, 1), torch.zeros(2, 1, 1), advantage[0, 0].view(2, 1, 1), 0.2),
    )
    assert torch.equal(whole[0], regions[0]) and whole[1] == regions[1]


def test_gradient_of_regions_by_finite_differences(in_float64):
    """As above, by regions that do not fit; one of the ratios is clipped, and its region pulls at nothing."""
    rng = torch.Generator().manual_seed(4)
    x, sample = torch.rand(4, 2, 5, 7, generator=rng), torch.randn(4, 2, 5, 7, generator=rng)
    advantage, std = torch.randn(4, 3, 4, generator=rng), torch.tensor(0.7)
    shares = region_shares(5, 7, 2)
    old = gaussian_log_prob(sample, 0.1 * x, std, 2)

    def loss(theta):
        log_prob, kl = gaussian_log_prob(sample, theta * x, std, 2), gaussian_kl(theta * x, 0.1 * x, std)
        value, seen = grpo_objective(log_prob, old, advantage, 0.15, kl, 0.3, shares)
        assert 0 < seen['clipped'] < 0.5
        return value

    theta, h = torch.tensor(0.25, requires_grad=True), 1e-6
    loss(theta).backward()
    expected = (loss(torch.tensor(0.25 + h)) - loss(torch.tensor(0.25 - h))).item() / (2 * h)
    print(f'gradient {theta.grad.item():.10f}, by differences {expected:.10f}')
    assert theta.grad.item() == pytest.approx(expected, rel=1e-6) and abs(expected) > 1e-3


def test_clip_range_grows_as_dimensions_fall():
    assert default_clip(65536) == 1e-4 and default_clip(65536 // 100) == pytest.approx(1e-3, rel=1e-3)
