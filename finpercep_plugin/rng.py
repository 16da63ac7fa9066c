"""Random draws keyed on what they are for, so that a run does not depend on workers, ranks, batch shape or when it was killed.

Every draw comes from a fresh generator whose seed is a hash of (seed, iteration, global sample index, purpose): ARCHITECTURE.md, "Randomness".
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Sequence

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ['key_seed', 'keyed_numpy', 'keyed_randn', 'keyed_torch']


def key_seed(*key: int | str) -> int:
    """A 63-bit seed from a key; equal on every machine and Python.

    >>> key_seed(0, 'noise') == key_seed(0, 'noise') != key_seed(1, 'noise')
    True
    """
    digest = hashlib.blake2b('\x1f'.join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


def keyed_torch(*key: int | str) -> torch.Generator:
    """A CPU torch generator for `key`."""
    import torch  # here, so that data workers that draw with numpy alone start fast

    return torch.Generator().manual_seed(key_seed(*key))


def keyed_numpy(*key: int | str) -> np.random.Generator:
    """A numpy generator for `key`."""
    return np.random.default_rng(key_seed(*key))


def keyed_randn(
    shape: Sequence[int], samples: Sequence[int], *key: int | str, device: torch.device | str = 'cpu'
) -> torch.Tensor:
    """Standard normal noise (B, *shape), row i from a generator keyed on (*key, samples[i]).

    Drawn on the CPU, so a GPU run sees the same numbers.

    Args:
        shape: of one sample.
        samples: global sample indices, one a row.
        key: what the draw is for, e.g. (seed, iteration, 'rollout').
    """
    import torch

    rows = [torch.randn(tuple(shape), generator=keyed_torch(*key, int(i))) for i in samples]
    return torch.stack(rows).to(device)
