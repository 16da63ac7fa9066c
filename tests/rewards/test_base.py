"""raw_k and max^ against values worked out by hand."""

import pytest
import torch

from finpercep_plugin.rewards.base import luma, raw_reward, robust_max


def test_robust_max_is_the_mean_of_the_top_share():
    values = torch.arange(200.0).flip(0).view(1, 1, 10, 20) / 200
    torch.testing.assert_close(robust_max(values, 0.01), torch.tensor([(199 + 198) / 2 / 200]))
    torch.testing.assert_close(robust_max(values, 1.0), values.mean().reshape(1))


def test_robust_max_takes_one_pixel_at_least():
    values = torch.tensor([[[[0.1, 0.9]]], [[[0.3, 0.2]]]])
    torch.testing.assert_close(robust_max(values, 0.01), torch.tensor([0.9, 0.3]))


@pytest.mark.parametrize('top', [0, -0.1, 1.5])
def test_top_is_a_share(top):
    with pytest.raises(ValueError, match=r'expected a share in \(0, 1\]'):
        robust_max(torch.zeros(1, 1, 2, 2), top)


def test_raw_rewards():
    score = torch.tensor([0.4, 0.6])
    degradation = torch.tensor([[[[0.0, 0.2]]], [[[1.0, 0.5]]]])
    torch.testing.assert_close(raw_reward(score, degradation, stage=0, l1=3.0), score)
    # 2 * 0.4 + 0.5 * (1 - 0.2) = 1.2; 2 * 0.6 + 0.5 * (1 - 1) = 1.2
    for stage in (1, 2):
        raw = raw_reward(score, degradation, stage, l1=2.0, l2=0.5, top=0.01)
        torch.testing.assert_close(raw, torch.tensor([1.2, 1.2]))


def test_gradient_of_the_map_term_goes_to_the_worst_pixels():
    degradation = torch.tensor([[[[0.1, 0.9, 0.7, 0.2]]]], requires_grad=True)
    raw_reward(torch.zeros(1), degradation, stage=2, l2=4.0, top=0.5).sum().backward()
    torch.testing.assert_close(degradation.grad, torch.tensor([[[[0.0, -2.0, -2.0, 0.0]]]]))


def test_luma_of_primaries():
    # BT.601: 16 + 65.481 R + 128.553 G + 24.966 B
    primaries = torch.eye(3).view(1, 3, 1, 3)
    torch.testing.assert_close(luma(primaries).flatten() * 255, torch.tensor([81.481, 144.553, 40.966]))
