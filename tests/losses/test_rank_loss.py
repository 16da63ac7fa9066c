"""L_rank against values worked out by hand."""

import pytest
import torch

from finpercep_plugin.losses.rank_loss import FinPercepRankLoss, rank_loss

SR, SYN, GT = torch.tensor([0.1, 0.0, 0.9]), torch.tensor([0.2, 1.0, 0.5]), torch.tensor([0.9, 3.0, 0.1])


def test_by_hand():
    # sample 1: 0.3 - 0.1 = 0.2 and 0.4 - 0.7 < 0; sample 2: both closed; sample 3: 0.3 + 0.4 = 0.7 and 0.4 + 0.4 = 0.8
    loss = rank_loss(SR, SYN, GT, m1=0.3, m2=0.4, reduction='none')
    torch.testing.assert_close(loss, torch.tensor([0.2, 0.0, 1.5]))
    torch.testing.assert_close(rank_loss(SR, SYN, GT, 0.3, 0.4), torch.tensor(1.7 / 3))
    torch.testing.assert_close(FinPercepRankLoss(0.8, 0.3, 0.4, 'sum')(SR, SYN, GT), torch.tensor(0.8 * 1.7))


def test_gradient_pushes_the_scores_apart_only_while_the_margin_is_open():
    scores = [s.clone().requires_grad_() for s in (SR, SYN, GT)]
    rank_loss(*scores, m1=0.3, m2=0.4, reduction='sum').backward()
    torch.testing.assert_close(scores[0].grad, torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(scores[1].grad, torch.tensor([-1.0, 0.0, 0.0]))
    torch.testing.assert_close(scores[2].grad, torch.tensor([0.0, 0.0, -1.0]))


def test_bad_input():
    with pytest.raises(ValueError, match=r'scores of shapes \(3,\), \(3, 1\), \(3,\)'):
        rank_loss(SR, SYN[:, None], GT, 0.1, 0.1)
    with pytest.raises(ValueError, match='margins m1, m2 >= 0, got -1 and 0.1'):
        FinPercepRankLoss(m1=-1)
