"""Pictures and metrics that the tests of the scorer share."""

import numpy as np
import pytest
import torch

from finpercep_plugin.images import write_png
from finpercep_plugin.rewards.base import robust_max
from finpercep_plugin.scoring.metrics import Metric, Scores


@pytest.fixture
def folder_of(tmp_path):
    """Write random pictures of the given (height, width); returns their paths."""

    def make(name, shapes, seed=0):
        rng = np.random.default_rng(seed)
        return [
            write_png(tmp_path / name / f'{i:02d}.png', rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
            for i, shape in enumerate(shapes)
        ]

    return make


class Mean:
    """The mean of the picture, its red channel as map. Counts its batches; more than `room` pixels at once are out of
    memory.
    """

    def __init__(self, room=10**9):
        self.room, self.batches = room, []

    def __call__(self, batch):
        self.batches.append(tuple(batch.sr.shape))
        if batch.sr[:, 0].numel() > self.room:
            raise RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate; out of memory')
        maps = batch.sr[:, :1]
        values = {'score': batch.sr.mean((1, 2, 3)), 'map_mean': maps.mean((1, 2, 3)), 'map_max': robust_max(maps)}
        return Scores({name: value.tolist() for name, value in values.items()}, maps[:, 0].numpy())

    def metric(self, **changes):
        columns = {'score': True, 'map_mean': False, 'map_max': False}
        options = {'parallel': True, 'tiles': True, 'gives_map': True, **changes}
        return Metric('mean', columns, 'mean 1', frozenset(), lambda device: self, **options)


@pytest.fixture
def mean():
    return Mean


@pytest.fixture
def tensor():
    """Random pictures (B, 3, H, W)."""
    return lambda *shape: torch.rand(*shape, generator=torch.Generator().manual_seed(0))
