"""Tiles: where they lie, their weights, and that they change nothing that does not look beyond a pixel."""

import math

import pytest
import torch

from finpercep_plugin.generators.tiling import Window, check_tiles, gaussian_window, tiled, windows


def test_windows_by_hand():
    # Stride 4 over 12: 0, 4, and 8 moved back to 6; over 8: 0, and 4 moved back to 2.
    expected = [(top, left, 6, 6) for top in (0, 2) for left in (0, 4, 6)]
    assert [tuple(window) for window in windows(8, 12, 6, 2)] == expected
    assert [tuple(window) for window in windows(4, 8, 4, 0)] == [(0, 0, 4, 4), (0, 4, 4, 4)]
    # 16 / 6 needs 4 tiles with stride 4 (0, 4, 8, 12 moved back to 10); 14 ends exactly with the third.
    assert [window.left for window in windows(6, 16, 6, 2)] == [0, 4, 8, 10]
    assert [window.left for window in windows(6, 14, 6, 2)] == [0, 4, 8]


def test_one_window_where_the_area_is_that_of_a_tile():
    assert windows(6, 6, 6, 2) == [Window(0, 0, 6, 6)]
    assert windows(4, 9, 6, 2) == [Window(0, 0, 4, 9)]  # 36 = 6 * 6, although one side is longer
    assert len(windows(4, 10, 6, 2)) > 1
    assert windows(500, 300, 0, 7) == [Window(0, 0, 500, 300)]


def test_tiles_of_a_strip_have_its_side():
    assert [tuple(window) for window in windows(4, 10, 6, 2)] == [(0, left, 4, 4) for left in (0, 2, 4, 6)]
    # An overlap of 5 would leave a strip of 4 no step at all; a quarter of the side is the least.
    assert [window.left for window in windows(4, 10, 6, 5)] == list(range(7))
    assert [window.left for window in windows(8, 20, 12, 11)] == [0, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize('size', [(7, 30), (31, 8), (20, 20), (1, 101)])
def test_windows_cover_everything(size):
    covered = torch.zeros(size)
    for window in windows(*size, 9, 8):
        assert window.top + window.height <= size[0] and window.left + window.width <= size[1]
        window.cut(covered).add_(1)
    assert covered.min() > 0


def test_gaussian_window_by_hand():
    window = gaussian_window(4, 3)
    # Rows have their middle at 4 / 2 = 2, columns at (3 - 1) / 2 = 1; exponents over 2 * 0.01 and the side squared.
    rows = [math.exp(-((i - 2) ** 2) / 16 / 0.02) for i in range(4)]
    columns = [math.exp(-((i - 1) ** 2) / 9 / 0.02) for i in range(3)]
    expected = torch.tensor([[r * c / (0.02 * math.pi) for c in columns] for r in rows], dtype=torch.float64)
    torch.testing.assert_close(window, expected)
    assert torch.equal(window, window.flip(1)) and not torch.allclose(window, window.flip(0))
    assert window.argmax() == 2 * 3 + 1


def test_two_tiles_by_hand():
    """In the overlap the tiles' values are mixed by their weights, elsewhere each stands alone."""

    def number(window):
        return torch.full((1, 1, 2, 2), float(window.left))

    out = tiled(number, 2, 3, tile=2, overlap=1)
    weight = gaussian_window(2, 2)[0]
    middle = weight[0] / (weight[0] + weight[1])  # of the second tile, value 1, whose left column it is
    assert out[0, 0].tolist() == [pytest.approx([0.0, middle.item(), 1.0])] * 2
    assert middle.item() == pytest.approx(0.5)  # columns are symmetric


def pointwise(x):
    return x.sin() * 2 + x


@pytest.mark.parametrize('scale', [1, 8])
def test_tiles_of_a_pointwise_function_are_the_function(scale):
    x = torch.randn(2, 3, 7, 11, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(x, scale_factor=scale, mode='nearest')
    gradients = []
    for tile in (0, 4):
        source = x.clone().requires_grad_()
        sizes = []

        def function(window, source=source, sizes=sizes):
            sizes.append(tuple(window[2:]))
            part = torch.nn.functional.interpolate(window.cut(source), scale_factor=scale, mode='nearest')
            return pointwise(part)

        out = tiled(function, 7, 11, tile, 2, scale)
        torch.testing.assert_close(out, pointwise(large))
        assert tile or torch.equal(out, pointwise(large))
        out.square().mean().backward()
        gradients.append(source.grad)
        assert sizes == [(7, 11)] if tile == 0 else len(sizes) == 15 and set(sizes) == {(4, 4)}
    torch.testing.assert_close(*gradients)


def test_window_cuts_at_a_scale():
    image = torch.arange(96.0).reshape(1, 1, 8, 12)
    assert torch.equal(Window(1, 2, 2, 3).cut(image, 2), image[..., 2:6, 4:10])


def test_bad_tiles():
    with pytest.raises(ValueError, match=r'tile = 6 needs an overlap of 0..5, got 6'):
        windows(20, 20, 6, 6)
    with pytest.raises(ValueError, match=r'vae_tile = 6 needs an overlap of 0..5, got -1'):
        check_tiles(6, -1, 'vae_tile')
    with pytest.raises(ValueError, match='tile must be 0 .none. or a side, got -8'):
        check_tiles(-8, 0)
    check_tiles(0, 16)
