"""The objective of Diffusion-DPO by hand, its gradient by finite differences, ties."""

import math

import pytest
import torch

from finpercep_plugin.algorithms.dpo_objective import dpo_objective


def test_by_hand():
    # changes: winner -0.1, +0.2; loser +0.1, +0.1; margins -5 (-0.2) = 1 and -5 (0.1) = -0.5 at beta = 10
    errors = torch.tensor([[0.4, 0.7], [0.6, 0.5], [0.5, 0.5], [0.5, 0.4]], requires_grad=True)
    loss, seen = dpo_objective(*errors, beta=10.0, weights=torch.tensor([2.0, 1.0]))
    expected = [2 * math.log(1 + math.exp(-1)), math.log(1 + math.exp(0.5))]
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)
    assert {name: round(value.item(), 4) for name, value in seen.items()} == {
        'implicit_accuracy': 0.5,
        'margin': 0.25,
        'error_winner': 0.55,
        'error_loser': 0.55,
        'error_winner_change': 0.05,
        'error_loser_change': 0.1,
    }
    assert not any(value.requires_grad for value in seen.values())


def test_mean_of_the_losses_not_loss_of_the_mean():
    zero = torch.zeros(2)
    loss, _ = dpo_objective(torch.tensor([-0.4, 0.4]), zero, zero, zero, beta=10.0)
    assert loss.mean().item() == pytest.approx(math.log(1 + math.exp(-2)) / 2 + math.log(1 + math.exp(2)) / 2)
    assert loss.mean().item() > math.log(2)


def test_gradient_by_finite_differences():
    """With respect to a parameter that both errors depend on: e = (theta - target)^2."""
    targets, reference = torch.tensor([[0.3, -0.2], [0.9, 0.4]]), torch.tensor([[0.2, 0.1], [0.5, 0.3]])

    def loss(theta):
        errors = (theta - targets) ** 2
        return dpo_objective(errors[0], errors[1], reference[0], reference[1], 3.0)[0].mean()

    theta = torch.tensor(0.25, requires_grad=True)
    loss(theta).backward()
    h = 1e-2
    expected = (loss(torch.tensor(0.25 + h)) - loss(torch.tensor(0.25 - h))).item() / (2 * h)
    assert theta.grad.item() == pytest.approx(expected, rel=1e-3)
    # and by hand: sum over pairs of -sigmoid(-margin) dmargin / 2, dmargin = -beta (t_l - t_w)
    margins = -1.5 * ((0.25 - targets[0]) ** 2 - reference[0] - (0.25 - targets[1]) ** 2 + reference[1])
    by_hand = (torch.sigmoid(-margins) * 3.0 * (targets[1] - targets[0])).mean()
    assert theta.grad.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_ties_are_half():
    same = torch.full((3,), 0.4)
    loss, seen = dpo_objective(same, same, same, same, beta=5000.0)
    assert seen['implicit_accuracy'] == 0.5 and seen['margin'] == 0
    assert loss.tolist() == pytest.approx([math.log(2)] * 3)
    rounded = dpo_objective(same + 1e-7, same, same, same, beta=2000.0)[1]
    assert rounded['implicit_accuracy'] == 0.5
