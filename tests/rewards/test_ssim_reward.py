"""SSIM by hand and against BasicSR's."""

import numpy as np
import pytest
import torch

from finpercep_plugin.rewards.ssim_reward import SSIMReward, ssim


def test_by_hand():
    # flat images: no variance, so (2 * 0.5 * 0.25 + c1) / (0.25 + 0.0625 + c1) with c1 = 1e-4
    x, y = torch.full((1, 1, 12, 12), 0.5), torch.full((1, 1, 12, 12), 0.25)
    torch.testing.assert_close(ssim(x, y), torch.tensor([0.2501 / 0.3126]), rtol=1e-4, atol=0)
    torch.testing.assert_close(ssim(x, x), torch.ones(1))


@pytest.mark.parametrize('y_channel', [True, False])
def test_equals_basicsr(basicsr_metrics, y_channel):
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    expected = basicsr_metrics.calculate_ssim(a, b, crop_border=2, test_y_channel=y_channel)
    sr, gt = (torch.from_numpy(x[..., ::-1].copy()).permute(2, 0, 1)[None] / 255 for x in (a, b))
    score = SSIMReward(y_channel, crop_border=2)(sr, gt=gt).score
    assert score.item() == pytest.approx(expected, abs=1e-5)


def test_gradient_batch_and_bad_input():
    reward, sr, gt = SSIMReward(), torch.rand(3, 3, 16, 16, requires_grad=True), torch.rand(3, 3, 16, 16)
    whole = reward(sr, gt=gt).score
    whole.sum().backward()
    assert (sr.grad.flatten(1).norm(dim=1) > 0).all()
    alone = torch.cat([reward(sr[i : i + 1], gt=gt[i : i + 1]).score for i in range(3)])
    torch.testing.assert_close(whole, alone)
    with pytest.raises(ValueError, match='SSIM compares with gt, and there is none'):
        reward(sr)
    with pytest.raises(ValueError, match=r'sides of 11 pixels or more, got \(10, 16\)'):
        reward(sr[:, :, :10], gt=gt[:, :, :10])
