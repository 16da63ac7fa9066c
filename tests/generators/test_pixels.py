"""Upscaling, cropping and the straight-through clamp."""

import pytest
import torch

from finpercep_plugin.generators.pixels import crop, straight_through_clamp, upscale


def test_clamp_keeps_gradient_of_saturated_pixels():
    x = torch.tensor([-3.0, 0.25, 1.3], requires_grad=True)
    y = straight_through_clamp(x)
    assert y.tolist() == [0.0, 0.25, 1.0]
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


def test_upscale():
    ramp = torch.linspace(0, 1, 16).reshape(1, 1, 1, 16).expand(1, 3, 8, 16)
    large = upscale(ramp, 4)
    assert large.shape == (1, 3, 32, 64) and large.min() >= 0 and large.max() <= 1
    # Bicubic keeps a ramp: output pixel j lies at (j + 0.5) / 4 - 0.5 of the input, whose step is 1 / 15.
    assert large[0, 0, 16, 30].item() == pytest.approx((30.5 / 4 - 0.5) / 15, abs=1e-2)


def test_crop():
    image = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert crop(image, (1, 2, 2, 3)).flatten().tolist() == [8, 9, 10, 14, 15, 16]
    assert crop(image, None) is image
    with pytest.raises(ValueError, match='is not inside'):
        crop(image, (3, 0, 2, 2))
