"""L_align against values worked out by hand."""

import pytest
import torch

from finpercep_plugin.losses.align_loss import FinPercepAlignLoss, align_loss


def test_by_hand():
    s_gt, base = torch.tensor([0.9, 0.2]), torch.tensor([0.5, 0.3])
    torch.testing.assert_close(align_loss(s_gt, base, 'none'), torch.tensor([0.4, 0.1]))
    torch.testing.assert_close(FinPercepAlignLoss(0.6)(s_gt, base), torch.tensor(0.6 * 0.25))


def test_the_base_score_gets_no_gradient():
    s_gt, base = torch.tensor([0.9, 0.2], requires_grad=True), torch.tensor([0.5, 0.3], requires_grad=True)
    align_loss(s_gt, base).backward()
    torch.testing.assert_close(s_gt.grad, torch.tensor([0.5, -0.5]))
    assert base.grad is None


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r'scores of shapes \(2,\) and \(2, 1\)'):
        align_loss(torch.zeros(2), torch.zeros(2, 1))
