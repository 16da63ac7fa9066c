"""The artifacts that super-resolution leaves, as pure functions of one strength.

Each takes an (H, W, 3) float32 RGB picture in [0, 1], a strength in [0, 1] (0 barely visible, 1 gross) and a numpy
generator, and returns the new picture, not clipped, and its parameters.
"""

from __future__ import annotations

import math
from typing import Callable

import cv2
import numpy as np

from finpercep_plugin.data.degradation import jpeg as jpeg_uint8

__all__ = ['ARTIFACTS']

Result = tuple[np.ndarray, dict]


def sharpen(image: np.ndarray, strength: float, rng: np.random.Generator) -> Result:
    """Unsharp mask: halos."""
    amount, sigma = 1.0 + 4.0 * strength, rng.uniform(0.8, 2.0)
    blurred = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return image + np.float32(amount) * (image - blurred), {'amount': amount, 'sigma': sigma}


def ringing(image: np.ndarray, strength: float, rng: np.random.Generator) -> Result:
    """A sharp cut in the spectrum, its overshoot amplified: echoes beside edges."""
    cutoff = rng.uniform(0.14, 0.3)
    gain = 0.8 + 2.2 * strength
    size = 2 * math.ceil(2.5 / cutoff) + 1
    axis = np.arange(size) - size // 2
    tap = 2 * cutoff * np.sinc(2 * cutoff * axis)
    kernel = np.outer(tap, tap)
    cut = cv2.filter2D(image, -1, (kernel / kernel.sum()).astype(np.float32), borderType=cv2.BORDER_REFLECT)
    smooth = cv2.GaussianBlur(cut, (0, 0), 0.35 / cutoff, borderType=cv2.BORDER_REFLECT)
    return cut + np.float32(gain) * (cut - smooth), {'cutoff': cutoff, 'gain': gain}


def jpeg(image: np.ndarray, strength: float, rng: np.random.Generator) -> Result:
    """JPEG blocks."""
    quality = round(45 - 38 * strength)
    data = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return jpeg_uint8(data, quality).astype(np.float32) / 255, {'quality': quality}


def noise(image: np.ndarray, strength: float, rng: np.random.Generator) -> Result:
    """Gaussian noise, white or blotchy, grey or coloured."""
    sigma, grain, grey = (3 + 22 * strength) / 255, rng.choice([0.0, 0.7, 1.2]), rng.random() < 0.5
    field = rng.standard_normal(image.shape[:2] + ((1,) if grey else (3,))).astype(np.float32)
    if grain:
        field = cv2.GaussianBlur(field, (0, 0), grain).reshape(field.shape)
        field /= field.std()
    return image + np.float32(sigma) * field, {'sigma': sigma, 'grain': float(grain), 'grey': bool(grey)}


def smooth(image: np.ndarray, strength: float, rng: np.random.Generator) -> Result:
    """Detail painted away: median, bilateral or Gaussian."""
    method = ('median', 'bilateral', 'gaussian')[rng.integers(3)]
    if method == 'median':
        size = 3 + 2 * round(3 * strength)
        data = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        return cv2.medianBlur(data, size).astype(np.float32) / 255, {'method': method, 'size': size}
    if method == 'bilateral':
        sigma = 0.08 + 0.3 * strength
        result = cv2.bilateralFilter(image, 9, sigma, 1.5 + 3 * strength)
        return result, {'method': method, 'sigma': sigma}
    sigma = 0.8 + 2.2 * strength
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), {'method': method, 'sigma': sigma}


