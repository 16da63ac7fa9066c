"""What a hacked reward does to images: measures of sr and lq that nothing optimises (the spectrum, flat areas, lq itself).

They compare an output with its own input, so that no gt is needed. Levels are in dB: an equal step is an equal ratio.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep_plugin.rewards.base import luma
from finpercep_plugin.rewards.psnr_reward import psnr

__all__ = [
    'PERIODS',
    'SIGNS',
    'Sign',
    'flat_variation',
    'high_frequency',
    'lattice',
    'lattice_peaks',
    'lq_fidelity',
    'measure',
    'spectrum',
]

PERIODS = (2, 4, 8, 14, 16)
"""Pixels: factors of pixel shuffles and of strided layers, a VAE's cell, ViT patches."""

TILE = 64
"""Side of the tiles that spectra are averaged over."""

STEP = 1 / 255
"""Of 8 bit: spectra and variations are measured above noise of this size, since weaker patterns are not seen."""


@dataclasses.dataclass(frozen=True)
class Sign:
    """How a measure is judged.

    Attributes:
        better: where better images have it; 'same': as the starting generator's outputs.
        least, most: bounds of its unit, which between them is its spread over the starting generator's outputs.
    """

    better: Literal['higher', 'lower', 'same'] = 'higher'
    least: float = 1e-3
    most: float = math.inf


SIGNS = {
    'lq_psnr': Sign('higher', 1.0, 2.0),
    'hf_energy': Sign('same', 10.0, 10.0),
    'flat_tv': Sign('lower', 10.0, 10.0),
    **{f'lattice_{period}': Sign('lower', 10.0, 10.0) for period in PERIODS},
}
"""How each value of `measure` is judged; all are in dB."""


