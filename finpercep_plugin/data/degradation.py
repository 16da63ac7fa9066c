"""gt -> lq: blur, resize, noise and JPEG of random strength, once or twice: Real-ESRGAN (arXiv 2107.10833, §3)."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from finpercep_plugin.data.degradation_options import DegradationOptions, DegradationStage, FinalStep
from finpercep_plugin.data.kernels import KINDS, draw_kernel, draw_sinc, shaped_kernel

__all__ = [
    'DegradationOptions',
    'DegradationStage',
    'FinalStep',
    'anisotropic_kernel',
    'bicubic',
    'degrade',
    'jpeg',
    'sharpen',
]

_RESIZES = {'area': cv2.INTER_AREA, 'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC}


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
    image = (sharpen(gt) if options.sharpen else gt).astype(np.float32) / 255
    stage, made = options.first, {}
    record = {'kind': 'random', 'first': made}
    image = _soften(image, stage, scale / 4, (width, height), scale, rng, made)
    if options.second_order:
        image = _jpeg(image, stage, rng, made)
        stage, made = options.second, {}
        record['second'] = made
        image = _soften(image, stage, image.shape[1] / width / 4, (width, height), scale, rng, made)
    return _finish(image, stage, options.final, (width, height), rng, made), record


def sharpen(image: np.ndarray) -> np.ndarray:
    """Unsharp mask of (H, W, 3) uint8 where it changes much: BasicSR's `usm_sharp` with its defaults."""
    picture = image.astype(np.float32) / 255
    blurred = cv2.GaussianBlur(picture, (51, 51), 0)
    residual = picture - blurred
    soft = cv2.GaussianBlur((np.abs(residual) * 255 > 10).astype(np.float32), (51, 51), 0)
    return _to_uint8(soft * np.clip(picture + 0.5 * residual, 0, 1) + (1 - soft) * picture)


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
    return shaped_kernel(2 * radius + 1, (sigma_x, sigma_y), angle)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB through JPEG of the quality 1-100."""
    done, data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    assert done
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def _soften(
    image: np.ndarray,
    stage: DegradationStage,
    relative: float,
    size: tuple[int, int],
    scale: int,
    rng: np.random.Generator,
    record: dict,
) -> np.ndarray:
    """A round without its JPEG."""
    image = _blur(image, stage, relative, rng, record)
    image = _resize(image, stage, size, scale, rng, record)
    return _noise(image, stage, rng, record)


def _blur(
    image: np.ndarray, stage: DegradationStage, relative: float, rng: np.random.Generator, record: dict
) -> np.ndarray:
    if rng.random() >= stage.blur_prob:
        return image
    if stage.kernels:
        kernel, record['blur'] = _basicsr_kernel(stage, rng)
        return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT)
    sigma = rng.uniform(*stage.blur_sigma)
    other, angle = (
        (rng.uniform(*stage.blur_sigma), rng.uniform(0, math.pi))
        if rng.random() < stage.anisotropic_prob
        else (sigma, 0.0)
    )
    record['blur'] = {'sigma': [round(sigma, 4), round(other, 4)], 'angle': round(angle, 4)}
    kernel = anisotropic_kernel(max(sigma * relative, 0.05), max(other * relative, 0.05), angle)
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT)


def _basicsr_kernel(stage: DegradationStage, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
    if rng.random() < stage.sinc_prob:
        return draw_sinc(stage.kernel_size, rng)
    weights = np.array([(stage.kernels or {}).get(kind, 0.0) for kind in KINDS])
    kind = KINDS[rng.choice(len(KINDS), p=weights / weights.sum())]
    beta = stage.beta_plateau if 'plateau' in kind else stage.beta_generalized
    return draw_kernel(kind, stage.kernel_size, stage.blur_sigma, beta, rng)


def _resize(
    image: np.ndarray,
    stage: DegradationStage,
    lq: tuple[int, int],
    scale: int,
    rng: np.random.Generator,
    record: dict,
) -> np.ndarray:
    """To `resize` times the size of lq or gt, by a method drawn anew."""
    low, high = stage.resize
    if stage.resize_prob is None:
        factor = rng.uniform(low, high)
    else:
        ranges = ((1.0, max(high, 1.0)), (min(low, 1.0), 1.0), (1.0, 1.0))
        factor = rng.uniform(*ranges[rng.choice(3, p=np.array(stage.resize_prob) / sum(stage.resize_prob))])
    method = ('area', 'bilinear', 'bicubic')[rng.integers(3)]
    record['resize'] = {'method': method, 'factor': round(factor, 4)}
    factor *= scale if stage.resize_of == 'gt' else 1
    size = max(1, round(lq[0] * factor)), max(1, round(lq[1] * factor))
    return _resized(image, size, method, stage.antialias)


def _resized(image: np.ndarray, size: tuple[int, int], method: str, antialias: bool) -> np.ndarray:
    """(H, W, 3) float to (width, height); cv2's own bilinear and bicubic do not filter before they reduce."""
    if size[0] < image.shape[1] and method != 'area' and antialias:
        resample = Image.Resampling.BICUBIC if method == 'bicubic' else Image.Resampling.BILINEAR
        return np.stack(
            [np.asarray(Image.fromarray(np.ascontiguousarray(image[..., c])).resize(size, resample)) for c in range(3)],
            -1,
        )
    return cv2.resize(image, size, interpolation=_RESIZES[method])


