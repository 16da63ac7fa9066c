import math

import numpy as np
import pytest

from finpercep_plugin.data.kernels import KINDS, draw_kernel, draw_sinc, shaped_kernel, sinc_kernel


@pytest.fixture(scope='module')
def reference():
    pytest.importorskip('basicsr')
    from finpercep_plugin.integrations.basicsr import require

    require()
    from basicsr.data import degradations

    return degradations


@pytest.mark.parametrize('size', [7, 13, 21])
@pytest.mark.parametrize('sigma', [(2.0, 2.0), (2.9, 0.3)])
def test_kernels_are_basicsr_s(reference, size, sigma):
    angle, iso = (0.0, True) if sigma[0] == sigma[1] else (0.7, False)
    gaussian = reference.bivariate_Gaussian(size, *sigma, angle, isotropic=iso)
    np.testing.assert_allclose(shaped_kernel(size, sigma, angle), gaussian, atol=1e-7)
    for beta in (0.5, 1.7, 4.0):
        general = reference.bivariate_generalized_Gaussian(size, *sigma, angle, beta, isotropic=iso)
        plateau = reference.bivariate_plateau(size, *sigma, angle, beta, isotropic=iso)
        np.testing.assert_allclose(shaped_kernel(size, sigma, angle, beta), general, atol=1e-7)
        np.testing.assert_allclose(shaped_kernel(size, sigma, angle, beta, plateau=True), plateau, atol=1e-7)


@pytest.mark.parametrize('size', [7, 13, 21])
@pytest.mark.parametrize('cutoff', [math.pi / 5, math.pi / 3, 2.2, math.pi])
def test_the_sinc_filter_is_basicsr_s(reference, size, cutoff):
    expected = reference.circular_lowpass_kernel(cutoff, size)
    np.testing.assert_allclose(sinc_kernel(size, cutoff), expected, atol=1e-7)


def test_a_sinc_filter_passes_below_its_cutoff_and_stops_above():
    spectrum = np.abs(np.fft.fft2(sinc_kernel(101, math.pi / 2), (256, 256)))
    assert spectrum[0, 0] == pytest.approx(1, abs=1e-5)
    assert spectrum[0, 32] == pytest.approx(1, abs=0.06) and spectrum[0, 96] < 0.06  # pi / 4 and 3 pi / 4


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_drawn_is_in_range_and_recorded(kind):
    records = []
    for seed in range(60):
        kernel, record = draw_kernel(kind, (7, 11), (0.5, 3.0), (0.5, 4.0), np.random.default_rng(seed))
        assert kernel.shape == (record['size'],) * 2 and kernel.sum() == pytest.approx(1, abs=1e-5)
        again = shaped_kernel(
            record['size'], record['sigma'], record['angle'], record.get('beta', 1.0), 'plateau' in kind
        )
        np.testing.assert_allclose(kernel, again, atol=1e-4)
        records.append(record)
    assert {r['size'] for r in records} == {7, 9, 11}
    assert all(0.5 <= s <= 3 for r in records for s in r['sigma'])
    assert all((r['sigma'][0] == r['sigma'][1]) == ('aniso' not in kind) for r in records)
    flatter = sum(r.get('beta', 1.0) > 1 for r in records)
    assert (15 < flatter < 45) if kind not in ('iso', 'aniso') else flatter == 0


def test_cutoffs_go_by_the_size_but_for_the_last_filter():
    drawn = [draw_sinc((7, 21), np.random.default_rng(seed))[1] for seed in range(300)]
    assert min(r['cutoff'] for r in drawn if r['size'] < 13) > math.pi / 3 > min(r['cutoff'] for r in drawn)
    assert min(r['cutoff'] for r in drawn) > math.pi / 5
    last = [draw_sinc((7, 21), np.random.default_rng(seed), last=True)[1]['cutoff'] for seed in range(300)]
    assert min(last) > math.pi / 3 - 1e-4 and max(last) < math.pi
