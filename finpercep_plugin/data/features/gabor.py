"""A fixed filter bank as a feature extractor; needs no weights."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np

from finpercep_plugin.registry import FEATURES

__all__ = ['GaborFeatures', 'gabor_features']


@FEATURES.register('gabor')
class GaborFeatures:
    """`gabor_features` of each picture.

    Attributes:
        eps: of the cosine distance: energies and gradients under 0.03 are hardly seen either.
    """

    eps = 1e-3

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) float32 in [0, 1] -> (B, H, W, 16) float32."""
        return np.stack([gabor_features(picture) for picture in pictures])


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
