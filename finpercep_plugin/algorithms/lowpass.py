"""The low-frequency part of an image, and how far two images are apart in it (RFSR, arXiv 2412.03268)."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ['Wavelet', 'dtcwt_lowpass', 'haar_lowpass', 'll_loss']

Wavelet = Literal['dtcwt', 'haar']

# Kingsbury's filters: the 13 lowpass taps of near_sym_b, of level 1, and the 14 of qshift_b's tree a, of the other
# levels; tree b has them in reverse.
_NEAR_SYM_B = np.array([-9, 0, 114, -240, -247, 1520, 2844, 1520, -247, -240, 114, 0, -9]) / 5120
_QSHIFT_B = np.array([
    0.003253142763653182, -0.00388321199915849, 0.03466034684485349, -0.03887280126882779, -0.11720388769911527,
    0.27529538466888204, 0.7561456438925225, 0.5688104207121227, 0.011866092033797, -0.1067118046866654,
    0.023825384794920298, 0.01702522388155399, -0.005439475937274115, -0.004556895628475491,
])  # fmt: skip


def haar_lowpass(image: torch.Tensor, levels: int = 2) -> torch.Tensor:
    """LL of the orthonormal Haar transform: (B, C, H, W) -> (B, C, H / 2^levels, W / 2^levels), rounded up, float32.

    Sides that 2^levels does not divide are padded by repetition of their last row and column.

    >>> haar_lowpass(torch.ones(1, 1, 4, 4))
    tensor([[[[4.]]]])
    """
    block = 2**levels
    height, width = image.shape[-2:]
    padded = F.pad(image.float(), (0, -width % block, 0, -height % block), mode='replicate')
    return F.avg_pool2d(padded, block) * block


def dtcwt_lowpass(image: torch.Tensor) -> torch.Tensor:
    """Lowpass of the dual-tree complex wavelet transform, J = 3, near_sym_b and qshift_b; both trees, interleaved.

    (B, C, H, W) -> (B, C, H / 4, W / 4), rounded up to even, float32. Kingsbury 2001, "Complex wavelets for shift
    invariant analysis and filtering of signals"; edges as in his toolbox.

    >>> dtcwt_lowpass(torch.ones(1, 1, 8, 16)).shape
    torch.Size([1, 1, 2, 4])
    """
    rows, columns = (_dtcwt_matrix(side).float().to(image.device) for side in image.shape[-2:])
    with torch.autocast(image.device.type, enabled=False):
        return rows @ image.float() @ columns.T


def ll_loss(image: torch.Tensor, target: torch.Tensor, wavelet: Wavelet = 'dtcwt') -> torch.Tensor:
    """`|LL(image) - LL(target)|`, the mean over channels and coefficients, (B,).

    Args:
        image: (B, 3, H, W), [0, 1].
        target: the same.
        wavelet: 'dtcwt' or 'haar'; the LL of a constant image is 4 times it with either.

    Raises:
        ValueError: an unknown wavelet, or different shapes.

    >>> ll_loss(torch.ones(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5), 'haar')
    tensor([2.])
    """
    if wavelet not in ('dtcwt', 'haar'):
        raise ValueError(f"wavelet must be 'dtcwt' or 'haar', got {wavelet!r}")
    if image.shape != target.shape:
        raise ValueError(f'LL loss of images of different shapes, {tuple(image.shape)} and {tuple(target.shape)}')
    lowpass = dtcwt_lowpass if wavelet == 'dtcwt' else haar_lowpass
    return lowpass(image.float() - target.float()).abs().flatten(1).mean(1)  # it is linear


@functools.lru_cache(maxsize=64)
def _dtcwt_matrix(side: int) -> torch.Tensor:
    """The lowpass along one side, (about side / 4, side), float64: it is linear and separable, edges included."""
    signal = np.eye(side)
    if side % 2:
        signal = np.concatenate([signal, signal[-1:]])
    signal = sum(tap * _mirrored(signal, np.arange(len(signal)) + j - 6) for j, tap in enumerate(_NEAR_SYM_B))
    for _ in range(2):
        if len(signal) % 4:
            signal = np.concatenate([signal[:1], signal, signal[-1:]])
        at = 4 * np.arange(len(signal) // 4)
        trees = [
            sum(tap * _mirrored(signal, at + 2 * j + shift) for j, tap in enumerate(taps))
            for taps, shift in ((_QSHIFT_B, -12), (_QSHIFT_B[::-1], -11))
        ]
        signal = np.stack(trees, axis=1).reshape(2 * len(at), side)
    return torch.from_numpy(signal)


def _mirrored(signal: np.ndarray, index: np.ndarray) -> np.ndarray:
    """signal[index], where the signal goes on beyond its ends as its mirror image, the end sample doubled."""
    index = index % (2 * len(signal))
    return signal[np.minimum(index, 2 * len(signal) - 1 - index)]
