"""PSNR by hand and against BasicSR's."""

import numpy as np
import pytest
import torch

from finpercep_plugin.rewards.psnr_reward import PSNRReward, psnr


def test_by_hand():
    # errors 0.1 and 0.3 on half of the pixels each: mse 0.05
    image = torch.tensor([[[[0.1, 0.3]]], [[[0.0, 0.0]]]])
    expected = torch.tensor([-10 * np.log10(0.05), 100.0], dtype=torch.float32)
    torch.testing.assert_close(psnr(image, torch.zeros_like(image)), expected)


@pytest.mark.parametrize('y_channel', [True, False])
def test_equals_basicsr(basicsr_metrics, y_channel):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 24, 30, 3), dtype=np.uint8)
    expected = basicsr_metrics.calculate_psnr(a, b, crop_border=3, test_y_channel=y_channel)
    sr, gt = (torch.from_numpy(x[..., ::-1].copy()).permute(2, 0, 1)[None] / 255 for x in (a, b))
    score = PSNRReward(y_channel, crop_border=3)(sr, gt=gt).score
    assert score.item() == pytest.approx(expected, abs=1e-4)


def test_gradient_and_bad_input():
    reward, sr = PSNRReward(), torch.rand(2, 3, 8, 8, requires_grad=True)
    reward(sr, gt=torch.rand(2, 3, 8, 8)).score.sum().backward()
    assert (sr.grad != 0).all()
    with pytest.raises(ValueError, match='PSNR compares with gt, and there is none'):
        reward(sr)
    with pytest.raises(ValueError, match=r'sr of shape \(2, 3, 8, 8\), gt of shape \(2, 3, 8, 9\)'):
        reward(sr, gt=torch.rand(2, 3, 8, 9))
    with pytest.raises(ValueError, match='crop_border 4 leaves nothing'):
        PSNRReward(crop_border=4)(sr, gt=sr)
