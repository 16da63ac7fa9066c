"""What producers with networks share: arrays to tensors and back, on one thread."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Iterator

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ['single_thread', 'to_tensor', 'to_uint8']


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """One CPU thread and no gradient: sums then come in one order, whatever the number of workers."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def to_tensor(image: np.ndarray, device: str = 'cpu') -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float in [0, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device).float().div(255)[None]


def to_uint8(image: Tensor) -> np.ndarray:
    """(1, 3, H, W) -> (H, W, 3) uint8, clipped."""
    array = image[0].float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return np.ascontiguousarray(array.transpose(1, 2, 0))
