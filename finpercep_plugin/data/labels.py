"""The degradation label M_gt of a region-swapped sample (paper Eq. 3-4; METHOD.md §3).

    syn  = m * sr + (1 - m) * gt
    M_gt = alpha * clip(pixel / p99_pixel) + (1 - alpha) * clip(feature / p99_feature)        (times the dilated mask)

A per-pixel descriptor of another kind plugs in as a function image -> (h, w, C); see `EXTRACTORS`.
"""

from __future__ import annotations

import functools
import math
from typing import Callable, Mapping

import cv2
import numpy as np

__all__ = [
    'BINS',
    'EXTRACTORS',
    'SCALES',
    'TERMS',
    'combine',
    'cosine_distance',
    'feature_term',
    'from_uint16',
    'gabor_features',
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

Extractor = Callable[[np.ndarray], np.ndarray]


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


def feature_term(syn: np.ndarray, gt: np.ndarray, extractor: Extractor) -> np.ndarray:
    """1 - cos of the two pictures' features at every pixel.

    Args:
        syn, gt: (H, W, 3) floats in [0, 1].
        extractor: picture -> (h, w, C); a coarser grid is interpolated up.

    Returns:
        (H, W) float32 in [0, 2].
    """
    distance = cosine_distance(extractor(syn), extractor(gt))
    if distance.shape != syn.shape[:2]:
        distance = cv2.resize(distance, (syn.shape[1], syn.shape[0]), interpolation=cv2.INTER_LINEAR)
    return distance


def cosine_distance(a: np.ndarray, b: np.ndarray, eps: float = 1e-3) -> np.ndarray:
    """1 - (a.b + eps) / sqrt((|a|^2 + eps) (|b|^2 + eps)) over the last axis.

    That is the cosine distance after appending one constant channel sqrt(eps) to both: it is exactly 0 where a = b,
    also where both are flat, stays in [0, 2], and differences far below sqrt(eps) do not count. The default suits
    `gabor_features`.

    >>> cosine_distance(np.zeros(3), np.zeros(3)).item()
    0.0
    """
    dot = (a * b).sum(-1) + eps
    norms = np.sqrt(((a * a).sum(-1) + eps) * ((b * b).sum(-1) + eps))
    return np.clip(1 - dot / norms, 0, 2).astype(np.float32)


def gabor_features(image: np.ndarray) -> np.ndarray:
    """A fixed bank: local energies of 4 orientations at 3 scales, a signed gradient, and two opponent colours.

    The energy is the modulus of the even and odd Gabor response on luma, averaged over about a wavelength, so that it
    tells texture and sharpness, not the phase of every edge. Each scale is an octave below the one before and weighs
    half of it, against the 1/f spectrum of photographs, where fine detail would otherwise hardly count. The colours
    weigh little, or a saturated surface would hide its lost texture.

    Args:
        image: (H, W, 3) floats in [0, 1].

    Returns:
        (H, W, 16) float32.
    """
    image = image.astype(np.float32)
    luma = image @ np.array([0.299, 0.587, 0.114], np.float32)
    height, width = luma.shape
    channels = []
    for octave in range(3):
        size = max(1, round(width / 2**octave)), max(1, round(height / 2**octave))
        level = luma if octave == 0 else cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
        for even, odd in _gabor_bank():
            energy = np.hypot(
                cv2.filter2D(level, -1, even, borderType=cv2.BORDER_REFLECT),
                cv2.filter2D(level, -1, odd, borderType=cv2.BORDER_REFLECT),
            )
            energy = cv2.GaussianBlur(energy, (5, 5), 1.0, borderType=cv2.BORDER_REFLECT) * 0.5**octave
            channels.append(
                energy if octave == 0 else cv2.resize(energy, (width, height), interpolation=cv2.INTER_LINEAR)
            )
    smooth = cv2.GaussianBlur(image, (0, 0), 1.5, borderType=cv2.BORDER_REFLECT)
    grey = smooth.mean(-1)
    channels += [cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=0.25), cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=0.25)]
    channels += [
        0.15 * (smooth[..., 0] - smooth[..., 1]),
        0.15 * (smooth[..., 2] - 0.5 * (smooth[..., 0] + smooth[..., 1])),
    ]
    return np.stack(channels, axis=-1)


@functools.lru_cache(maxsize=1)
def _gabor_bank(wavelength: float = 4.0, sigma: float = 1.6, radius: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """Even and odd kernels of 4 orientations, without response to a constant, unit gain at their own frequency."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    window = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    bank = []
    for k in range(4):
        phase = 2 * math.pi / wavelength * (x * math.cos(k * math.pi / 4) + y * math.sin(k * math.pi / 4))
        even = window * (np.cos(phase) - (window * np.cos(phase)).sum() / window.sum())
        odd = window * np.sin(phase)
        bank.append(tuple((2 * kernel / (window.sum())).astype(np.float32) for kernel in (even, odd)))
    return bank


EXTRACTORS: dict[str, Extractor | None] = {'gabor': gabor_features, 'none': None}
"""The feature term by name; None leaves it out (all zeros)."""


def normalise(term: np.ndarray, p99: float) -> np.ndarray:
    """A raw term divided by its dataset-wide 99th percentile and clipped to [0, 1]; zeros where that is 0.

    Never the picture's own extrema: a nearly perfect picture must get a nearly black map.
    """
    return np.clip(term / p99, 0, 1).astype(np.float32) if p99 > 0 else np.zeros(term.shape, np.float32)


def combine(
    pixel: np.ndarray,
    feature: np.ndarray,
    alpha: float,
    p99: Mapping[str, float],
    mask: np.ndarray | None = None,
    dilate: int = 0,
    smooth: float = 0.0,
) -> np.ndarray:
    """M_gt = alpha * normalise(pixel) + (1 - alpha) * normalise(feature).

    Args:
        pixel, feature: (H, W) raw terms.
        alpha: weight of the pixel term, [0, 1].
        p99: {'pixel': ..., 'feature': ...}.
        mask: (H, W); when given, the map is 0 beyond `dilate` pixels from where it is above 0, since features look
            around corners.
        smooth: standard deviation in pixels of a Gaussian blur of the map before the mask; 0 for none.

    Returns:
        (H, W) float32 in [0, 1].
    """
    label = alpha * normalise(pixel, p99['pixel']) + (1 - alpha) * normalise(feature, p99['feature'])
    if smooth:
        label = cv2.GaussianBlur(label, (0, 0), smooth, borderType=cv2.BORDER_REFLECT)
    if mask is not None:
        support = (mask > 0).astype(np.uint8)
        if dilate:
            disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * dilate + 1, 2 * dilate + 1))
            support = cv2.dilate(support, disc)
        label = label * support
    return label.astype(np.float32)


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
