"""Sampling from a generator: the chain without gradient, one step with it, the whole way to an image."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, Optional, Sequence, Union

import torch

from finpercep_plugin.diffusion.prediction import to_x0
from finpercep_plugin.diffusion.steps import gaussian_log_prob, step
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.rng import keyed_randn

__all__ = [
    'Draw',
    'Steps',
    'Trajectory',
    'no_gradient',
    'rollout',
    'sample_images',
    'sampler_steps',
    'step_levels',
    'step_x0',
    'super_resolve',
]

Steps = Union[int, Sequence[int], torch.Tensor, None]
Draw = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Trajectory:
    """What a rollout of n steps went through.

    Args:
        latents: n + 1 tensors (B, C, h, w), noisiest first; latents[i] is the sample at timesteps[i].
        timesteps: (n + 1,) timesteps; after the last step of the sampler, only n are left and the last latent is clean.
        log_probs: n tensors (B,): of latents[i + 1] given latents[i], mean over dimensions; None for a deterministic
            step, which has none.
    """

    latents: List[torch.Tensor]
    timesteps: torch.Tensor
    log_probs: List[Optional[torch.Tensor]]


def sampler_steps(generator: Any, steps: Steps = None) -> torch.Tensor:
    """Timesteps, descending: the generator's own (None), its sampler with that many steps (a number), or those given.

    Raises:
        ValueError: no timesteps, or not descending.
    """
    if steps is None:
        return generator.steps
    if isinstance(steps, int):
        return generator.timesteps(steps)
    timesteps = torch.as_tensor(steps)
    if timesteps.ndim != 1 or not len(timesteps) or bool((timesteps.diff() >= 0).any()):
        raise ValueError(f'timesteps must be a descending list, got {timesteps.tolist()}')
    return timesteps


@contextlib.contextmanager
def no_gradient() -> Iterator[None]:
    """torch.no_grad, in which autocast keeps no casts of the weights.

    Older versions of torch would use a cast made here again in the step with gradient, and none would reach the weight.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(before)


@no_gradient()
def rollout(
    generator: Any,
    cond: Condition,
    noise: torch.Tensor,
    upto: Optional[int] = None,
    steps: Steps = None,
    guidance: float = 1.0,
    eta: Optional[float] = None,
    draw: Optional[Draw] = None,
) -> Trajectory:
    """The sampler from its start to just before step index `upto`, without gradient.

    Args:
        generator: see docs/architecture.md.
        cond: B conditions.
        noise: (B, C, h, w), standard normal, for `generator.start`.
        upto: index of the first step not taken, 0 .. number of steps; None: all are taken and the last latent is clean.
        steps: see `sampler_steps`.
        guidance: of `generator.predict`.
        eta: noise of each step, 0 (DDIM) .. 1 (DDPM); eps and v only; None: the generator's own.
        draw: step index -> (B, C, h, w) standard normal, called for steps with noise only; needed where eta > 0.

    Raises:
        ValueError: upto out of range, or eta > 0 without draw.
    """
    timesteps, eta = sampler_steps(generator, steps), generator.eta if eta is None else eta
    upto = len(timesteps) if upto is None else upto
    if not 0 <= upto <= len(timesteps):
        raise ValueError(f'upto must be 0..{len(timesteps)}, the number of sampler steps, got {upto}')
    if eta > 0 and draw is None:
        raise ValueError(f'eta = {eta} adds noise at each step: pass draw(step index) -> noise')
    latents, log_probs = [generator.start(cond, noise)], []
    for index in range(upto):
        mean, std = _step(generator, latents[-1], index, timesteps, cond, guidance, eta)
        noisy = eta > 0 and bool((std > 0).all())
        sample = mean + std * draw(index).to(mean) if noisy else mean
        latents.append(sample)
        log_probs.append(gaussian_log_prob(sample, mean, std) if noisy else None)
    return Trajectory(latents, timesteps[: upto + 1], log_probs)


