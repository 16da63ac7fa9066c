"""Large pictures in overlapping tiles, put together under Gaussian windows; differentiable."""

from __future__ import annotations

from typing import Callable, List, NamedTuple, Optional

import numpy as np
import torch

__all__ = ['Window', 'check_tiles', 'gaussian_window', 'tiled', 'windows']


class Window(NamedTuple):
    """A tile, in latent cells (or whatever unit the caller counts in)."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, tensor: torch.Tensor, scale: int = 1) -> torch.Tensor:
        """This part of (B, C, h * scale, w * scale)."""
        top, left, height, width = (side * scale for side in self)
        return tensor[..., top : top + height, left : left + width]


def windows(height: int, width: int, tile: int, overlap: int) -> List[Window]:
    """Square tiles that cover height x width; the last of a row or column is moved back to end at the edge.

    One window, the whole, where the area is not larger than a tile's (as SeeSR, OSEDiff and DiT4SR decide it) or
    `tile` is 0. Where a side of the area is shorter than a tile, tiles are of that side, and overlap by at most 3/4.

    Raises:
        ValueError: as `check_tiles`.

    >>> [tuple(window) for window in windows(6, 12, 6, 2)], windows(6, 6, 6, 2)
    ([(0, 0, 6, 6), (0, 4, 6, 6), (0, 6, 6, 6)], [Window(top=0, left=0, height=6, width=6)])
    """
    if tile == 0 or height * width <= tile * tile:
        return [Window(0, 0, height, width)]
    check_tiles(tile, overlap)
    side = min(tile, height, width)
    stride = side - overlap if side == tile else max(side - overlap, side // 4, 1)
    tops, lefts = (_starts(length, side, stride) for length in (height, width))
    return [Window(top, left, side, side) for top in tops for left in lefts]


def check_tiles(tile: int, overlap: int, name: str = 'tile') -> None:
    """Refuse tiles that `windows` could not lay; no tiles (0) are right with any overlap.

    Args:
        tile: side.
        overlap: of neighbours.
        name: of the tile, for the message.

    Raises:
        ValueError: a negative tile, or an overlap that is not in 0..tile - 1.
    """
    if tile < 0:
        raise ValueError(f'{name} must be 0 (none) or a side, got {tile}')
    if tile and not 0 <= overlap < tile:
        raise ValueError(f'{name} = {tile} needs an overlap of 0..{tile - 1}, got {overlap}')


def _starts(length: int, side: int, stride: int) -> List[int]:
    count = max(0, -(-(length - side) // stride)) + 1
    return [min(i * stride, length - side) for i in range(count)]


def gaussian_window(height: int, width: int) -> torch.Tensor:
    """Weights (height, width), float64: a Gaussian of variance 0.01 in units of the side squared.

    Its middle is height / 2 and (width - 1) / 2; the asymmetry is in the public projects' own code, whose results it
    reproduces.
    """
    y = np.exp(-((np.arange(height) - height / 2) ** 2) / height**2 / 0.02)
    x = np.exp(-((np.arange(width) - (width - 1) / 2) ** 2) / width**2 / 0.02)
    return torch.from_numpy(np.outer(y, x) / (0.02 * np.pi))


def tiled(
    function: Callable[[Window], torch.Tensor], height: int, width: int, tile: int, overlap: int, scale: int = 1
) -> torch.Tensor:
    """The results of `function` on `windows(...)`, averaged under Gaussian windows.

    Args:
        function: a window -> (B, C, window.height * scale, window.width * scale).
        height, width: what the windows cover.
        tile: side of a window; 0 for none, then `function` is called once with the whole.
        overlap: of neighbouring windows.
        scale: size of the result / size of what the windows cover.

    Returns:
        (B, C, height * scale, width * scale).
    """
    parts = windows(height, width, tile, overlap)
    if len(parts) == 1:
        return function(parts[0])
    total: Optional[torch.Tensor] = None
    for part in parts:
        out = function(part)
        window = gaussian_window(*out.shape[-2:]).to(out)
        if total is None:
            total = out.new_zeros(*out.shape[:2], height * scale, width * scale)
            weights = out.new_zeros(height * scale, width * scale)
        top, left = part.top * scale, part.left * scale
        place = (..., slice(top, top + out.shape[-2]), slice(left, left + out.shape[-1]))
        total[place] = total[place] + out * window
        weights[place] += window
    return total / weights
