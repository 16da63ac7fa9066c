"""Segments by grouping of similar pixels (Felzenszwalb and Huttenlocher 2004); needs no weights."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from skimage.segmentation import felzenszwalb

from finpercep_plugin.registry import SEGMENTS

__all__ = ['FelzenszwalbSegments']


@SEGMENTS.register('felzenszwalb')
class FelzenszwalbSegments:
    """Segments that cover the picture without overlap, in the order of their first pixels.

    Args:
        scale: higher gives larger segments.
        sigma: standard deviation in pixels of the blur before.
        min_area: share of the picture under which a segment is joined with a neighbour.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, scale: float = 100.0, sigma: float = 0.8, min_area: float = 0.02):
        if scale <= 0 or sigma < 0 or not 0 <= min_area <= 1:
            raise ValueError(
                f'expected scale > 0, sigma >= 0 and min_area from 0 to 1, got {scale}, {sigma} and {min_area}'
            )
        self.scale, self.sigma, self.min_area = scale, sigma, min_area

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 3) uint8 each -> (n, H, W) bool each."""
        return [self._segments(picture) for picture in pictures]

    def _segments(self, picture: np.ndarray) -> np.ndarray:
        smallest = round(self.min_area * picture.shape[0] * picture.shape[1])
        labels = felzenszwalb(picture, scale=self.scale, sigma=self.sigma, min_size=smallest, channel_axis=-1)
        numbers, first = np.unique(labels, return_index=True)
        return labels[None] == numbers[np.argsort(first)][:, None, None]
