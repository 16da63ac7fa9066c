"""Blur kernels: Gaussian, generalized Gaussian, plateau and sinc (Real-ESRGAN, arXiv 2107.10833, §3.2-3.3).

Each is (k, k) float32 and sums to 1; they are those of BasicSR's `data/degradations.py` for the same parameters.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ['KINDS', 'draw_kernel', 'draw_sinc', 'shaped_kernel', 'sinc_kernel']

KINDS = ('iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso')


def shaped_kernel(
    size: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0, plateau: bool = False
) -> np.ndarray:
    """exp(-q^beta / 2), or 1 / (1 + q^beta) of a plateau, where q is the squared distance in units of the sigmas.

    Args:
        size: side, odd.
        sigma: in pixels, along the two axes.
        angle: that the axes are turned by, in radians.
        beta: the shape; 1 is the Gaussian, more is flatter.
        plateau: which of the two.

    >>> shaped_kernel(21, (2, 1)).sum().round(5).item()
    1.0
    """
    radius = size // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    distance = ((u / sigma[0]) ** 2 + (v / sigma[1]) ** 2) ** beta
    kernel = 1 / (1 + distance) if plateau else np.exp(-0.5 * distance)
    return (kernel / kernel.sum()).astype(np.float32)


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """The circular low-pass filter, cut off at the window's edge: ringing and overshoot.

    Args:
        size: side, odd.
        cutoff: radians a pixel, up to pi.
    """
    radius = size // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    distance = np.hypot(x, y)
    distance[radius, radius] = 1
    kernel = cutoff * _bessel_j1(cutoff * distance) / (2 * math.pi * distance)
    kernel[radius, radius] = cutoff**2 / (4 * math.pi)
    return (kernel / kernel.sum()).astype(np.float32)


def draw_kernel(
    kind: str,
    sizes: tuple[int, int],
    sigma: tuple[float, float],
    beta: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, dict]:
    """A kernel of the kind, and its parameters for the record.

    Args:
        kind: of `KINDS`.
        sizes: smallest and largest side.
        sigma: range.
        beta: range around 1, either side of which is as likely; unused by 'iso' and 'aniso'.
        rng: of every draw.
    """
    size = _draw_size(sizes, rng)
    first = rng.uniform(*sigma)
    second, angle = (rng.uniform(*sigma), rng.uniform(-math.pi, math.pi)) if 'aniso' in kind else (first, 0.0)
    record = {'kind': kind, 'size': size, 'sigma': [round(first, 4), round(second, 4)], 'angle': round(angle, 4)}
    shape = 1.0
    if kind not in ('iso', 'aniso'):
        shape = rng.uniform(beta[0], 1) if rng.random() < 0.5 else rng.uniform(1, beta[1])
        record['beta'] = round(shape, 4)
    return shaped_kernel(size, (first, second), angle, shape, 'plateau' in kind), record


def draw_sinc(sizes: tuple[int, int], rng: np.random.Generator, last: bool = False) -> tuple[np.ndarray, dict]:
    """A sinc kernel, and its parameters for the record.

    Args:
        sizes: smallest and largest side.
        rng: of every draw.
        last: the final filter's range of cutoffs, which does not go by the size.
    """
    size = _draw_size(sizes, rng)
    cutoff = rng.uniform(math.pi / (3 if last or size < 13 else 5), math.pi)
    return sinc_kernel(size, cutoff), {'kind': 'sinc', 'size': size, 'cutoff': round(cutoff, 4)}


def _draw_size(sizes: tuple[int, int], rng: np.random.Generator) -> int:
    """Odd, each as likely."""
    low, high = sizes[0] // 2, sizes[1] // 2
    return 2 * int(rng.integers(low, high + 1)) + 1


def _bessel_j1(x: np.ndarray) -> np.ndarray:
    """J_1(x) = mean over t of cos(t - x sin t); a mean over 256 points of the circle is exact for |x| < 200."""
    t = 2 * math.pi * np.arange(256) / 256
    return np.cos(t - x[..., None] * np.sin(t)).mean(-1)
