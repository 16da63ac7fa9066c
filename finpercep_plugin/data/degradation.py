"""gt -> lq: blur, resize, noise and JPEG of random strength, once or twice: Real-ESRGAN (arXiv 2107.10833, §3)."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import cv2
import numpy as np
from PIL import Image

__all__ = ['DegradationOptions', 'DegradationStage', 'anisotropic_kernel', 'bicubic', 'degrade', 'jpeg']

_RESIZES = {'area': cv2.INTER_AREA, 'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC}


@dataclasses.dataclass(frozen=True)
class DegradationStage:
    """Ranges (lowest, highest) of one round of blur, resize, noise and JPEG.

    Attributes:
        blur_prob, blur_sigma: Gaussian blur, sigma in gt pixels of a 4 times reduction.
        anisotropic_prob: share of the blurs with two sigmas and a rotation.
        resize: factor of an intermediate resize; (1, 1) leaves it out.
        noise_prob, noise_sigma: Gaussian noise, sigma in grey levels of 255.
        poisson_prob, poisson_scale: share of the noises that are shot noise, and its scale.
        grey_prob: share of the noises that are equal in the three channels.
        jpeg_prob, jpeg_quality: JPEG, quality 1-100.
    """

    blur_prob: float = 0.7
    blur_sigma: tuple[float, float] = (0.2, 1.2)
    anisotropic_prob: float = 0.4
    resize: tuple[float, float] = (1.0, 1.0)
    noise_prob: float = 0.4
    noise_sigma: tuple[float, float] = (0.5, 4.0)
    poisson_prob: float = 0.4
    poisson_scale: tuple[float, float] = (0.02, 0.4)
    grey_prob: float = 0.4
    jpeg_prob: float = 0.4
    jpeg_quality: tuple[int, int] = (70, 95)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith('_prob') and not 0 <= value <= 1:
                raise ValueError(f'{field.name}: expected a share from 0 to 1, got {value}')
            if isinstance(value, tuple) and not 0 <= value[0] <= value[1]:
                raise ValueError(f'{field.name}: expected 0 <= lowest <= highest, got {value}')
        if self.resize[0] <= 0 or not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise ValueError(f'resize must be above 0 and jpeg_quality 1-100: {self.resize}, {self.jpeg_quality}')


@dataclasses.dataclass(frozen=True)
class DegradationOptions:
    """How lq is made from gt.

    Attributes:
        kind: 'bicubic': antialiased reduction alone; 'random': blur, resize, noise, JPEG, reduction.
        first: ranges of the first round. The defaults are mild: an x4 SR model can still restore most of gt.
        second_order: a second round follows, as in Real-ESRGAN.
        second: ranges of the second round.
    """

    kind: Literal['bicubic', 'random'] = 'random'
    first: DegradationStage = DegradationStage()
    second_order: bool = False
    second: DegradationStage = DegradationStage(blur_sigma=(0.2, 0.8), resize=(0.6, 1.2))


def degrade(
    gt: np.ndarray, scale: int, options: DegradationOptions, rng: np.random.Generator
) -> tuple[np.ndarray, dict]:
    """lq of a picture, and the record of what was drawn.

    Noise and JPEG act on the reduced picture and blur before it, so that their strengths mean the same at any scale.

    Args:
        gt: (H, W, 3) uint8 RGB, H and W divisible by `scale`.
        rng: every draw comes from here.

    Returns:
        lq: (H / scale, W / scale, 3) uint8.
        record: JSON-ready.
    """
    height, width = gt.shape[0] // scale, gt.shape[1] // scale
    if (height * scale, width * scale) != gt.shape[:2]:
        raise ValueError(f'gt of {gt.shape[1]}x{gt.shape[0]} is not divisible by the scale {scale}')
    if options.kind == 'bicubic':
        return bicubic(gt, (width, height)), {'kind': 'bicubic'}
    record: dict = {'kind': 'random', 'first': {}}
    image = _blur(gt.astype(np.float32) / 255, options.first, scale / 4, rng, record['first'])
    image = _resize(image, options.first, width, height, rng, record['first'])
    image = _noise_and_jpeg(image, options.first, rng, record['first'])
    if options.second_order:
        record['second'] = {}
        image = _blur(image, options.second, image.shape[1] / width / 4, rng, record['second'])
        image = _resize(image, options.second, width, height, rng, record['second'])
        image = _noise_and_jpeg(image, options.second, rng, record['second'])
    lq = bicubic(_to_uint8(image), (width, height))
    return lq, record


def bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Antialiased bicubic resize of (H, W, 3) uint8 to (width, height), as MATLAB's imresize up to rounding."""
    if (image.shape[1], image.shape[0]) == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def anisotropic_kernel(sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """A normalised Gaussian kernel with two sigmas (pixels), turned by `angle` radians; (k, k) float32.

    >>> anisotropic_kernel(1, 1, 0.3).sum().round(5).item()
    1.0
    """
    radius = max(1, math.ceil(3 * max(sigma_x, sigma_y)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = np.exp(-0.5 * ((u / sigma_x) ** 2 + (v / sigma_y) ** 2))
    return (kernel / kernel.sum()).astype(np.float32)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB through JPEG of the quality 1-100."""
    done, data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    assert done
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def _blur(
    image: np.ndarray, stage: DegradationStage, relative: float, rng: np.random.Generator, record: dict
) -> np.ndarray:
    if rng.random() >= stage.blur_prob:
        return image
    sigma = rng.uniform(*stage.blur_sigma)
    other, angle = (
        (rng.uniform(*stage.blur_sigma), rng.uniform(0, math.pi))
        if rng.random() < stage.anisotropic_prob
        else (sigma, 0.0)
    )
    record['blur'] = {'sigma': [round(sigma, 4), round(other, 4)], 'angle': round(angle, 4)}
    kernel = anisotropic_kernel(max(sigma * relative, 0.05), max(other * relative, 0.05), angle)
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT)


def _resize(
    image: np.ndarray, stage: DegradationStage, width: int, height: int, rng: np.random.Generator, record: dict
) -> np.ndarray:
    """To `resize` times the size of lq, by a method drawn anew."""
    factor = rng.uniform(*stage.resize)
    method = ('area', 'bilinear', 'bicubic')[rng.integers(3)]
    record['resize'] = {'method': method, 'factor': round(factor, 4)}
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if size[0] < image.shape[1] and method != 'area':  # cv2's own bilinear and bicubic do not filter before they reduce
        resample = Image.Resampling.BICUBIC if method == 'bicubic' else Image.Resampling.BILINEAR
        return np.stack(
            [np.asarray(Image.fromarray(np.ascontiguousarray(image[..., c])).resize(size, resample)) for c in range(3)],
            -1,
        )
    return cv2.resize(image, size, interpolation=_RESIZES[method])


def _noise_and_jpeg(image: np.ndarray, stage: DegradationStage, rng: np.random.Generator, record: dict) -> np.ndarray:
    if rng.random() < stage.noise_prob:
        grey = rng.random() < stage.grey_prob
        shape = image.shape[:2] + ((1,) if grey else (3,))
        if rng.random() < stage.poisson_prob:
            strength = rng.uniform(*stage.poisson_scale)
            record['noise'] = {'kind': 'poisson', 'scale': round(strength, 4), 'grey': bool(grey)}
            level = np.clip(image.mean(-1, keepdims=True) if grey else image, 0, 1).astype(np.float64)
            peak = 255 / max(strength, 1e-3)
            noise = (rng.poisson(level * peak) / peak - level).astype(np.float32)
        else:
            strength = rng.uniform(*stage.noise_sigma)
            record['noise'] = {'kind': 'gaussian', 'sigma': round(strength, 4), 'grey': bool(grey)}
            noise = rng.standard_normal(shape).astype(np.float32) * np.float32(strength / 255)
        image = image + noise
    if rng.random() < stage.jpeg_prob:
        quality = int(rng.integers(stage.jpeg_quality[0], stage.jpeg_quality[1] + 1))
        record['jpeg'] = quality
        image = jpeg(_to_uint8(image), quality).astype(np.float32) / 255
    return image


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
