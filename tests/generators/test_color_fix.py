"""AdaIN and wavelet colour fix: by hand, gradient, precision under autocast."""

import pytest
import torch

from finpercep_plugin.generators.color_fix import adain, color_fix, wavelet_decomposition, wavelet_reconstruction


def images(seed=0, size=(2, 3, 12, 9)):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(size, generator=rng), torch.rand(size, generator=rng)


def test_adain_by_hand():
    # content: mean 2, unbiased variance ((-2)^2 + 0 + 0 + 2^2) / 3 = 8/3; style: mean 1, variance 24/3 = 8.
    content = torch.tensor([0.0, 2.0, 2.0, 4.0]).reshape(1, 1, 2, 2)
    style = torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0, 5.0]).reshape(1, 1, 2, 3)
    variance_s = (4 + 4 + 0 + 0 + 0 + 16) / 5
    ratio = ((variance_s + 1e-5) / (8 / 3 + 1e-5)) ** 0.5
    expected = torch.tensor([1 - 2 * ratio, 1, 1, 1 + 2 * ratio]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(adain(content, style), expected)


def test_adain_is_per_image_and_channel():
    content, style = images()
    fixed = adain(content, style)
    torch.testing.assert_close(fixed.mean((2, 3)), style.mean((2, 3)))
    torch.testing.assert_close(fixed.flatten(2).std(2), style.flatten(2).std(2), atol=1e-4, rtol=1e-4)
    for b, c in ((0, 2), (1, 0)):
        alone = adain(content[b : b + 1, c : c + 1], style[b : b + 1, c : c + 1])
        torch.testing.assert_close(fixed[b : b + 1, c : c + 1], alone)


def test_adain_of_a_flat_image_is_the_mean():
    flat = torch.full((1, 1, 3, 3), 0.3, requires_grad=True)
    fixed = adain(flat, torch.tensor([[[[0.2, 0.6]]]]))
    torch.testing.assert_close(fixed, torch.full((1, 1, 3, 3), 0.4))
    fixed.square().sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_one_level_of_the_wavelet_by_hand():
    # A single bright pixel in the corner; edges are replicated, so along each side the blur of (1, 0, 0) is (3/4, 1/4, 0).
    image = torch.zeros(1, 1, 3, 3)
    image[..., 0, 0] = 1.0
    line = torch.tensor([0.75, 0.25, 0.0])
    high, low = wavelet_decomposition(image, levels=1)
    torch.testing.assert_close(low, torch.outer(line, line)[None, None])
    torch.testing.assert_close(high, image - low)


def test_level_i_blurs_over_a_distance_of_two_to_the_i():
    image = torch.zeros(1, 1, 1, 41)
    image[..., 20] = 1.0
    one, two = (wavelet_decomposition(image, levels=n)[1][0, 0, 0] for n in (1, 2))
    assert {i - 20: one[i].item() for i in range(41) if one[i]} == {-1: 0.25, 0: 0.5, 1: 0.25}
    for levels, reach in ((3, 7), (4, 15)):  # 1 + 2 + 4 and 8 more
        low = wavelet_decomposition(image, levels)[1][0, 0, 0]
        assert low[20 - reach] > 0 and low[20 + reach] > 0 and not low[: 20 - reach].any()
    # (1/4, 1/2, 1/4) convolved with itself at twice the distance: 1, 2, 3, 4, 3, 2, 1 sixteenths.
    assert {i - 20: 16 * two[i].item() for i in range(41) if two[i]} == {-3: 1, -2: 2, -1: 3, 0: 4, 1: 3, 2: 2, 3: 1}


def test_wavelet_takes_high_from_the_one_and_low_from_the_other():
    content, style = images()
    high, low = wavelet_decomposition(content)
    torch.testing.assert_close(high + low, content)
    torch.testing.assert_close(wavelet_reconstruction(content, content), content)
    torch.testing.assert_close(wavelet_reconstruction(content, style), high + wavelet_decomposition(style)[1])
    torch.testing.assert_close(wavelet_reconstruction(content + 0.2, style), wavelet_reconstruction(content, style))
    torch.testing.assert_close(
        wavelet_reconstruction(content, style + 0.2), wavelet_reconstruction(content, style) + 0.2
    )


@pytest.mark.parametrize('function', [adain, wavelet_reconstruction])
def test_gradient_by_finite_differences(function):
    content, style = (image.double().requires_grad_() for image in images(size=(1, 2, 3, 4)))
    assert torch.autograd.gradcheck(lambda a, b: function(a, b), (content, style), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize('kind', ['adain', 'wavelet'])
def test_result_and_gradient_are_float32_under_autocast(kind):
    content, style = images()
    content.requires_grad_()
    weight = torch.linspace(-1, 1, content.numel()).reshape(content.shape)
    exact = color_fix(content, style, kind)
    (gradient,) = torch.autograd.grad((exact * weight).sum(), content)
    with torch.autocast('cpu', torch.bfloat16):
        under = color_fix(content, style, kind)
    assert under.dtype == torch.float32 and torch.equal(under, exact)
    assert torch.equal(torch.autograd.grad((under * weight).sum(), content)[0], gradient)
    assert color_fix(content.bfloat16(), style.bfloat16(), kind).dtype == torch.float32


def test_none_and_unknown_kinds():
    content, style = images()
    assert color_fix(content, style, 'none') is content
    with pytest.raises(ValueError, match="color_fix must be 'adain', 'wavelet' or 'none', got 'adian'"):
        color_fix(content, style, 'adian')
