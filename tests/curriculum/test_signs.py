"""Signs of hacking: values by hand, photos that show none, lattices that do."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finpercep_plugin.curriculum import signs
from finpercep_plugin.images import read_image
from finpercep_plugin.rewards.base import luma

PHOTOS = ('astronaut', 'camera', 'chelsea', 'coffee', 'coins', 'moon', 'motorcycle_left', 'grass', 'gravel', 'brick')


@pytest.fixture(scope='module')
def photos():
    """{name: middle 256 x 256 of a photo, (1, 3, 256, 256)}; brick and grass are as regular as photos get."""
    folder = Path(pytest.importorskip('skimage').__file__).parent / 'data'
    images = {}
    for name in PHOTOS:
        image = torch.from_numpy(read_image(folder / f'{name}.png')).permute(2, 0, 1)[None].float() / 255
        top, left = (image.shape[-2] - 256) // 2, (image.shape[-1] - 256) // 2
        images[name] = image[..., top : top + 256, left : left + 256]
    return images


def planted(period, kind, size=256):
    """A pattern of that period, (size, size), of standard deviation 1."""
    cell = torch.from_numpy(np.random.default_rng(period).standard_normal((period, period))).float()
    if kind == 'grid':
        cell = torch.zeros(period, period)
        cell[0] = cell[:, 0] = 1.0
    if kind == 'dots':
        cell = torch.zeros(period, period)
        cell[0, 0] = 1.0
    pattern = cell.repeat(size // period + 1, size // period + 1)[:size, :size]
    return (pattern - pattern.mean()) / pattern.std()


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def test_lq_fidelity_by_hand():
    lq = torch.full((2, 3, 4, 4), 0.5)
    sr = torch.full((2, 3, 16, 16), 0.5)
    sr[..., ::2] += 0.2  # gone in the mean of any 4 x 4 but for half of it: error 0.1, 20 dB
    sr[1, ..., ::2] -= 0.1  # error 0.05
    expected = torch.tensor([20.0, -20 * math.log10(0.05)])
    torch.testing.assert_close(signs.lq_fidelity(sr, lq), expected, rtol=1e-5, atol=0)


def test_fidelity_does_not_see_what_averages_out():
    lq = torch.full((1, 3, 16, 16), 0.5)
    sr = F.interpolate(lq, scale_factor=4) + 0.1 * planted(4, 'tile', 64)
    assert signs.lq_fidelity(sr, lq).item() > 60
    assert signs.measure(sr, lq)['lattice_4'].item() > 20


def test_white_noise_has_its_variance_at_every_frequency():
    power = signs.spectrum(0.1 * noise(2, 1, 512, 512), 32)
    assert power.shape == (2, 32, 32)
    inner = power[:, 2:-2, 2:-2]  # the mean is taken away
    torch.testing.assert_close(inner.mean(), torch.tensor(0.01 + 1 / 255**2), rtol=0.02, atol=0)
    assert inner.std() / inner.mean() < 0.1


def test_high_frequency_by_hand():
    power = torch.zeros(1, 16, 16)
    frequency = torch.fft.fftfreq(16)
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt()
    power[:, radius <= 0.125] = 4.0
    power[:, radius > 0.125] = 0.4
    assert signs.high_frequency(power, 4).item() == pytest.approx(-10)
    assert signs.high_frequency(power, 2).item() > -10  # of scale 2, the band up to 0.25 is lq's own


def test_more_detail_is_more_high_frequency(photos):
    for name, photo in photos.items():
        blurred = F.avg_pool2d(photo, 3, stride=1, padding=1, count_include_pad=False)
        lq = F.interpolate(photo, scale_factor=0.25, mode='area')
        soft, sharp, harsh = (
            signs.measure(image.clamp(0, 1), lq)['hf_energy'].item()
            for image in (blurred, photo, photo + 2 * (photo - blurred))
        )
        assert soft + 2 < sharp < harsh - 2, name


def test_a_peak_is_measured_against_its_neighbours():
    power = torch.ones(2, 16, 16)
    for row, column in ((4, 0), (0, 4), (4, 4), (4, 8), (8, 4), (12, 12), (12, 0)):
        power[0, row, column] = 100.0  # 20 dB, on 7 of the 15 frequencies of period 4
    assert signs.lattice_peaks(power, 4, top=7 / 15).tolist() == pytest.approx([20.0, 0.0])
    assert signs.lattice_peaks(power, 4, top=1.0).tolist() == pytest.approx([7 / 15 * 20, 0.0])


def test_slopes_and_ridges_of_the_spectrum_are_no_peaks():
    frequency = torch.fft.fftfreq(64).abs()
    slope = torch.exp(-10 * (frequency[:, None] + frequency[None]))[None]
    ridges = torch.ones(1, 64, 64)
    ridges[:, 0] = ridges[:, :, 0] = 1000.0  # what horizontal and vertical edges make
    diagonal = 1 + 999 * torch.eye(64)[None]
    for power in (slope, ridges, diagonal):
        assert signs.lattice_peaks(power, 8).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize('period', signs.PERIODS)
def test_photos_have_no_lattice(photos, period):
    heights = {name: signs.lattice(luma(photo), period).item() for name, photo in photos.items()}
    assert max(heights.values()) < 5, heights


@pytest.mark.parametrize('kind', ['tile', 'grid', 'dots'])
@pytest.mark.parametrize('period', signs.PERIODS)
def test_a_faint_lattice_on_a_photo_is_seen(photos, period, kind):
    """5 steps of 8 bit, of which texture hides most."""
    pattern = 5 / 255 * planted(period, kind)
    raised = {
        name: (signs.lattice((luma(photo) + pattern).clamp(0, 1), period) - signs.lattice(luma(photo), period)).item()
        for name, photo in photos.items()
    }
    assert min(raised.values()) > 4.5 and sum(raised.values()) / len(raised) > 10, raised


def test_a_lattice_in_dark_areas_alone_is_seen_where_the_rest_sees_nothing(photos):
    photo = photos['coffee']
    lq = F.interpolate(photo, scale_factor=0.25, mode='area')
    dark = (F.interpolate(luma(lq), scale_factor=4) < luma(lq).quantile(0.25)).float()
    before = signs.measure(photo, lq)
    after = signs.measure((photo + 3 / 255 * dark * planted(4, 'tile')).clamp(0, 1), lq)
    assert after['lattice_4'] - before['lattice_4'] > 5
    assert abs(after['hf_energy'] - before['hf_energy']) < 0.5 and after['lq_psnr'] > 45


def test_invisible_lattices_count_for_nothing():
    flat = torch.full((1, 1, 64, 64), 0.5)
    low, high = (signs.lattice(flat + rms / 255 * planted(2, 'tile', 64), 2).item() for rms in (0.01, 2.0))
    assert low < 0.5 and high > 20


def test_other_noise_is_no_lattice():
    for period in signs.PERIODS:
        assert signs.lattice(0.5 + 0.1 * noise(1, 1, 256, 256), period).item() < 2


def test_flat_variation_looks_where_lq_is_flat():
    lq = torch.full((1, 1, 16, 16), 0.5)
    lq[..., 8:] += 0.2 * noise(1, 1, 16, 8)
    sr, busy = torch.full((1, 1, 64, 64), 0.5), torch.full((1, 1, 64, 64), 0.5)
    sr[..., :12:2] = 0.6  # flat in lq: each step across is 0.1 there
    busy[..., 48:] += noise(1, 1, 64, 16)
    assert signs.flat_variation(busy, lq).item() == pytest.approx(20 * math.log10(1 / 255), abs=1e-4)
    everywhere = torch.full((1, 1, 64, 64), 0.5)
    everywhere[..., ::2] = 0.6
    assert signs.flat_variation(everywhere, lq).item() == pytest.approx(-20, abs=1e-4)
    assert -48 < signs.flat_variation(sr, lq).item() < -20


def test_noise_raises_flat_variation_by_its_ratio(photos):
    lq = F.interpolate(photos['moon'], scale_factor=0.25, mode='area')
    smooth = F.interpolate(lq, scale_factor=4, mode='bicubic')
    levels = [
        signs.measure(smooth + sd * noise(1, 3, 256, 256), lq)['flat_tv'].item() for sd in (8 / 255, 16 / 255, 32 / 255)
    ]
    assert levels[1] - levels[0] == pytest.approx(6, abs=1) and levels[2] - levels[1] == pytest.approx(6, abs=1)


def test_measure_is_batch_independent_and_all_its_values_are_judged(photos):
    names = ['astronaut', 'grass', 'moon']
    sr = torch.cat([photos[name] for name in names])
    lq = F.interpolate(sr, scale_factor=0.25, mode='area') + 0.01
    together = signs.measure(sr, lq)
    assert set(together) == set(signs.SIGNS)
    for row in range(3):
        alone = signs.measure(sr[row : row + 1], lq[row : row + 1])
        assert all(torch.equal(alone[name][0], together[name][row]) for name in together)
    assert all(values.shape == (3,) and bool(torch.isfinite(values).all()) for values in together.values())


@pytest.mark.parametrize('value', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('scale', [1, 2, 4])
def test_images_of_one_colour_are_finite(value, scale):
    lq = torch.full((1, 3, 64 // scale, 64 // scale), value)
    values = signs.measure(torch.full((1, 3, 64, 64), value), lq)
    assert all(bool(torch.isfinite(v).all()) for v in values.values())
    assert values['lattice_2'].item() == pytest.approx(0, abs=1e-3) and values['lq_psnr'].item() == pytest.approx(100)


def test_autocast_changes_nothing(photos):
    sr = photos['coffee']
    lq = F.interpolate(sr, scale_factor=0.25, mode='area') + 0.01
    plain = signs.measure(sr, lq)
    with torch.autocast('cpu', torch.bfloat16):
        assert all(torch.equal(value, plain[name]) for name, value in signs.measure(sr, lq).items())


def test_small_images():
    sr, lq = torch.rand(1, 3, 40, 48), torch.rand(1, 3, 10, 12)
    assert set(signs.measure(sr, lq)) == {'lq_psnr', 'hf_energy', 'flat_tv', 'lattice_2', 'lattice_4', 'lattice_8'}
    with pytest.raises(ValueError, match=r'sr of 16 pixels or more, got sr \(1, 3, 8, 8\)'):
        signs.measure(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 2, 2))
    with pytest.raises(ValueError, match='an even period and sides of 4 x 16, got'):
        signs.lattice(torch.rand(1, 1, 40, 48), 16)
    with pytest.raises(ValueError, match='an even period'):
        signs.lattice(torch.rand(1, 1, 40, 48), 3)