@torch.no_grad()
def measure(sr: Tensor, lq: Tensor, periods: Sequence[int] = PERIODS) -> dict[str, Tensor]:
    """Every sign of `SIGNS`, in fp32, one sample at a time: a value does not depend on the batch.

    Args:
        sr: (B, 3, H, W), RGB, [0, 1].
        lq: (B, 3, h, w), RGB, [0, 1].
        periods: of the lattices looked for; one that fits less than 4 times into sr is left out.

    Returns:
        {name: (B,)}: lq_psnr, hf_energy, flat_tv, lattice_2 ...

    Raises:
        ValueError: another number of samples, or sides of sr below 16.

    >>> sorted(measure(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 16, 16)))[:5]
    ['flat_tv', 'hf_energy', 'lattice_14', 'lattice_16', 'lattice_2']
    """
    if len(sr) != len(lq) or min(sr.shape[-2:]) < 16:
        raise ValueError(f'expected one lq a sample and sr of 16 pixels or more, got {_shapes(sr, lq)}')
    rows = [_measure_one(sr[i : i + 1].float(), lq[i : i + 1].float(), periods) for i in range(len(sr))]
    return {name: torch.cat([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _measure_one(sr: Tensor, lq: Tensor, periods: Sequence[int]) -> dict[str, Tensor]:
    image, spectra = luma(sr), {}
    fitting = {period: _tile(period, image) for period in periods if _fits(period, image)}
    for tile in {_side(image), *fitting.values()}:
        spectra[tile] = spectrum(image, tile)
    return {
        'lq_psnr': lq_fidelity(sr, lq),
        'hf_energy': high_frequency(spectra[_side(image)], sr.shape[-1] / lq.shape[-1]),
        'flat_tv': flat_variation(image, luma(lq)),
        **{f'lattice_{period}': lattice_peaks(spectra[tile], period) for period, tile in fitting.items()},
    }


def lq_fidelity(sr: Tensor, lq: Tensor) -> Tensor:
    """PSNR in dB between sr, averaged over the area of each pixel of lq, and lq.

    lq's own noise and blur are part of the error: compare it with the same lq only.

    Args:
        sr: (B, 3, H, W), [0, 1].
        lq: (B, 3, h, w), [0, 1].

    Returns:
        (B,), at most 100.

    >>> lq_fidelity(torch.full((1, 3, 8, 8), 0.6), torch.full((1, 3, 2, 2), 0.5))
    tensor([20.0000])
    """
    return psnr(F.adaptive_avg_pool2d(sr.float(), lq.shape[-2:]), lq)


def spectrum(image: Tensor, tile: int = TILE) -> Tensor:
    """Mean power spectrum of half overlapping tiles under a Hann window (Welch's method), their means taken away.

    White noise of variance v has power v everywhere. That of `STEP` is added.

    Args:
        image: (B, 1, H, W), sides of `tile` or more.
        tile: even.

    Returns:
        (B, tile, tile), frequency (u, v) / tile cycles a pixel.
    """
    window = torch.hann_window(tile, periodic=True, device=image.device)
    window = window[:, None] * window[None]
    powers = []
    for sample in image[:, 0].float():
        tiles = sample.unfold(0, tile, tile // 2).unfold(1, tile, tile // 2).reshape(-1, tile, tile)
        tiles = tiles - tiles.mean(dim=(1, 2), keepdim=True)
        powers.append(torch.fft.fft2(tiles * window).abs().square().mean(0) / window.square().sum())
    return torch.stack(powers) + STEP**2


def high_frequency(power: Tensor, scale: float) -> Tensor:
    """Mean power above the highest frequency of lq against that below, in dB.

    Args:
        power: (B, T, T), see `spectrum`.
        scale: of sr to lq; at least 2 is taken.

    Returns:
        (B,).

    >>> high_frequency(torch.ones(1, 8, 8), 4)
    tensor([0.])
    """
    frequency = torch.fft.fftfreq(power.shape[-1], device=power.device)
    radius = (frequency[:, None].square() + frequency[None].square()).sqrt()
    above = radius > 0.5 / max(scale, 2.0)
    below = ~above & (radius > 1.5 / power.shape[-1])  # the window spreads the mean, 0 by then, over its neighbours
    return 10 * torch.log10(power[:, above].mean(1) / power[:, below if bool(below.any()) else ~above].mean(1))


def lattice(image: Tensor, period: int, top: float = 0.05) -> Tensor:
    """How far the peaks of a lattice stand out of the spectrum, in dB; see `lattice_peaks`.

    Args:
        image: (B, 1, H, W), [0, 1], sides of 4 periods or more.
        period: pixels, even.
        top: share of the peaks that is taken.

    Returns:
        (B,); about 1 for photos of any texture: of 391 crops of 128 px, 99 % are below 4.5 at any period.

    Raises:
        ValueError: an image too small, or an odd period.

    >>> checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    >>> round(lattice(0.5 + 0.1 * checks[None, None].float(), period=2).item())
    49
    """
    if period % 2 or not _fits(period, image):
        raise ValueError(f'lattice: expected an even period and sides of 4 x {period}, got {tuple(image.shape[-2:])}')
    return lattice_peaks(spectrum(image, _tile(period, image)), period, top)


def lattice_peaks(power: Tensor, period: int, top: float = 0.05) -> Tensor:
    """Mean height, in dB, of the highest `top` share of the peaks at the multiples of 1 / period.

    A peak's height is its power over the geometric mean of two opposite neighbours, in that of four directions where it
    is least: a slope of the spectrum has none, nor has the ridge that the edges of a scene make in it.

    Args:
        power: (B, T, T), see `spectrum`; T a multiple of `period`, 4 times or more.
        period: pixels.
        top: in (0, 1]; one peak at least is taken.

    Returns:
        (B,).
    """
    level, gap, step = 10 * torch.log10(power), 2, power.shape[-1] // period
    floor = torch.full_like(level, -math.inf)
    for down, right in ((gap, 0), (0, gap), (gap, gap), (gap, -gap)):
        pair = level.roll((down, right), dims=(1, 2)) + level.roll((-down, -right), dims=(1, 2))
        floor = torch.maximum(floor, pair / 2)
    heights = (level - floor)[:, ::step, ::step].flatten(1)[:, 1:]  # the first is the mean of the image
    return heights.topk(max(1, round(top * heights.shape[1])), dim=1).values.mean(1)


def flat_variation(image: Tensor, lq: Tensor, share: float = 0.25) -> Tensor:
    """Total variation where lq is flattest, in dB: mean |difference| of neighbours across and down, 0 dB = 1.

    Args:
        image: luma of sr (B, 1, H, W), [0, 1], sides of 2 or more.
        lq: luma (B, 1, h, w).
        share: of lq's pixels; flat are those whose 5 x 5 neighbourhood varies least.

    Returns:
        (B,), at least that of `STEP`.

    >>> image = torch.zeros(1, 1, 8, 8)
    >>> image[..., ::2] = 0.1
    >>> round(10 ** (flat_variation(image, torch.zeros(1, 1, 2, 2)).item() / 20), 4)
    0.1
    """
    lq = lq.float() - lq.float().mean(dim=(1, 2, 3), keepdim=True)
    mean, square = (F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False) for x in (lq, lq.square()))
    spread = (square - mean.square()).flatten(1)
    border = spread.kthvalue(max(1, round(share * spread.shape[1])), dim=1, keepdim=True).values
    flat = (spread <= border).float().reshape(lq.shape)
    flat = F.interpolate(flat, size=image.shape[-2:], mode='nearest')
    total = torch.zeros(len(image), device=image.device)
    for dim in (-1, -2):
        inside = flat.narrow(dim, 0, flat.shape[dim] - 1)
        step = image.float().diff(dim=dim).abs() * inside
        total = total + step.sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3)).clamp_min(1)
    return 20 * torch.log10(total.clamp_min(STEP))


def _shapes(sr: Tensor, lq: Tensor) -> str:
    return f'sr {tuple(sr.shape)} and lq {tuple(lq.shape)}'


def _fits(period: int, image: Tensor) -> bool:
    return min(image.shape[-2:]) >= 4 * period


def _tile(period: int, image: Tensor) -> int:
    """Side of tiles that hold a whole number of periods, 4 or more, near `_side`."""
    return period * max(4, _side(image) // period)


def _side(image: Tensor) -> int:
    """Side of tiles: even, at most `TILE`, and such that three or more fit across."""
    return min(TILE, min(image.shape[-2:]) // 4 * 2)
