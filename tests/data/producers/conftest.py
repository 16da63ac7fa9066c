"""Requests as a build makes them."""

import numpy as np
import pytest

from finpercep_plugin.data.fgr_options import BuildOptions, build_producers
from finpercep_plugin.data.producers.base import Request

from ..conftest import make_photo


def wanted(lq: np.ndarray, seed: int = 0, photo: str = 'p.png', box: tuple[int, int, int] = (0, 0, 0)) -> Request:
    """A request whose draws come from `seed`."""
    return Request(lq, np.random.default_rng(seed), photo, box)


def one(section: dict):
    """The producer of one section of a build's options."""
    _, _, (producer,) = build_producers(BuildOptions(producers=[section]))
    return producer


def close(first: np.ndarray, second: np.ndarray) -> bool:
    """Equal but for rounding: no two pixels are more than one grey level apart."""
    return first.shape == second.shape and np.abs(first.astype(int) - second).max() <= 1


@pytest.fixture
def lq() -> np.ndarray:
    return make_photo(0, 8, 12)


@pytest.fixture
def lqs() -> list[np.ndarray]:
    """Three pictures of one size."""
    return [make_photo(seed, 8, 12) for seed in range(3)]
