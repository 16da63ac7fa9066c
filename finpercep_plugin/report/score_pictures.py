"""Pictures of scored items, small enough for a page: thumbnails, maps to lay over them, the worst region as it is."""

from __future__ import annotations

import base64
import dataclasses
import io

import cv2
import numpy as np
from PIL import Image

from finpercep_plugin.visual import colour_map

__all__ = ['CROP', 'Shot', 'jpeg', 'map_png', 'shot_of', 'shrunk', 'worst_region']

CROP = 96  # side of a worst region, in the picture's own pixels
_LEVELS = 32  # of a map's colours; more cannot be told apart over a picture


@dataclasses.dataclass(frozen=True)
class Shot:
    """What the page shows of one picture; `map`, `crop` and `box` are '' and None without a map.

    Args:
        thumb: data: URI.
        size: (width, height) of the picture.
        map: data: URI of a transparent picture of the map's colours.
        crop: data: URI of the worst region.
        box: (left, top, width, height) of that, as shares of the picture.
    """

    thumb: str
    size: tuple[int, int]
    map: str = ''
    crop: str = ''
    box: tuple[float, float, float, float] | None = None


def shot_of(image: np.ndarray, values: np.ndarray | None, side: int) -> Shot:
    """Args:
    image: (H, W, 3) uint8.
    values: its map (H, W) uint8, 255 = degraded, or None.
    side: longer side of the thumbnail.
    """
    h, w = image.shape[:2]
    thumb = jpeg(shrunk(image, side))
    if values is None:
        return Shot(thumb, (w, h))
    top, left, height, width = worst_region(values)
    crop = jpeg(image[top : top + height, left : left + width], 88)
    return Shot(thumb, (w, h), map_png(values, side // 2), crop, (left / w, top / h, width / w, height / h))


def worst_region(values: np.ndarray, side: int = CROP) -> tuple[int, int, int, int]:
    """The square with the highest mean of a map (H, W).

    Returns:
        top, left, height, width; all of the map where it is smaller.

    >>> worst_region(np.pad(np.ones((2, 2)), ((5, 3), (1, 7))), 2)
    (5, 1, 2, 2)
    """
    h, w = values.shape
    height, width = min(side, h), min(side, w)
    total = cv2.integral(np.asarray(values, np.float64))
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    top, left = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return int(top), int(left), height, width


def jpeg(image: np.ndarray, quality: int = 80) -> str:
    """(h, w, 3) uint8 as a data: URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format='JPEG', quality=quality, optimize=True)
    return f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def map_png(values: np.ndarray, side: int) -> str:
    """A map (H, W) uint8 as the colours of degradation, clean parts transparent, as a data: URI."""
    levels = np.rint(shrunk(values, side) / 255 * (_LEVELS - 1)).astype(np.uint8)
    at = np.linspace(0, 1, _LEVELS)
    picture = Image.frombytes('P', levels.shape[::-1], levels.tobytes())
    picture.putpalette(colour_map(at[None])[0].tobytes())
    buffer = io.BytesIO()
    # The square root makes weak degradation visible without hiding the picture under the strong one, as in overlays.
    alpha = bytes(np.rint(255 * 0.85 * np.sqrt(at)).astype(np.uint8))
    picture.save(buffer, format='PNG', optimize=True, transparency=alpha, bits=5)
    return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """With a longer side of at most `side`."""
    h, w = image.shape[:2]
    scale = side / max(h, w)
    if scale >= 1:
        return image
    return cv2.resize(image, (max(1, round(w * scale)), max(1, round(h * scale))), interpolation=cv2.INTER_AREA)
