"""Training data as a function of the position in the run, so that it does not depend on workers, ranks or when the
run was killed.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import Any, Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from finpercep_plugin.rng import key_seed, keyed_torch

__all__ = ['PositionDataset', 'PositionSampler', 'seeded']


class PositionSampler(Sampler[int]):
    """The positions that one rank reads: iteration `it` (from 0) of rank r takes [it * global_batch + r * B, ... +
    B), B = global_batch / world.

    Args:
        global_batch: samples an iteration takes over all ranks.
        rank: of this process.
        world: number of processes.
        start_iter: iterations done already.
        total_iters: iterations of the whole run.

    Raises:
        ValueError: the batch cannot be split evenly.

    >>> list(PositionSampler(global_batch=4, rank=1, world=2, start_iter=1, total_iters=3))
    [6, 7, 10, 11]
    """

    def __init__(self, global_batch: int, rank: int = 0, world: int = 1, start_iter: int = 0, total_iters: int = 0):
        if global_batch < 1 or global_batch % world:
            raise ValueError(f'a global batch of {global_batch} cannot be split over {world} processes')
        self.global_batch, self.rank, self.world = global_batch, rank, world
        self.start_iter, self.total_iters = start_iter, total_iters

    def __iter__(self) -> Iterator[int]:
        batch = self.global_batch // self.world
        for iteration in range(self.start_iter, self.total_iters):
            first = iteration * self.global_batch + self.rank * batch
            yield from range(first, first + batch)

    def __len__(self) -> int:
        return max(self.total_iters - self.start_iter, 0) * (self.global_batch // self.world)


class PositionDataset(Dataset):
    """Any map-style data set, read by position: position p is item p % n of epoch p // n, under RNGs keyed on (seed,
    p).

    The permutation of an epoch is keyed on (seed, epoch). While an item is read, the global python, numpy and torch
    generators, which BasicSR's data
    sets draw crops and flips from, are seeded with (seed, p); afterwards they are as they were. A data set smaller
    than a batch just wraps.

    Args:
        dataset: the data set.
        seed: of the run.
        shuffle: False reads every epoch in order.

    Raises:
        ValueError: the data set is empty.
    """

    def __init__(self, dataset: Dataset, seed: int, shuffle: bool = True):
        if len(dataset) == 0:
            raise ValueError(f'the training set ({type(dataset).__name__}) is empty')
        self.dataset, self.seed, self.shuffle = dataset, seed, shuffle
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return len(self.dataset)

    def index(self, position: int) -> int:
        """The item of the data set that stands at `position` of the run."""
        epoch, offset = divmod(position, len(self.dataset))
        if not self.shuffle:
            return offset
        if self._order[0] != epoch:
            generator = keyed_torch(self.seed, 'epoch', epoch)
            self._order = (epoch, torch.randperm(len(self.dataset), generator=generator).tolist())
        return self._order[1][offset]

    def __getitem__(self, position: int) -> Any:
        with seeded(key_seed(self.seed, 'position', position)):
            return self.dataset[self.index(position)]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global python, numpy and CPU torch generators start from `seed` inside, and are as they were outside.

    >>> with seeded(3):
    ...     first = random.random(), np.random.rand(), torch.rand(1).item()
    >>> with seeded(3):
    ...     first == (random.random(), np.random.rand(), torch.rand(1).item())
    True
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
