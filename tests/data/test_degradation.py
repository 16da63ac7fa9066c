import numpy as np
import pytest

from finpercep_plugin.data.degradation import (
    DegradationOptions,
    DegradationStage,
    FinalStep,
    anisotropic_kernel,
    bicubic,
    degrade,
    jpeg,
    sharpen,
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


KERNELS = {'iso': 0.5, 'plateau_aniso': 0.5}


def test_kinds_of_blur_come_by_their_weights(gt):
    stage = DegradationStage(**{**OFF, 'blur_prob': 1}, kernels=KERNELS, sinc_prob=0.5, kernel_size=(7, 9))
    drawn = [
        degrade(gt, 4, DegradationOptions(first=stage), np.random.default_rng(i))[1]['first']['blur'] for i in range(80)
    ]
    kinds = [blur['kind'] for blur in drawn]
    assert set(kinds) == {'iso', 'plateau_aniso', 'sinc'} and 25 < kinds.count('sinc') < 55
    assert {blur['size'] for blur in drawn} == {7, 9}


@pytest.mark.parametrize(
    ('method', 'size'), [('area', (16, 12)), ('bilinear', (23, 11)), ('bicubic', (23, 11)), ('bicubic', (100, 70))]
)
def test_without_antialias_it_is_torch_s_interpolate(method, size):
    import torch.nn.functional as F
    from torch import from_numpy

    from finpercep_plugin.data.degradation import _resized

    image = np.random.default_rng(0).random((48, 64, 3)).astype(np.float32)
    batch = from_numpy(image).permute(2, 0, 1)[None]
    expected = F.interpolate(batch, (size[1], size[0]), mode=method)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(_resized(image, size, method, antialias=False), expected, atol=2e-5)


def test_resizes_up_down_and_keep_by_their_shares_in_units_of_gt():
    from finpercep_plugin.data.degradation import _resize

    stage = DegradationStage(resize=(0.15, 1.5), resize_of='gt', resize_prob=(0.2, 0.7, 0.1))
    image, factors = np.zeros((64, 80, 3), np.float32), []
    for seed in range(300):
        record = {}
        resized = _resize(image, stage, (20, 16), 4, np.random.default_rng(seed), record)
        factors.append(record['resize']['factor'])
        assert np.abs(np.array(resized.shape[:2]) - factors[-1] * np.array([64, 80])).max() < 0.51
    factors = np.array(factors)
    assert 0.12 < (factors > 1).mean() < 0.28 and 0.05 < (factors == 1).mean() < 0.16
    assert factors.min() < 0.2 and 1.4 < factors.max() <= 1.5


@pytest.mark.parametrize('grey', [0.0, 1.0])
def test_scaled_poisson_noise_is_basicsr_s(grey):
    pytest.importorskip('basicsr')
    from finpercep_plugin.integrations.basicsr import require

    require()
    from basicsr.data.degradations import generate_poisson_noise

    gt = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (512, 2, 3))
    stage = DegradationStage(
        **{**OFF, 'noise_prob': 1}, poisson_prob=1, poisson_scale=(2, 2), poisson_kind='scaled', grey_prob=grey
    )
    lq, _ = degrade(gt, 1, DegradationOptions(first=stage), np.random.default_rng(0))
    np.random.seed(0)
    expected = 255 * generate_poisson_noise(gt[..., ::-1].astype(np.float32) / 255, 2.0, bool(grey))
    ours = lq.astype(float) - gt
    for level in (60, 128, 190):
        assert ours[:, level].std() == pytest.approx(expected[:, level].std(), rel=0.08)


def test_sharpened_is_basicsr_s(gt):
    pytest.importorskip('basicsr')
    from finpercep_plugin.integrations.basicsr import require

    require()
    from basicsr.utils.img_process_util import usm_sharp

    expected = np.rint(np.clip(usm_sharp(gt.astype(np.float32) / 255), 0, 1) * 255)
    assert np.abs(sharpen(gt) - expected).max() <= 1 and np.abs(sharpen(gt).astype(int) - gt).max() > 5
    first = DegradationStage(**OFF)
    soft, raised = (
        degrade(gt, 4, DegradationOptions(first=first, sharpen=s), np.random.default_rng(0))[0] for s in (False, True)
    )
    assert not np.array_equal(soft, raised)


def test_the_last_jpeg_comes_on_either_side_of_the_resize(gt):
    stage = DegradationStage(**{**OFF, 'jpeg_prob': 1}, jpeg_quality=(30, 30), resize=(2, 2))
    for share, last in ((0.0, False), (1.0, True)):
        options = DegradationOptions(first=stage, final=FinalStep(jpeg_last_prob=share))
        lq, record = degrade(gt, 4, options, np.random.default_rng(0))
        assert record['first'].get('jpeg_last', False) is last and record['first']['jpeg'] == 30
        again = np.abs(jpeg(lq, 30).astype(int) - lq).mean()
        assert (again < 0.5) == last  # coding again what was just coded changes next to nothing


def test_the_final_sinc_filter_is_recorded_and_rings(gt):
    options = {'first': DegradationStage(**OFF)}
    plain, _ = degrade(gt, 4, DegradationOptions(**options), np.random.default_rng(1))
    final = FinalStep(sinc_prob=1, kernel_size=(7, 7))
    filtered, record = degrade(gt, 4, DegradationOptions(**options, final=final), np.random.default_rng(1))
    assert record['first']['sinc']['size'] == 7 and not np.array_equal(plain, filtered)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'kernels': {'isotropic': 1}}, 'kernels: expected weights of iso'),
        ({'kernels': {'iso': 0}}, 'not all 0'),
        ({'kernels': KERNELS, 'blur_sigma': (0, 1)}, 'blur_sigma: expected above 0'),
        ({'sinc_prob': 0.1}, 'sinc_prob: needs kernels'),
        ({'beta_plateau': (1.5, 2)}, 'beta_plateau: expected a range around 1'),
        ({'kernel_size': (7, 20)}, 'kernel_size: expected odd'),
        ({'resize_prob': (0, 0, 0)}, 'resize_prob: expected shares'),
        ({'blur_prob': 1.5}, 'blur_prob: expected a share'),
        ({'blur_sigma': (2, 1)}, 'blur_sigma: expected 0 <= lowest'),
        ({'jpeg_quality': (0, 90)}, 'jpeg_quality 1-100'),
        ({'resize': (0, 1)}, 'resize must be above 0'),
    ],
)
def test_bad_ranges_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DegradationStage(**options)


def test_a_bad_final_step_is_refused():
    with pytest.raises(ValueError, match='sinc_prob: expected a share'):
        FinalStep(sinc_prob=2)
