"""L_map, its Dice and its focal term against values worked out by hand."""

import math

import pytest
import torch

from finpercep_plugin.losses.map_loss import FinPercepMapLoss, map_loss, quality_focal, soft_dice


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


def test_focal_by_hand():
    # p = 0.5, t = 1: (1 - 0.5)^2 * -ln 0.5 = 0.25 ln 2
    # p = 0.25, t = 0.5: 0.25^2 * (-0.5 ln 0.25 - 0.5 ln 0.75) = 0.0625 * (ln 2 + 0.5 ln 4/3)
    pred, target = maps([0.5, 0.25]), maps([1.0, 0.5])
    first, second = 0.25 * math.log(2), 0.0625 * (math.log(2) + 0.5 * math.log(4 / 3))
    torch.testing.assert_close(quality_focal(pred, target), torch.tensor([(first + second) / 2]))
    # gamma 0 is cross entropy: ln 2, and ln 2 + 0.5 ln 4/3
    entropy = (math.log(2) + math.log(2) + 0.5 * math.log(4 / 3)) / 2
    torch.testing.assert_close(quality_focal(pred, target, gamma=0), torch.tensor([entropy]))
    with_focal = map_loss(pred, target, focal_weight=3.0, focal_gamma=0.0, reduction='none')
    torch.testing.assert_close(with_focal - map_loss(pred, target, reduction='none'), torch.tensor([3 * entropy]))


def test_focal_gradient_near_zero():
    # p = sigmoid(z) = 0.001 where t = 1: cross entropy's gradient is p - t = -0.999; that of L1 is -p (1 - p) = -0.001
    logit = torch.tensor(math.log(0.001 / 0.999), requires_grad=True)
    truth = maps([1.0])
    (focal,) = torch.autograd.grad(quality_focal(logit.sigmoid().view(1, 1, 1, 1), truth, gamma=0).sum(), logit)
    (absolute,) = torch.autograd.grad(map_loss(logit.sigmoid().view(1, 1, 1, 1), truth), logit)
    assert focal.item() == pytest.approx(-0.999, abs=1e-5) and absolute.item() == pytest.approx(-0.000999, abs=1e-6)


@pytest.mark.parametrize('gamma', [0.0, 2.0])
def test_focal_is_finite_at_the_ends(gamma):
    pred = maps([0.0, 1.0, 0.0, 1.0]).requires_grad_()
    loss = quality_focal(pred, maps([0.0, 1.0, 1.0, 0.0]), gamma)
    loss.sum().backward()
    # two pixels right, two wrong by 1, where -ln p stops at -ln 1e-4
    assert loss.item() == pytest.approx(-math.log(1e-4) / 2, abs=2e-4) and torch.isfinite(pred.grad).all()


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
    with pytest.raises(ValueError, match='expected positive_weight > 0 and the others >= 0, got 0 and'):
        FinPercepMapLoss(positive_weight=0)
    with pytest.raises(ValueError, match="'focal_gamma': -1"):
        FinPercepMapLoss(focal_gamma=-1.0)
    with pytest.raises(ValueError, match="reduction: expected 'mean', 'sum' or 'none', got 'max'"):
        map_loss(maps([0.1]), maps([0.1]), reduction='max')
