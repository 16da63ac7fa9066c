"""The VSD regulariser's formulas against values worked out by hand."""

import pytest
import torch

from finpercep_plugin.losses.vsd_loss import GUIDANCE, T_RANGE, diff_loss, draw_vsd_t, guided, vsd_gradient, vsd_loss


def latents():
    latent = torch.tensor([[[[1.0, 3.0]]], [[[0.0, -4.0]]]], requires_grad=True)
    regulariser = torch.tensor([[[[2.0, 4.0]]], [[[5.0, 1.0]]]], requires_grad=True)
    prior = torch.tensor([[[[0.0, 0.0]]], [[[1.0, 1.0]]]], requires_grad=True)
    return latent, regulariser, prior


def test_gradient_by_hand():
    # mean |z - prior|: (1 + 3) / 2 = 2 and (1 + 5) / 2 = 3, each sample by itself
    expected = torch.tensor([[[[1.0, 2.0]]], [[[4 / 3, 0.0]]]])
    torch.testing.assert_close(vsd_gradient(*latents()), expected)


def test_loss_by_hand():
    parts = latents()
    expected = torch.tensor([(1.0 + 4.0) / 2, (16 / 9 + 0.0) / 2])  # the mean square of the gradient
    torch.testing.assert_close(vsd_loss(*parts, reduction='none'), expected)
    torch.testing.assert_close(vsd_loss(*parts), expected.mean())


def test_only_the_latent_gets_a_gradient():
    latent, regulariser, prior = latents()
    vsd_loss(latent, regulariser, prior).backward()
    torch.testing.assert_close(latent.grad, 2 / latent.numel() * vsd_gradient(latent, regulariser, prior))
    assert regulariser.grad is None and prior.grad is None


def test_a_sample_does_not_depend_on_its_batch():
    whole = vsd_loss(*latents(), reduction='none')
    for row in range(2):
        torch.testing.assert_close(vsd_loss(*(x[row : row + 1] for x in latents())), whole[row])


def test_regulariser_and_prior_that_agree_leave_the_generator_alone():
    latent, regulariser, _ = latents()
    loss = vsd_loss(latent, regulariser, regulariser)
    loss.backward()
    assert loss == 0 and not latent.grad.any()


def test_guidance_by_hand():
    torch.testing.assert_close(guided(torch.tensor(2.0), torch.tensor(3.0)), torch.tensor(2.0 + GUIDANCE))
    assert guided(torch.tensor(2.0), torch.tensor(3.0), 1.0) == 3.0
    assert guided(torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32


def test_diff_loss_by_hand():
    out = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    noise = torch.tensor([[1.0, 0.0], [1.0, 3.0]], requires_grad=True)
    torch.testing.assert_close(diff_loss(out, noise, 'none'), torch.tensor([2.0, 5.0]))
    diff_loss(out, noise).backward()
    torch.testing.assert_close(out.grad, torch.tensor([[0.0, 1.0], [-0.5, -1.5]]))  # 2 (out - noise) / 4


def test_timesteps_are_in_range_and_keyed():
    drawn = [int(draw_vsd_t(torch.Generator().manual_seed(i))) for i in range(500)]
    assert T_RANGE == (20, 980)
    assert 20 <= min(drawn) < 60 and 940 < max(drawn) < 980
    assert drawn[3] == int(draw_vsd_t(torch.Generator().manual_seed(3)))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r'shapes \[\(2, 1, 1, 2\), \(2, 1, 1, 2\), \(1, 1, 1, 2\)\]'):
        vsd_loss(*latents()[:2], torch.zeros(1, 1, 1, 2))
    with pytest.raises(ValueError, match=r'shape \(2, 3\) and noise of \(2, 1\)'):
        diff_loss(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="'mean', 'sum' or 'none'"):
        vsd_loss(*latents(), reduction='max')