def grid(image: np.ndarray, strength: float, rng: np.random.Generator) -> Result:
    """The lattice of strided deconvolutions and of pixel shuffles, stronger where there is contrast."""
    period, amplitude = int(rng.integers(2, 9)), 0.02 + 0.1 * strength
    kind = ('cosine', 'stripes', 'tile')[rng.choice(3, p=[0.3, 0.2, 0.5])]
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    if kind == 'tile':  # any pattern that repeats, grey or coloured
        tile = rng.standard_normal((period, period, int(rng.choice([1, 3]))))
        wave = ((tile - tile.mean()) / max(tile.std(), 1e-6) / math.sqrt(2))[y % period, x % period]
    elif kind == 'stripes':
        wave = np.cos(2 * math.pi * (x * rng.choice([-1, 0, 1]) + y) / max(period, 3))[..., None]
    else:
        wave = (np.cos(2 * math.pi * x / period) * np.cos(2 * math.pi * y / period))[..., None]
    weight = 0.35 + np.minimum(_contrast(image) * 8, 1.0)
    return image + np.float32(amplitude) * wave.astype(np.float32) * weight[..., None], {
        'pattern': kind,
        'period': period,
        'amplitude': amplitude,
    }


def texture(image: np.ndarray, strength: float, rng: np.random.Generator) -> Result:
    """Invented hair-like detail: noise drawn out along one direction a region."""
    amplitude, length, angle = 0.02 + 0.11 * strength, int(rng.integers(5, 13)), rng.uniform(0, math.pi)
    kernel = np.zeros((length, length), np.float32)
    middle, reach = (length - 1) / 2, (length - 1) / 2
    ends = [(round(middle + s * reach * math.cos(angle)), round(middle + s * reach * math.sin(angle))) for s in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1)
    field = cv2.filter2D(rng.standard_normal(image.shape[:2]).astype(np.float32), -1, kernel)
    field /= field.std()
    weight = 0.25 + np.minimum(_contrast(image) * 10, 1.0)
    record = {'amplitude': amplitude, 'length': length, 'angle': angle}
    return image + (np.float32(amplitude) * field * weight)[..., None], record


def colour(image: np.ndarray, strength: float, rng: np.random.Generator) -> Result:
    """Patches of wrong colour."""
    reach = 0.04 + 0.16 * strength
    shift = rng.uniform(-1, 1, 3)
    shift = (shift - 0.6 * shift.mean()) / np.abs(shift).max() * reach
    sigma = min(image.shape[:2]) * rng.uniform(0.08, 0.2)
    field = cv2.GaussianBlur(rng.standard_normal(image.shape[:2]).astype(np.float32), (0, 0), sigma)
    field = np.clip(0.5 + field / field.std(), 0, 1)
    return image + field[..., None] * shift.astype(np.float32), {'shift': shift.round(4).tolist(), 'patch': sigma}


def stairs(image: np.ndarray, strength: float, rng: np.random.Generator) -> Result:
    """Aliasing: every n-th pixel kept and repeated, blended in."""
    step, share = int(rng.integers(2, 5)), 0.35 + 0.65 * strength
    size = image.shape[1], image.shape[0]
    kept = image[step // 2 :: step, step // 2 :: step]
    blocks = cv2.resize(kept, size, interpolation=cv2.INTER_NEAREST)
    return (1 - share) * image + share * blocks, {'step': step, 'share': share}


def _contrast(image: np.ndarray) -> np.ndarray:
    """Local standard deviation of the green channel, (H, W)."""
    grey = np.ascontiguousarray(image[..., 1])
    mean = cv2.GaussianBlur(grey, (0, 0), 3.0, borderType=cv2.BORDER_REFLECT)
    square = cv2.GaussianBlur(grey * grey, (0, 0), 3.0, borderType=cv2.BORDER_REFLECT)
    return np.sqrt(np.maximum(square - mean * mean, 0))


ARTIFACTS: dict[str, Callable[[np.ndarray, float, np.random.Generator], Result]] = {
    'sharpen': sharpen,
    'ringing': ringing,
    'jpeg': jpeg,
    'noise': noise,
    'smooth': smooth,
    'grid': grid,
    'texture': texture,
    'colour': colour,
    'stairs': stairs,
}
