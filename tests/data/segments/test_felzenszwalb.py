import numpy as np
import pytest

from finpercep_plugin.config import ConfigError, build
from finpercep_plugin.registry import SEGMENTS

from ..conftest import make_photo

pytest.importorskip('skimage')


def segmenter(**options):
    return build(SEGMENTS, {'type': 'felzenszwalb', **options}, '$.mask.segments')


def test_flat_quarters_are_found_in_the_order_of_their_first_pixels():
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:20, 20:], picture[20:, :20], picture[20:, 20:] = 80, 160, 240
    (segments,) = segmenter(sigma=0)([picture])
    assert segments.shape == (4, 40, 40) and segments.dtype == bool
    corners = [[int(s[y, x]) for y in (0, 39) for x in (0, 39)] for s in segments]
    assert corners == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert segments.sum() == 1600


def test_segments_cover_the_picture_once_and_are_the_same_again():
    pictures = [make_photo(0), make_photo(1, 48, 96)]
    for found, again, picture in zip(segmenter()(pictures), segmenter()(pictures), pictures):
        assert found.shape[1:] == picture.shape[:2] and (found.sum(0) == 1).all()
        assert found.mean((1, 2)).min() >= 0.019 and len(found) > 1
        np.testing.assert_array_equal(found, again)


def test_higher_scale_makes_fewer():
    few, many = (len(segmenter(scale=s, min_area=0.001)([make_photo(0)])[0]) for s in (1000, 20))
    assert few < many


def test_values_out_of_range():
    with pytest.raises(ConfigError, match=r'\$.mask.segments: expected scale > 0'):
        segmenter(min_area=2)
