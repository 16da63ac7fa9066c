"""LL of the Haar and of the dual-tree transform by hand and against the public library."""

import pytest
import torch

from finpercep_plugin.algorithms.lowpass import dtcwt_lowpass, haar_lowpass, ll_loss


def image(height, width, batch=1):
    i = torch.arange(batch * height * width).reshape(batch, 1, height, width).float()
    return ((i * i * 7 + i * 3) % 17) / 17


def test_haar_by_hand():
    x = torch.arange(32.0).reshape(1, 1, 4, 8)
    # orthonormal: the sum of a 4 x 4 block / 4
    assert haar_lowpass(x).flatten().tolist() == [x[..., :4].sum() / 4, x[..., 4:].sum() / 4]
    assert haar_lowpass(x, 1)[0, 0, 0, 0] == (0 + 1 + 8 + 9) / 2
    # 3 x 5 is padded to 4 x 8 with the last row and column
    y = torch.arange(15.0).reshape(1, 1, 3, 5)
    rows = [*range(3), 2]
    padded = y[..., rows, :][..., [*range(5), 4, 4, 4]]
    assert torch.equal(haar_lowpass(y), haar_lowpass(padded))


@pytest.mark.parametrize('levels', [1, 2, 3])
@pytest.mark.parametrize('size', [(8, 16), (16, 16), (40, 24)])
def test_haar_equals_the_library(size, levels, in_float64):
    pywt = pytest.importorskip('pywt')
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    theirs = torch.from_numpy(pywt.wavedec2(x.numpy(), 'haar', level=levels)[0])
    torch.testing.assert_close(haar_lowpass(x, levels), theirs, atol=1e-6, rtol=0)


def test_haar_keeps_the_energy_of_what_it_keeps():
    coarse = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    x = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert haar_lowpass(x).norm().item() == pytest.approx(x.norm().item(), rel=1e-5)


def test_dtcwt_of_the_library():
    """Numbers of pytorch_wavelets 1.3.0 on sides that need both kinds of padding."""
    expected = [
        [1.2474919557571411, 1.6113154888153076, 2.1120362281799316, 2.342095136642456],
        [1.8130730390548706, 1.7819956541061401, 1.8978184461593628, 2.065049648284912],
        [1.6478487253189087, 1.8283025026321411, 2.0681145191192627, 2.2490644454956055],
        [0.95046466588974, 1.5909807682037354, 2.3741908073425293, 2.8484914302825928],
    ]
    torch.testing.assert_close(dtcwt_lowpass(image(10, 13))[0, 0], torch.tensor(expected), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize('size', [(16, 16), (4, 6), (13, 22), (50, 37), (64, 20)])
def test_dtcwt_equals_the_library(size, in_float64):
    pytest.importorskip('pkg_resources')  # which it imports, and setuptools 81 dropped
    wavelets = pytest.importorskip('pytorch_wavelets')
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    theirs = wavelets.DTCWTForward(J=3, biort='near_sym_b', qshift='qshift_b')(x)[0]
    torch.testing.assert_close(dtcwt_lowpass(x), theirs, atol=1e-6, rtol=0)


def test_dtcwt_of_a_constant_is_four_times_it():
    for size, smaller in (((8, 8), (2, 2)), ((20, 13), (6, 4)), ((64, 40), (16, 10))):
        lowpass = dtcwt_lowpass(torch.full((1, 2, *size), 0.3))
        torch.testing.assert_close(lowpass, torch.full((1, 2, *smaller), 1.2), atol=1e-5, rtol=1e-5)


def test_dtcwt_keeps_low_and_drops_high_frequencies():
    x = torch.arange(64.0)
    slow, fast = torch.cos(2 * torch.pi * x / 32), torch.cos(torch.pi * x)
    kept = [dtcwt_lowpass(wave.expand(1, 1, 64, 64))[..., 4:12].abs().max().item() for wave in (slow, fast)]
    assert 3.5 < kept[0] < 4.1 and kept[1] < 0.05  # away from the edges


@pytest.mark.parametrize('lowpass', [haar_lowpass, dtcwt_lowpass])
def test_in_float32_in_any_precision(lowpass):
    x = image(16, 12)
    with torch.autocast('cpu', torch.bfloat16):
        ours = lowpass(x)
    assert ours.dtype == torch.float32 and torch.equal(ours, lowpass(x))


@pytest.mark.parametrize('wavelet', ['haar', 'dtcwt'])
def test_loss_by_hand_and_its_gradient(wavelet):
    ours, theirs = image(8, 12, batch=2), image(8, 12, batch=2).flip(-1)
    lowpass = {'haar': haar_lowpass, 'dtcwt': dtcwt_lowpass}[wavelet]
    expected = (lowpass(ours) - lowpass(theirs)).abs().mean((1, 2, 3))
    torch.testing.assert_close(ll_loss(ours, theirs, wavelet), expected, atol=1e-5, rtol=1e-5)
    scale = torch.tensor(0.8, requires_grad=True)
    ll_loss(scale * ours, theirs, wavelet).sum().backward()
    ends = [ll_loss(torch.tensor(value) * ours, theirs, wavelet).sum().item() for value in (0.801, 0.799)]
    assert scale.grad.item() == pytest.approx((ends[0] - ends[1]) / 0.002, rel=0.02)


def test_errors():
    with pytest.raises(ValueError, match="wavelet must be 'dtcwt' or 'haar', got 'db4'"):
        ll_loss(image(8, 8), image(8, 8), 'db4')
    with pytest.raises(ValueError, match=r'different shapes, \(1, 1, 8, 8\) and \(1, 1, 8, 4\)'):
        ll_loss(image(8, 8), image(8, 4))
