import numpy as np
import pytest

from finpercep_plugin.data.masks import KINDS, MaskOptions, draw_mask, feather, wants_segments


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


SEMANTIC = {'kinds': {'semantic': 1, 'blob': 1}, 'segments': {'type': 'felzenszwalb'}, 'feather': (0, 0)}


def squares(*sides: int) -> np.ndarray:
    """(n, 40, 40) bool, one square below and right of the other; a side of 4 is 0.01 of the picture."""
    segments, start = np.zeros((len(sides), 40, 40), bool), 0
    for segment, side in zip(segments, sides):
        segment[start : start + side, start : start + side] = True
        start += side
    return segments


def test_a_semantic_mask_is_a_union_of_segments_that_fits():
    segments = squares(8, 8, 4, 20)  # 0.04, 0.04, 0.01, 0.25
    options = MaskOptions(**SEMANTIC, area=(0.07, 0.1), shapes=(1, 3))
    seen = set()
    for seed in range(40):
        mask, record = draw_mask(40, 40, options, np.random.default_rng(seed), segments)
        inside = [bool(mask[segment].all()) for segment in segments]
        assert record['kind'] == 'semantic' and 'instead_of' not in record and set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(mask > 0, segments[inside].any(0))
        assert record['shapes'] == sum(inside) and record['area'] == pytest.approx((mask > 0).mean(), abs=1e-5)
        np.testing.assert_array_equal(mask, draw_mask(40, 40, options, np.random.default_rng(seed), segments)[0])
        seen.add(tuple(inside))
    assert seen == {(True, True, False, False), (True, True, True, False)}


def test_segments_inside_others_and_copies_are_not_counted():
    segments = np.stack([squares(12)[0]] * 3 + [squares(4)[0]])
    options = MaskOptions(**SEMANTIC, area=(0.05, 0.1), shapes=(3, 3))
    mask, record = draw_mask(40, 40, options, np.random.default_rng(1), segments)
    assert (mask > 0).sum() == 144 and record['shapes'] in (1, 2)


@pytest.mark.parametrize('segments', [squares(4, 36), squares()], ids=['too small, too large', 'none'])
@pytest.mark.parametrize('kinds', [{'semantic': 1}, {'semantic': 1, 'ellipse': 1}])
def test_where_no_segments_fit_random_shapes_do_and_the_record_says_so(segments, kinds):
    options = MaskOptions(**{**SEMANTIC, 'kinds': kinds}, area=(0.1, 0.3))
    for seed in range(5):
        mask, record = draw_mask(40, 40, options, np.random.default_rng(seed), segments)
        assert record['kind'] in ({'ellipse'} if 'ellipse' in kinds else set(KINDS))
        assert record['instead_of'] == 'semantic' and 0.1 <= (mask > 0).mean() <= 0.3


def test_a_semantic_edge_is_feathered_too():
    options = MaskOptions(**{**SEMANTIC, 'feather': (2, 2)}, area=(0.1, 0.3))
    mask, record = draw_mask(40, 40, options, np.random.default_rng(0), squares(20))
    assert record['feather'] == 2 and record['area'] == 0.25 and 0 < mask[10, 20] < mask[10, 19] < 255


@pytest.mark.parametrize('segments', [None, {'type': 'felzenszwalb'}])
def test_shapes_are_the_same_whatever_semantic_weighs(segments):
    plain = MaskOptions()
    for weight in (0, 2) if segments else (0,):
        both = MaskOptions(kinds={**plain.kinds, 'semantic': weight}, segments=segments)
        for seed in range(20):
            mask, record = draw_mask(32, 32, plain, np.random.default_rng(seed))
            again, same = draw_mask(32, 32, both, np.random.default_rng(seed))
            assert np.array_equal(mask, again) and record == same


def test_how_often_segments_are_wanted_is_the_share_of_their_weight():
    def wanted(**kinds):
        options = MaskOptions(kinds=kinds, segments={'type': 'sam'})
        return sum(wants_segments(options, np.random.default_rng(i)) for i in range(400)) / 400

    assert wanted(blob=1, semantic=3) == pytest.approx(0.75, abs=0.05)
    assert wanted(semantic=2, blob=0) == 1 and wanted(blob=1, semantic=0) == wanted(blob=1) == 0


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
        ({'kinds': {'semantic': 1}}, 'mask segments: kinds weighs semantic, which needs a section'),
        ({'kinds': {'blob': 0}}, 'not all 0'),
        ({'area': (0.5, 0.2)}, 'mask area'),
        ({'shapes': (0, 1)}, 'mask shapes'),
        ({'feather': (-1, 1)}, 'mask feather'),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MaskOptions(**options)
