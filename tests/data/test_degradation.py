import numpy as np
import pytest

from finpercep_plugin.data.degradation import (
    DegradationOptions,
    DegradationStage,
    anisotropic_kernel,
    bicubic,
    degrade,
    jpeg,
)

from .conftest import make_photo

OFF = {'blur_prob': 0.0, 'noise_prob': 0.0, 'jpeg_prob': 0.0}


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


@pytest.fixture
def gt():
    return make_photo(0, 64, 64)


@pytest.mark.parametrize('second_order', [False, True])
def test_same_generator_state_same_lq_and_the_input_is_untouched(gt, second_order):
    options, before = DegradationOptions(second_order=second_order), gt.copy()
    first, record = degrade(gt, 4, options, np.random.default_rng(5))
    again, _ = degrade(gt, 4, options, np.random.default_rng(5))
    other, _ = degrade(gt, 4, options, np.random.default_rng(6))
    assert first.shape == (16, 16, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(gt, before)
    assert ('second' in record) == second_order


def test_bicubic_kind_is_the_antialiased_reduction_alone(gt):
    lq, record = degrade(gt, 4, DegradationOptions(kind='bicubic'), np.random.default_rng(0))
    assert np.array_equal(lq, bicubic(gt, (16, 16))) and record == {'kind': 'bicubic'}


def test_bicubic_filters_before_it_reduces():
    checker = np.indices((64, 64)).sum(0) % 2 * 255
    lq = bicubic(np.repeat(checker[..., None], 3, -1).astype(np.uint8), (16, 16))
    assert np.abs(lq.astype(int) - 128).max() <= 4


def test_the_default_is_mild(gt):
    gt = (0.3 * gt + 0.7 * gt.mean(-1, keepdims=True)).astype(np.uint8)  # the saturation of a photograph
    clean = bicubic(gt, (16, 16))
    worst = [psnr(degrade(gt, 4, DegradationOptions(), np.random.default_rng(i))[0], clean) for i in range(40)]
    assert np.median(worst) > 28 and min(worst) > 24


@pytest.mark.parametrize(
    ('stage', 'key', 'expected'),
    [
        ({**OFF, 'noise_prob': 1, 'noise_sigma': (8, 8), 'poisson_prob': 0, 'grey_prob': 0}, 'noise', 8.0),
        ({**OFF, 'noise_prob': 1, 'noise_sigma': (8, 8), 'poisson_prob': 0, 'grey_prob': 1}, 'noise', 8.0),
        # shot noise of a level of 128 at scale s has variance 128 * s in squared grey levels
        ({**OFF, 'noise_prob': 1, 'poisson_prob': 1, 'poisson_scale': (0.5, 0.5), 'grey_prob': 0}, 'noise', 8.0),
    ],
)
def test_noise_has_the_strength_asked_for(stage, key, expected):
    gt = np.full((256, 256, 3), 128, np.uint8)
    options = DegradationOptions(first=DegradationStage(**stage))
    lq, record = degrade(gt, 4, options, np.random.default_rng(0))
    noise = lq.astype(float) - 128
    assert noise.std() == pytest.approx(expected, rel=0.05)
    assert record['first'][key]['grey'] == np.array_equal(noise[..., 0], noise[..., 1])


def test_blur_and_jpeg_are_recorded_with_their_strengths(gt):
    stage = DegradationStage(blur_prob=1, blur_sigma=(1, 2), anisotropic_prob=1, jpeg_prob=1, jpeg_quality=(30, 30))
    _, record = degrade(gt, 4, DegradationOptions(first=stage), np.random.default_rng(0))
    sigmas = record['first']['blur']['sigma']
    assert record['first']['jpeg'] == 30 and all(1 <= s <= 2 for s in sigmas) and sigmas[0] != sigmas[1]


def test_anisotropic_kernel_has_its_moments():
    kernel = anisotropic_kernel(2.0, 1.0, 0.0)
    y, x = np.mgrid[-6:7, -6:7]
    assert (kernel * x**2).sum() == pytest.approx(4.0, rel=0.03)
    assert (kernel * y**2).sum() == pytest.approx(1.0, rel=0.03)
    turned = anisotropic_kernel(2.0, 1.0, np.pi / 2)
    np.testing.assert_allclose(turned, kernel.T, atol=1e-6)


def test_jpeg_keeps_the_channel_order():
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    assert np.abs(jpeg(red, 90).astype(int) - red).max() < 10


def test_gt_that_is_not_divisible_is_refused(gt):
    with pytest.raises(ValueError, match='63x64 is not divisible by the scale 4'):
        degrade(gt[:, :63], 4, DegradationOptions(), np.random.default_rng(0))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'blur_prob': 1.5}, 'blur_prob: expected a share'),
        ({'blur_sigma': (2, 1)}, 'blur_sigma: expected 0 <= lowest'),
        ({'jpeg_quality': (0, 90)}, 'jpeg_quality 1-100'),
        ({'resize': (0, 1)}, 'resize must be above 0'),
    ],
)
def test_bad_ranges_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DegradationStage(**options)