def step_levels(
    generator: Any, x_t: torch.Tensor, index: int, timesteps: torch.Tensor
) -> tuple[Union[int, float], torch.Tensor, torch.Tensor]:
    """What step `index` of a sampler goes between: (t, the level of x_t, that of the next sample).

    Levels are `a_t` or `sigma`, broadcastable to x_t; after the last step the sample is clean.

    Args:
        generator: see docs/architecture.md.
        x_t: (B, C, h, w), the sample at timesteps[index].
        index: of the step.
        timesteps: descending.
    """
    t, schedule = _number(timesteps[index]), generator.schedule
    level = schedule.level(t, x_t)
    last = index + 1 == len(timesteps)
    level_prev = torch.full_like(level, schedule.clean) if last else schedule.level(_number(timesteps[index + 1]), x_t)
    return t, level, level_prev


def step_x0(
    generator: Any, x_t: torch.Tensor, k: int, cond: Condition, steps: Steps = None, guidance: float = 1.0
) -> torch.Tensor:
    """The clean latent that the generator sees in x_t at step index k, closed form, with gradient: (B, C, h, w).

    Args:
        generator: see docs/architecture.md.
        x_t: (B, C, h, w), the sample at step index k.
        k: index into the sampler's steps, 0 is the noisiest.
        cond: B conditions.
        steps: see `sampler_steps`.
        guidance: of `generator.predict`.
    """
    t = _number(sampler_steps(generator, steps)[k])
    out = generator.predict(x_t, t, cond, guidance=guidance)
    return to_x0(x_t, out, generator.schedule.level(t, x_t), generator.prediction)


@no_gradient()
def super_resolve(
    generator: Any,
    lq: torch.Tensor,
    noise: torch.Tensor,
    steps: Steps = None,
    guidance: Optional[float] = None,
    eta: Optional[float] = None,
    draw: Optional[Draw] = None,
    cond: Optional[Condition] = None,
) -> torch.Tensor:
    """The full sampler, without gradient: lq (B, 3, h, w), [0, 1] -> sr (B, 3, H, W), [0, 1].

    Args:
        generator: see docs/architecture.md.
        lq: RGB images.
        noise: (B, C, h, w) of the latent, standard normal; from `rng.keyed_randn`, so that a result does not depend on
            its batch.
        steps: see `sampler_steps`.
        guidance: of `generator.predict`; None: the generator's own.
        eta: as in `rollout`.
        draw: as in `rollout`.
        cond: `generator.condition(lq)`, if it is there already.
    """
    cond = generator.condition(lq) if cond is None else cond
    guidance = generator.guidance if guidance is None else guidance
    trajectory = rollout(generator, cond, noise, steps=steps, guidance=guidance, eta=eta, draw=draw)
    return generator.decode(trajectory.latents[-1], cond)


def sample_images(
    generator: Any,
    lq: torch.Tensor,
    samples: Sequence[int],
    seed: int,
    purpose: str,
    cond: Optional[Condition] = None,
    **sampler: Any,
) -> torch.Tensor:
    """`super_resolve` with the noise of row i keyed on (seed, purpose, samples[i]): its result is the same in any batch.

    Args:
        generator: see docs/architecture.md.
        lq: (B, 3, h, w), [0, 1].
        samples: B indices.
        seed: of the noise.
        purpose: of the noise.
        cond: `generator.condition(lq)`, if it is there already.
        sampler: `steps`, `guidance`, `eta` of `super_resolve`.
    """
    with no_gradient():
        cond = generator.condition(lq) if cond is None else cond
    shape, device = generator.latent_shape(cond), lq.device

    def draw(index: int) -> torch.Tensor:
        return keyed_randn(shape, samples, seed, purpose, 'step', index, device=device)

    noise = keyed_randn(shape, samples, seed, purpose, device=device)
    return super_resolve(generator, lq, noise, draw=draw, cond=cond, **sampler)


def _step(
    generator: Any, x_t: torch.Tensor, index: int, timesteps: torch.Tensor, cond: Condition, guidance: float, eta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    t, level, level_prev = step_levels(generator, x_t, index, timesteps)
    out = generator.predict(x_t, t, cond, guidance=guidance)
    return step(x_t, out, level, level_prev, generator.prediction, eta)


def _number(t: torch.Tensor) -> Union[int, float]:
    return t.item()
