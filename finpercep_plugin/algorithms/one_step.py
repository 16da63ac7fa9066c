"""Reward feedback through one sampler step: the sample that it starts from, and the part of its picture that is rewarded."""

from __future__ import annotations

import math
from typing import Any, Optional, Sequence, Union

import torch

from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.generators.pixels import Region
from finpercep_plugin.rng import keyed_numpy, keyed_randn
from finpercep_plugin.rollout import Steps, rollout

__all__ = ['check_decode_size', 'check_eta', 'check_micro_batch', 'decode_region', 'sample_at']


def check_eta(generator: Any, eta: Optional[float], algorithm: str) -> None:
    """Whether the generator's steps can have this noise.

    Raises:
        ValueError: a flow generator, and eta is neither None nor 0.
    """
    if eta and generator.prediction == 'flow':
        raise ValueError(f'{algorithm}: eta is defined for eps and v models; a flow generator needs eta = 0, got {eta}')


def check_micro_batch(micro_batch: Optional[int], algorithm: str) -> None:
    """Whether a number of samples, None for all, can be a batch.

    Raises:
        ValueError: it is below 1.
    """
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f'{algorithm}: micro_batch must be 1 or more, got {micro_batch}')


def check_decode_size(generator: Any, decode_size: Optional[int], algorithm: str) -> None:
    """Whether squares of that side, None for the whole picture, lie on the grids of the latents and of lq.

    Raises:
        ValueError: they do not; says which sides do.
    """
    grid = _grid(generator)
    if decode_size is not None and (decode_size < grid or decode_size % grid):
        raise ValueError(f'{algorithm}: decode_size must be a multiple of {grid} for this generator, got {decode_size}')


def decode_region(
    generator: Any, decode_size: Optional[int], size: Sequence[int], *key: Union[int, str], purpose: str
) -> Optional[Region]:
    """The part of sr that is decoded and rewarded, at a place drawn for (*key, '<purpose> region'); None for all of it.

    Args:
        generator: in training; the part lies on the grids of its latents and of lq.
        decode_size: side of the part in pixels; None: all of sr.
        size: height and width of sr.
        key: (seed, iteration), or what else the draw is for.
        purpose: the algorithm's.
    """
    if decode_size is None or decode_size >= max(size):
        return None
    grid, rng = _grid(generator), keyed_numpy(*key, f'{purpose} region')
    sides = [min(decode_size, length) for length in size]
    top, left = (grid * int(rng.integers((n - side) // grid + 1)) for n, side in zip(size, sides))
    return top, left, *sides


def sample_at(
    generator: Any,
    cond: Condition,
    k: int,
    samples: Sequence[int],
    seed: int,
    iteration: int,
    purpose: str,
    steps: Steps = None,
    guidance: float = 1.0,
    eta: Optional[float] = None,
) -> torch.Tensor:
    """The sample x_t (B, C, h, w) at step index k; noise is drawn for (seed, iteration, '<purpose> start' or ' step', sample).

    Without gradient, but for k = 0: the start can depend on what is trained, as OSEDiff's does, which is what its
    trained encoder makes of lq.

    Args:
        generator: in training.
        cond: B conditions.
        k: index into the sampler's steps, 0 is the noisiest.
        samples: B global sample indices.
        seed: of the run.
        iteration: of the run.
        purpose: the algorithm's.
        steps: see `rollout.sampler_steps`.
        guidance: of the rollout.
        eta: of the rollout's steps; None: the generator's own.
    """
    shape, device = generator.latent_shape(cond), cond.lq.device

    def draw(index: int) -> torch.Tensor:
        return keyed_randn(shape, samples, seed, iteration, f'{purpose} step', index, device=device)

    noise = keyed_randn(shape, samples, seed, iteration, f'{purpose} start', device=device)
    if k == 0:
        return generator.start(cond, noise)
    return rollout(generator, cond, noise, k, steps, guidance, eta, draw).latents[-1]


def _grid(generator: Any) -> int:
    return math.lcm(generator.stride, generator.scale)
