"""Sharpness by hand."""

import torch

from finpercep_plugin.rewards.sharpness_reward import SharpnessReward, sharpness


def test_by_hand():
    image = torch.tensor([[[[0.0, 0.5, 0.6], [0.3, 0.4, 0.4]]]])
    # across: 0.5, 0.1 and 0.1, 0.0, mean 0.175; down: 0.3, 0.1, 0.2, mean 0.2
    torch.testing.assert_close(sharpness(image), torch.tensor([0.375]))


def test_rises_with_contrast_and_has_a_gradient():
    sr = torch.rand(2, 3, 8, 8, requires_grad=True)
    score = SharpnessReward()(sr).score
    score.sum().backward()
    assert sr.grad.abs().sum() > 0
    torch.testing.assert_close(SharpnessReward()(0.5 * sr + 0.25).score, 0.5 * score)
