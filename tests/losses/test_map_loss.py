"""L_map and its Dice term against values worked out by hand."""

import pytest
import torch

from finpercep_plugin.losses.map_loss import FinPercepMapLoss, map_loss, soft_dice


def maps(*rows):
    """(B, 1, 1, W) from rows of numbers."""
    return torch.tensor(rows)[:, None, None, :]


def test_is_the_mean_absolute_difference():
    # sample 1: (0.1 + 0.4) / 2 = 0.25; sample 2: (0 + 0.3) / 2 = 0.15; mean 0.2
    loss = map_loss(maps([0.1, 0.6], [0.5, 0.3]), maps([0.0, 1.0], [0.5, 0.0]))
    torch.testing.assert_close(loss, torch.tensor(0.2))


def test_weights_average_to_one_over_each_sample():
    # sample 1: weights 3, 1, 1, 1 -> mean 1.5 -> 2, 2/3, 2/3, 2/3; errors 0.5, 0.3, 0, 0: (1 + 0.2) / 4 = 0.3
    # sample 2 is clean: weights 1; errors 0.4, 0, 0, 0: 0.1
    pred, target = maps([0.5, 0.3, 0.0, 0.0], [0.4, 0.0, 0.0, 0.0]), maps([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(map_loss(pred, target, 3, reduction='none'), torch.tensor([0.3, 0.1]))


def test_dice_by_hand():
    # 2 * (0.5 * 1) / (0.25 + 0.04 + 1) = 1 / 1.29
    torch.testing.assert_close(soft_dice(maps([0.5, 0.2]), maps([1.0, 0.0]), eps=0), torch.tensor([1 - 1 / 1.29]))


def test_dice_is_least_at_the_true_soft_map():
    target = maps([0.3, 0.7, 0.0]).requires_grad_(False)
    pred = target.clone().requires_grad_()
    loss = soft_dice(pred, target)
    loss.sum().backward()
    assert abs(loss.item()) < 1e-5 and float(pred.grad.abs().max()) < 1e-5


def test_a_clean_sample_has_no_dice_term():
    pred, target = maps([0.2, 0.4], [0.5, 0.2]), maps([0.0, 0.0], [1.0, 0.0])
    with_dice = map_loss(pred, target, dice_weight=2.0, reduction='none')
    without = map_loss(pred, target, reduction='none')
    torch.testing.assert_close(with_dice - without, torch.tensor([0.0, 2 * (1 - 1 / 1.29)]))


def test_halves_of_a_batch_average_to_the_whole():
    pred, target = torch.rand(4, 1, 6, 6), torch.rand(4, 1, 6, 6).sub(0.5).relu()
    target[0] = 0  # different shares of degraded pixels
    criterion = FinPercepMapLoss(0.7, positive_weight=5.0, dice_weight=0.5)
    halves = (criterion(pred[:2], target[:2]) + criterion(pred[2:], target[2:])) / 2
    torch.testing.assert_close(criterion(pred, target), halves)


def test_loss_weight_and_gradient():
    pred, target = maps([0.5, 0.5]).requires_grad_(), maps([1.0, 0.0])
    loss = FinPercepMapLoss(loss_weight=4.0)(pred, target)
    loss.backward()
    assert loss.item() == pytest.approx(2.0)
    torch.testing.assert_close(pred.grad, maps([-2.0, 2.0]))


def test_bad_input():
    with pytest.raises(ValueError, match=r'map of shape \(1, 1, 1, 2\) against a truth of shape \(1, 1, 1, 1\)'):
        map_loss(maps([0.1, 0.2]), maps([0.1]))
    with pytest.raises(ValueError, match='positive_weight > 0 and dice_weight >= 0, got 0 and 0'):
        FinPercepMapLoss(positive_weight=0)
    with pytest.raises(ValueError, match="reduction: expected 'mean', 'sum' or 'none', got 'max'"):
        map_loss(maps([0.1]), maps([0.1]), reduction='max')
