"""Upscaling, cropping and the straight-through clamp."""

import numpy as np
import pytest
import torch
from PIL import Image

from finpercep_plugin.generators.pixels import crop, straight_through_clamp, upscale


def test_clamp_keeps_gradient_of_saturated_pixels():
    x = torch.tensor([-3.0, 0.25, 1.3], requires_grad=True)
    y = straight_through_clamp(x)
    assert y.tolist() == [0.0, 0.25, 1.0]
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize('kernel', ['torch', 'pillow'])
def test_upscale(kernel):
    ramp = torch.linspace(0, 1, 16).reshape(1, 1, 1, 16).expand(1, 3, 8, 16)
    large = upscale(ramp, 4, kernel)
    assert large.shape == (1, 3, 32, 64) and large.min() >= 0 and large.max() <= 1
    # Bicubic keeps a ramp: output pixel j lies at (j + 0.5) / 4 - 0.5 of the input, whose step is 1 / 15.
    assert large[0, 0, 16, 30].item() == pytest.approx((30.5 / 4 - 0.5) / 15, abs=1e-2)


def test_integers_are_not_taken_for_floats():
    with pytest.raises(TypeError, match='expected floats in .0, 1., got torch.uint8'):
        upscale(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 2)


@pytest.mark.parametrize('scale', [2, 4])
def test_pillows_kernel_is_pillows(scale):
    """On noise over the whole range, whose overshoot is clipped between rows and columns."""
    picture = np.random.default_rng(0).integers(0, 256, (11, 17, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(picture).resize((17 * scale, 11 * scale), Image.BICUBIC)).astype(int)
    lq = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    apart = {
        kernel: np.abs((upscale(lq, scale, kernel)[0].permute(1, 2, 0) * 255).round().numpy() - expected).max()
        for kernel in ('torch', 'pillow')
    }
    assert apart['pillow'] <= 1 and apart['torch'] > 5


def test_crop():
    image = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert crop(image, (1, 2, 2, 3)).flatten().tolist() == [8, 9, 10, 14, 15, 16]
    assert crop(image, None) is image
    with pytest.raises(ValueError, match='is not inside'):
        crop(image, (3, 0, 2, 2))
