import numpy as np
import pytest

from finpercep_plugin.visual import colour_map, grid, legend, overlay


def test_colours_are_interpolated_and_get_lighter():
    # 0.1 lies half way between the first two of six stops: (13 + 88) / 2, (8 + 15) / 2, (62 + 109) / 2, to the even number.
    assert colour_map(np.array([[0.1]])).tolist() == [[[50, 12, 86]]]
    ramp = colour_map(np.linspace(-0.5, 1.5, 64)[None]).astype(float) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(ramp[0]) >= 0).all() and ramp[0, 0] < 20 and ramp[0, -1] > 230


def test_overlay_shows_the_picture_where_clean_and_the_colour_where_degraded():
    image = np.full((64, 64, 3), 100, np.uint8)
    values = np.zeros((64, 64))
    values[:32] = 1
    shown = overlay(image, values, strength=1.0, with_legend=False)
    assert (shown[32:] == 100).all()
    assert (shown[:32] == colour_map(np.ones((1, 1)))[0, 0]).all()
    assert overlay(image, values).shape == (80, 64, 3)


def test_overlay_refuses_another_size():
    with pytest.raises(ValueError, match='same height and width'):
        overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5)))


@pytest.mark.parametrize('width', [1, 8, 48, 220, 500])
def test_legend_fits_any_width(width):
    bar = legend(width)
    assert bar.shape == (16, width, 3)
    assert (bar[8] != 255).any()


def test_grid_places_pictures_on_white():
    small, large = np.zeros((2, 2, 3), np.uint8), np.full((3, 4, 3), 9, np.uint8)
    sheet = grid([[small, large], [large]], gap=1)
    assert sheet.shape == (7, 9, 3)
    assert (sheet[:2, :2] == 0).all() and (sheet[:3, 5:9] == 9).all() and (sheet[4:, :4] == 9).all()
    assert (sheet[3] == 255).all() and (sheet[4:, 5:] == 255).all()
