"""What producers with networks share: a batch of requests in, pictures out, on one thread."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, Sequence

import numpy as np

from finpercep_plugin.data.producers.base import Request

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ['check_weights', 'run', 'single_thread', 'to_pictures', 'to_tensor', 'to_uint8']


def check_weights(path: str | Path) -> Path:
    """
    Raises:
        FileNotFoundError: no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'weights: no such file: {path}')
    return Path(path)


def run(network: Callable[[Tensor], Tensor], requests: Sequence[Request], device: str) -> list[np.ndarray]:
    """sr of each request, (H, W, 3) uint8, from one call of the network.

    Args:
        network: (B, 3, h, w) RGB in [0, 1] -> (B, 3, H, W), about [0, 1].
        requests: with lq of one size.
        device: where the network is.
    """
    import torch

    with single_thread():
        return to_pictures(network(torch.cat([to_tensor(request.lq, device) for request in requests])))


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


def to_pictures(images: Tensor) -> list[np.ndarray]:
    """(B, 3, H, W) -> B arrays (H, W, 3) uint8, clipped.

    Raises:
        ValueError: a value that is not finite.
    """
    if not bool(images.isfinite().all()):
        raise ValueError('it gave values that are not finite')
    array = images.float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return list(array)


def to_uint8(image: Tensor) -> np.ndarray:
    """(1, 3, H, W) -> (H, W, 3) uint8, clipped."""
    (picture,) = to_pictures(image)
    return picture
