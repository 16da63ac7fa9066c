"""One ReFL step on SeeSR against the plain way of writing it."""

from __future__ import annotations

import copy
import functools
import gc
import tempfile
from pathlib import Path
from typing import Any, Callable, NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.common import MIB, Result, Setup, clock, figure, parameter_bytes, peak_memory
from benchmarks.generators import HALF, describe, forget, load_reward, load_seesr, picture_side, pictures, write
from finpercep_plugin.algorithms.refl import ReFL
from finpercep_plugin.diffusion.prediction import add_noise, to_x0
from finpercep_plugin.diffusion.steps import step
from finpercep_plugin.rng import keyed_randn, keyed_torch
from finpercep_plugin.rollout import no_gradient

TITLE = 'One ReFL step'
WORDS = """An iteration: conditions of a new lq, rollout without gradient, one step with gradient, decode, reward, noise-prediction loss, backward, AdamW. The plain way (written in benchmarks/refl_step.py): float32, nothing recomputed,
the whole picture decoded and rewarded, a second copy of the network as the reference. *Equal memory options*: nothing recomputed and the whole picture, so only the precision (with `channels_last`) and the missing copy differ. *All options*: also checkpointing of generator,
VAE and reward, and a decoded square of half the side. On a CPU the networks have half of the released widths. Memory is weights and moments plus the peak of the step above them."""

PLAIN = 'the plain way'
OPTIONS: dict[str, dict[str, Any]] = {
    'bfloat16, equal memory options': {'bf16': True},
    'bfloat16, decode_size of half': {'bf16': True, 'half': True},
    'bfloat16, all options': {'bf16': True, 'half': True, 'checkpointing': True},
}


class Iteration(NamedTuple):
    """What is measured.

    Attributes:
        work: one iteration.
        held: bytes between two.
        sizes: for the page.
    """

    work: Callable[[], None]
    held: Callable[[], int]
    sizes: str


def run(setup: Setup) -> Result:
    """Time and memory of `OPTIONS` against the plain way."""
    side, steps = picture_side(setup), 2 if setup.quick else 6
    with tempfile.TemporaryDirectory(prefix='bench_refl_') as name:
        files = write(Path(name), setup, HALF)
        lq, gt = pictures(setup, 1, side)
        makers: dict[str, Callable[[], Iteration]] = {PLAIN: lambda: _plain_work(files, setup, lq, gt, steps)}
        for label, options in OPTIONS.items():
            makers[label] = functools.partial(_work, files, setup, lq, gt, steps, **options)
        seconds, peaks, sizes = _alone(makers, max(1, setup.rounds - 1), setup)
    figures = []
    for name in OPTIONS:
        time_goal = '<= 0.8' if name == 'bfloat16, equal memory options' else ''
        memory_goal = '<= 0.5' if name == 'bfloat16, all options' else ''
        figures.append(figure(f'{name}: time', PLAIN, seconds[name], seconds[PLAIN], goal=time_goal))
        figures.append(figure(f'{name}: peak memory', PLAIN, [peaks[name]], [peaks[PLAIN]], 'MiB', memory_goal))
    return Result(figures, sizes=f'{sizes}, rollout of {steps - 1} steps before the one with gradient')


def _alone(
    makers: dict[str, Callable[[], Iteration]], rounds: int, setup: Setup
) -> tuple[dict[str, list[float]], dict[str, float], str]:
    """Seconds by round, every other one backwards, and MiB; one at a time is in memory."""
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    peaks, sizes = {}, ''
    for number in range(rounds):
        for name in list(makers)[:: -1 if number % 2 else 1]:
            one = makers[name]()
            one.work()  # warms up, and makes the optimiser's moments
            if not number:
                peaks[name] = (one.held() + peak_memory(one.work, setup.device)) / MIB
            begin = clock(setup.device)
            one.work()
            seconds[name].append(clock(setup.device) - begin)
            sizes = one.sizes
            del one
            gc.collect()
    return seconds, peaks, sizes


