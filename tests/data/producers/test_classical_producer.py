import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.data.producers.artifacts import ARTIFACTS
from finpercep_plugin.data.producers.classical_producer import ClassicalProducer

from ..conftest import make_photo
from .conftest import wanted


@pytest.fixture
def image():
    return make_photo(1, 48, 48).astype(np.float32) / 255


@pytest.mark.parametrize('name', ARTIFACTS)
def test_artifacts_grow_with_strength_and_are_visible_at_full(name, image):
    def change(strength):
        results = [ARTIFACTS[name](image, strength, np.random.default_rng(s))[0] for s in range(6)]
        assert all(r.shape == image.shape and r.dtype == np.float32 for r in results)
        return np.mean([np.abs(np.clip(r, 0, 1) - image).mean() for r in results])

    mild, strong = change(0.0), change(1.0)
    assert 0.001 < mild < strong
    assert strong > 0.02


@pytest.mark.parametrize('name', ARTIFACTS)
def test_artifacts_depend_on_their_generator_only(name, image):
    first, record = ARTIFACTS[name](image, 0.5, np.random.default_rng(3))
    again, same = ARTIFACTS[name](image.copy(), 0.5, np.random.default_rng(3))
    assert np.array_equal(first, again) and record == same


def test_noise_has_its_recorded_sigma():
    grey = np.full((128, 128, 3), 0.5, np.float32)
    for seed in range(6):
        noisy, record = ARTIFACTS['noise'](grey, 0.4, np.random.default_rng(seed))
        assert (noisy - grey).std() == pytest.approx(record['sigma'], rel=0.03)


def test_stairs_at_full_strength_repeat_pixels():
    ramp = np.repeat(np.linspace(0, 1, 24, dtype=np.float32)[None, :, None], 24, 0).repeat(3, -1)
    result, record = ARTIFACTS['stairs'](ramp, 1.0, np.random.default_rng(0))
    step = record['step']
    assert np.allclose(result[:, 0:step], result[:, :1])
    assert result[0, 0, 0] == ramp[0, step // 2, 0]


def test_without_artifacts_it_is_the_upsampler():
    lq = make_photo(2, 8, 10)
    producer = ClassicalProducer(upsamplers={'lanczos': 1}, number=(0, 0))
    (made,) = producer([wanted(lq)], 4)
    assert np.array_equal(made.sr, np.asarray(Image.fromarray(lq).resize((40, 32), Image.Resampling.LANCZOS)))
    assert made.record == {'upsampler': 'lanczos', 'artifacts': []} and made.lq is None


def test_a_request_gets_the_same_in_any_company():
    producer = ClassicalProducer(number=(1, 3))
    pictures = [make_photo(seed, 8, 10) for seed in range(4)]
    together = producer([wanted(lq, seed) for seed, lq in enumerate(pictures)], 4)
    for seed, made in enumerate(together):
        (alone,) = producer([wanted(pictures[seed], seed)], 4)
        assert np.array_equal(alone.sr, made.sr) and alone.record == made.record
    assert len({str(made.record) for made in together}) == 4


def test_the_record_says_what_was_done():
    producer = ClassicalProducer(artifacts={'jpeg': 1, 'noise': 1}, number=(2, 2), strength=(0.2, 0.4))
    (made,) = producer([wanted(make_photo(2, 8, 8))], 4)
    assert made.sr.shape == (32, 32, 3) and made.sr.dtype == np.uint8
    assert {a['kind'] for a in made.record['artifacts']} == {'jpeg', 'noise'}
    assert all(0.2 <= a['strength'] <= 0.4 for a in made.record['artifacts'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'artifacts': {'nois': 1}}, "no artifact named 'nois'; did you mean 'noise'"),
        ({'upsamplers': {'cubic': 1}}, "no upsampler named 'cubic'; did you mean 'bicubic'"),
        ({'artifacts': {'noise': 0}}, 'not all 0'),
        ({'artifacts': {'noise': 1}, 'number': (1, 2)}, 'number: expected'),
        ({'strength': (0.5, 1.5)}, 'strength: expected'),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClassicalProducer(**options)
