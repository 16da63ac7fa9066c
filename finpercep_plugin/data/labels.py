"""The degradation label M_gt of a region-swapped sample (paper Eq. 3-4; METHOD.md §3).

    syn  = m * sr + (1 - m) * gt
    M_gt = alpha * clip(pixel / p99_pixel) + (1 - alpha) * clip(feature / p99_feature)        (times the dilated mask)

pixel = |syn - gt|, feature = 1 - cos of what a feature extractor (data/features/) sees in the two.
"""

from __future__ import annotations

import functools
from typing import Mapping

import cv2
import numpy as np

__all__ = [
    'BINS',
    'SCALES',
    'TERMS',
    'combine',
    'cosine_distance',
    'feature_term',
    'from_uint16',
    'histogram',
    'normalise',
    'percentile',
    'pixel_term',
    'swap',
    'to_uint16',
]

TERMS = ('pixel', 'feature')
SCALES: Mapping[str, float] = {'pixel': 1.0, 'feature': 2.0}
"""The raw value that 65535 stands for in a stored term: the largest |syn - gt| and the largest 1 - cos."""
BINS = 1024
"""Bins of a term's histogram, over [0, its scale]."""


def swap(sr: np.ndarray, gt: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """syn = m * sr + (1 - m) * gt.

    Args:
        sr, gt: (H, W, 3) uint8.
        mask: (H, W) uint8, 255 = sr.

    Returns:
        (H, W, 3) float32 in [0, 1], not rounded.
    """
    m = mask.astype(np.float32)[..., None] / 255
    return (m * sr.astype(np.float32) + (1 - m) * gt.astype(np.float32)) / 255


def pixel_term(syn: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """|syn - gt|, mean over channels: (H, W, 3) floats in [0, 1] -> (H, W) float32 in [0, 1]."""
    return np.abs(syn - gt).mean(axis=-1, dtype=np.float32)


def feature_term(syn: np.ndarray, gt: np.ndarray, size: tuple[int, int], eps: float) -> np.ndarray:
    """1 - cos of the two pictures' features at every pixel.

    Args:
        syn, gt: (h, w, C) features of the pictures, by the same extractor (data/features/).
        size: (H, W) of the pictures; a coarser grid is interpolated up.
        eps: the extractor's own.

    Returns:
        (H, W) float32 in [0, 2].
    """
    distance = cosine_distance(syn, gt, eps)
    if distance.shape != tuple(size):
        distance = cv2.resize(distance, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return distance


def cosine_distance(a: np.ndarray, b: np.ndarray, eps: float) -> np.ndarray:
    """1 - (a.b + eps) / sqrt((|a|^2 + eps) (|b|^2 + eps)) over the last axis.

    That is the cosine distance after appending one constant channel sqrt(eps) to both: it is exactly 0 where a = b,
    also where both are flat, stays in [0, 2], and differences far below sqrt(eps) do not count.

    >>> cosine_distance(np.zeros(3), np.zeros(3), eps=1e-3).item()
    0.0
    """
    dot = (a * b).sum(-1) + eps
    norms = np.sqrt(((a * a).sum(-1) + eps) * ((b * b).sum(-1) + eps))
    return np.clip(1 - dot / norms, 0, 2).astype(np.float32)


def normalise(term: np.ndarray, p99: float, weight: float = 1.0) -> np.ndarray:
    """A term divided by its dataset-wide 99th percentile and clipped to [0, 1], times `weight`; zeros where that is 0.

    Never the picture's own extrema: a nearly perfect picture must get a nearly black map.
    """
    if not (p99 > 0 and weight > 0):
        return np.zeros(term.shape, np.float32)
    share = np.multiply(term, np.float32(weight / p99), dtype=np.float32)
    return np.minimum(share, np.float32(weight), out=share)


def combine(
    pixel: np.ndarray | None,
    feature: np.ndarray | None,
    alpha: float,
    p99: Mapping[str, float],
    mask: np.ndarray | None = None,
    dilate: int = 0,
    smooth: float = 0.0,
) -> np.ndarray:
    """M_gt = alpha * normalise(pixel) + (1 - alpha) * normalise(feature).

    Args:
        pixel, feature: (H, W) terms, raw as floats or stored as uint16; None for one whose weight is 0.
        alpha: weight of the pixel term, [0, 1].
        p99: {'pixel': ..., 'feature': ...}, of the raw terms.
        mask: (H, W); when given, the map is 0 beyond `dilate` pixels from where it is above 0, since features look
            around corners.
        smooth: standard deviation in pixels of a Gaussian blur of the map before the mask; 0 for none.

    Returns:
        (H, W) float32 in [0, 1].
    """
    label = None
    for name, term, weight in (('pixel', pixel, alpha), ('feature', feature, 1 - alpha)):
        if term is not None and weight:
            unit = SCALES[name] / 65535 if term.dtype == np.uint16 else 1.0
            share = normalise(term, p99[name] / unit, weight)
            label = share if label is None else np.add(label, share, out=label)
    assert label is not None
    if smooth:
        label = cv2.GaussianBlur(label, (0, 0), smooth, borderType=cv2.BORDER_REFLECT)
    if mask is not None:
        support = mask if mask.dtype == np.uint8 else (mask > 0).astype(np.uint8)
        if dilate:
            support = cv2.dilate(support, _disc(dilate))
        label = cv2.copyTo(label, support)  # 0 where support is
    return label


@functools.lru_cache(maxsize=8)
def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def to_uint16(term: np.ndarray, scale: float) -> np.ndarray:
    """Raw term -> stored: round(65535 * term / scale)."""
    return np.rint(np.clip(term / scale, 0, 1) * 65535).astype(np.uint16)


def from_uint16(stored: np.ndarray, scale: float) -> np.ndarray:
    """Stored term -> raw, float32."""
    return stored.astype(np.float32) * np.float32(scale / 65535)


def histogram(stored: np.ndarray) -> np.ndarray:
    """Counts (BINS,) of a stored term; bin b holds the stored values of 64 b to 64 b + 63."""
    return np.bincount(stored.ravel() >> 6, minlength=BINS)


def percentile(counts: np.ndarray, share: float, scale: float) -> float:
    """The raw value that `share` of all pixels do not exceed, interpolated inside its bin; the lowest bin counts as 0.

    Args:
        counts: (BINS,) histogram, summed over samples.
        share: in (0, 1], 0.99 for the 99th percentile.
        scale: the term's entry in `SCALES`.
    """
    total = counts.cumsum()
    wanted = share * total[-1]
    index = int(np.searchsorted(total, wanted))
    if index == 0:
        return 0.0
    return float((index + (wanted - total[index - 1]) / counts[index]) / BINS * scale)
