"""Degradation maps as something to look at: colour map, overlay with a legend, grids. numpy and Pillow only."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ['colour_map', 'grid', 'legend', 'overlay']

# Dark blue to violet to orange to pale yellow: lightness rises all the way, so it also reads in grey and with colour-blind eyes.
_STOPS = np.array(
    [[13, 8, 62], [88, 15, 109], [165, 44, 96], [225, 92, 51], [251, 155, 6], [247, 248, 160]], np.float64
)


def colour_map(values: np.ndarray) -> np.ndarray:
    """Colours of a map.

    Args:
        values: (H, W), [0, 1], 1 = degraded; values outside are clipped.

    Returns:
        (H, W, 3) uint8 RGB.

    >>> colour_map(np.array([[0.0, 1.0]])).tolist()
    [[[13, 8, 62], [247, 248, 160]]]
    """
    at = np.clip(np.nan_to_num(np.asarray(values, np.float64)), 0, 1) * (len(_STOPS) - 1)
    below = np.minimum(at.astype(int), len(_STOPS) - 2)
    part = (at - below)[..., None]
    return np.rint(_STOPS[below] * (1 - part) + _STOPS[below + 1] * part).astype(np.uint8)


def overlay(image: np.ndarray, values: np.ndarray, strength: float = 0.85, with_legend: bool = True) -> np.ndarray:
    """The map's colours laid over a greyed picture: the more degraded, the more colour; clean regions show the picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        values: (H, W), [0, 1], 1 = degraded.
        strength: opacity where the map is 1.
        with_legend: add a bar of the scale below the picture.

    Returns:
        (H, W, 3) uint8, or (H + bar, W, 3).

    Raises:
        ValueError: map and image differ in size.
    """
    values = np.clip(np.nan_to_num(np.asarray(values, np.float64)), 0, 1)
    if image.shape[:2] != values.shape:
        raise ValueError(f'image is {image.shape[:2]}, its map {values.shape}: expected the same height and width')
    grey = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    base = 0.35 * image + 0.65 * grey[..., None]
    # The square root makes weak degradation visible without hiding the picture under the strong one.
    opacity = strength * np.sqrt(values)[..., None]
    blended = np.rint(base * (1 - opacity) + colour_map(values) * opacity).astype(np.uint8)
    return np.concatenate([blended, legend(image.shape[1])]) if with_legend else blended


def legend(width: int, height: int = 16) -> np.ndarray:
    """A bar of the colour scale from 0 (clean) to 1 (degraded): (height, width, 3) uint8, with words where they fit."""
    bar = np.full((height, width, 3), 255, np.uint8)
    canvas = Image.fromarray(bar)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    left, right = ('0 clean', 'degraded 1') if width >= 220 else ('0', '1') if width >= 48 else ('', '')
    margins = [int(draw.textlength(text, font=font)) + 6 if text else width // 8 for text in (left, right)]
    draw.text((3, 2), left, fill='black', font=font)
    draw.text((width - margins[1] + 3, 2), right, fill='black', font=font)
    bar = np.array(canvas)
    inner = max(1, width - sum(margins))
    bar[3:-3, margins[0] : margins[0] + inner] = colour_map(np.linspace(0, 1, inner)[None])
    return bar


def grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Pictures in rows and columns on white, each cell as large as the largest picture.

    Args:
        rows: (h, w, 3) uint8 each; rows may be of different lengths.
        gap: white pixels between cells.
    """
    pictures = [p for row in rows for p in row]
    if not pictures:
        raise ValueError('grid of no pictures')
    high, wide = max(p.shape[0] for p in pictures), max(p.shape[1] for p in pictures)
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (high + gap) - gap, columns * (wide + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (high + gap), j * (wide + gap)
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet
