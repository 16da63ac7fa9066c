import numpy as np
import pytest

from finpercep_plugin.data.masks import KINDS, MaskOptions, draw_mask, feather


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_keeps_to_the_area_and_to_its_generator(kind):
    options = MaskOptions(kinds={kind: 1.0}, area=(0.1, 0.3), feather=(0, 0))
    for seed in range(15):
        mask, record = draw_mask(48, 64, options, np.random.default_rng(seed))
        assert mask.shape == (48, 64) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
        assert 0.1 <= (mask > 0).mean() <= 0.3
        assert record['area'] == pytest.approx((mask > 0).mean(), abs=1e-4)
        again, _ = draw_mask(48, 64, options, np.random.default_rng(seed))
        assert np.array_equal(mask, again)


def test_kinds_of_weight_0_are_not_drawn_and_others_are():
    options = MaskOptions(kinds={'ellipse': 1, 'blob': 1, 'stroke': 0})
    kinds = {draw_mask(32, 32, options, np.random.default_rng(i))[1]['kind'] for i in range(40)}
    assert kinds == {'ellipse', 'blob'}


def test_an_area_that_shapes_cannot_meet_falls_back_to_a_blob():
    options = MaskOptions(kinds={'polygon': 1}, area=(0.97, 0.98), shapes=(3, 3), feather=(0, 0))
    mask, record = draw_mask(32, 32, options, np.random.default_rng(0))
    assert record['kind'] == 'blob' and 0.96 < (mask > 0).mean() < 0.99


def test_feather_softens_the_edge_and_keeps_the_mass():
    hard = np.zeros((32, 32), np.uint8)
    hard[8:24, 8:24] = 255
    soft = feather(hard, 2.0)
    assert np.array_equal(feather(hard, 0.0), hard)
    assert soft[16, 16] == 255 and soft[0, 0] == 0 and 100 < soft[16, 8] < 155
    assert soft.sum() == pytest.approx(hard.sum(), rel=0.01)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'kinds': {'circle': 1}}, 'expected weights of ellipse'),
        ({'kinds': {'blob': 0}}, 'not all 0'),
        ({'area': (0.5, 0.2)}, 'mask area'),
        ({'shapes': (0, 1)}, 'mask shapes'),
        ({'feather': (-1, 1)}, 'mask feather'),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MaskOptions(**options)