def _noise(image: np.ndarray, stage: DegradationStage, rng: np.random.Generator, record: dict) -> np.ndarray:
    if rng.random() < stage.noise_prob:
        grey = rng.random() < stage.grey_prob
        shape = image.shape[:2] + ((1,) if grey else (3,))
        if rng.random() < stage.poisson_prob:
            strength = rng.uniform(*stage.poisson_scale)
            record['noise'] = {'kind': 'poisson', 'scale': round(strength, 4), 'grey': bool(grey)}
            noise = (_scaled_poisson if stage.poisson_kind == 'scaled' else _shot)(image, strength, grey, rng)
        else:
            strength = rng.uniform(*stage.noise_sigma)
            record['noise'] = {'kind': 'gaussian', 'sigma': round(strength, 4), 'grey': bool(grey)}
            noise = rng.standard_normal(shape).astype(np.float32) * np.float32(strength / 255)
        image = image + noise
    return image


def _shot(image: np.ndarray, strength: float, grey: bool, rng: np.random.Generator) -> np.ndarray:
    level = np.clip(image.mean(-1, keepdims=True) if grey else image, 0, 1).astype(np.float64)
    peak = 255 / max(strength, 1e-3)
    return (rng.poisson(level * peak) / peak - level).astype(np.float32)


def _scaled_poisson(image: np.ndarray, strength: float, grey: bool, rng: np.random.Generator) -> np.ndarray:
    """BasicSR's `generate_poisson_noise`."""
    level = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if grey else image
    level = _to_uint8(level).astype(np.float64) / 255
    values = 2.0 ** math.ceil(math.log2(len(np.unique(level))))
    return ((rng.poisson(level * values) / values - level) * strength).astype(np.float32)


def _jpeg(image: np.ndarray, stage: DegradationStage, rng: np.random.Generator, record: dict) -> np.ndarray:
    if rng.random() < stage.jpeg_prob:
        quality = int(rng.integers(stage.jpeg_quality[0], stage.jpeg_quality[1] + 1))
        record['jpeg'] = quality
        image = jpeg(_to_uint8(image), quality).astype(np.float32) / 255
    return image


def _finish(
    image: np.ndarray,
    stage: DegradationStage,
    final: FinalStep,
    size: tuple[int, int],
    rng: np.random.Generator,
    record: dict,
) -> np.ndarray:
    """The last JPEG, and the resize to `size` (width, height) with its filter, in either order -> uint8."""
    jpeg_last = final.jpeg_last_prob > 0 and rng.random() < final.jpeg_last_prob
    if not jpeg_last:
        image = _jpeg(image, stage, rng, record)
    if final.resize == 'random':
        image = _resized(image, size, ('area', 'bilinear', 'bicubic')[rng.integers(3)], stage.antialias)
    else:
        image = bicubic(_to_uint8(image), size).astype(np.float32) / 255
    if final.sinc_prob > 0 and rng.random() < final.sinc_prob:
        kernel, record['sinc'] = draw_sinc(final.kernel_size, rng, last=True)
        image = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT)
    if jpeg_last:
        record['jpeg_last'] = True
        image = _jpeg(image, stage, rng, record)
    return _to_uint8(image)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