def _work(
    files: dict[str, str],
    setup: Setup,
    lq: torch.Tensor,
    gt: torch.Tensor,
    steps: int,
    bf16: bool = False,
    half: bool = False,
    checkpointing: bool = False,
) -> Iteration:
    """By the package."""
    generator = load_seesr(files, setup, bf16, channels_last=bf16, checkpointing=checkpointing)
    reward = load_reward(files, setup, bf16, checkpointing)
    algorithm = ReFL(steps - 1, steps - 1, steps=steps, decode_size=lq.shape[-1] * 2 if half else None)
    optimiser = torch.optim.AdamW([p for p in generator.parameters() if p.requires_grad], lr=1e-6)

    def work() -> None:
        forget(generator)
        with torch.autocast(lq.device.type, torch.bfloat16, enabled=bf16):
            (update,) = algorithm.updates(generator, lq, gt, reward, setup.seed, 1, [0], None)
            loss, _ = next(update)
        _update(optimiser, loss)

    def held() -> int:
        return parameter_bytes(generator, reward) + _training_bytes(optimiser)

    return Iteration(work, held, describe(generator, reward, gt.shape[-1]))


def _plain_work(files: dict[str, str], setup: Setup, lq: torch.Tensor, gt: torch.Tensor, steps: int) -> Iteration:
    generator, reward = load_seesr(files, setup, checkpointing=False), load_reward(files, setup)
    reference = copy.deepcopy(generator.network).requires_grad_(False)
    optimiser = torch.optim.AdamW([p for p in generator.parameters() if p.requires_grad], lr=1e-6)

    def work() -> None:
        forget(generator)
        _update(optimiser, plain_loss(generator, reward, lq, gt, steps, setup.seed))

    def held() -> int:
        return parameter_bytes(generator, reward, reference) + _training_bytes(optimiser)

    return Iteration(work, held, describe(generator, reward, gt.shape[-1]))


def _training_bytes(optimiser: torch.optim.Optimizer) -> int:
    """Of the moments; there are no gradients between two iterations."""
    moments = [v for state in optimiser.state.values() for v in state.values() if torch.is_tensor(v)]
    return sum(t.numel() * t.element_size() for t in moments)


def _update(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    loss.backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def plain_loss(generator: Any, reward: Any, lq: torch.Tensor, gt: torch.Tensor, steps: int, seed: int) -> torch.Tensor:
    """ReFL as one would write it down, with the draws of the package's, of which it is the same number.

    Args:
        generator: with an eps network.
        reward: (sr, lq=, gt=, prompt=) -> .score.
        lq, gt: (1, 3, h, w), (1, 3, H, W).
        steps: of the sampler; the last one has the gradient.
        seed: of the draws.
    """
    cond, schedule = generator.condition(lq), generator.schedule
    shape, timesteps = generator.latent_shape(cond), generator.timesteps(steps)
    with no_gradient():
        x = generator.start(cond, keyed_randn(shape, [0], seed, 1, 'refl start', device=lq.device))
        for index in range(steps - 1):
            t, after = timesteps[index].item(), timesteps[index + 1].item()
            out = generator.predict(x, t, cond)
            mean, std = step(x, out, schedule.level(t, x), schedule.level(after, x), 'eps', generator.eta)
            x = mean + std * keyed_randn(shape, [0], seed, 1, 'refl step', index, device=lq.device)
    t = timesteps[steps - 1].item()
    sr = generator.decode(to_x0(x, generator.predict(x, t, cond), schedule.level(t, x), 'eps'), cond)
    reward_loss = 1e-3 * F.relu(2.0 - reward(sr, lq=lq, gt=gt, prompt=generator.prompts(cond)).score).mean()
    noise = keyed_randn(shape, [0], seed, 1, 'pretrain noise', device=lq.device)
    t = generator.draw_t(keyed_torch(seed, 1, 'pretrain t', 0)).reshape(1)
    latent = generator.encode(gt, cond)
    noised = add_noise(latent, noise, schedule.level(t, latent), 'eps')
    out = generator.predict(noised, t, generator.training_condition(cond, noise))
    return reward_loss + F.mse_loss(out, noise)
