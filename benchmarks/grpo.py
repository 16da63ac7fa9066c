"""One iteration of Flow-GRPO on SeeSR against the textbook loop."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any, Callable

import torch

from benchmarks.common import Result, Setup, figure, in_turn
from benchmarks.generators import describe, forget, load_reward, load_seesr, pictures, write
from finpercep_plugin.algorithms.grpo import FlowGRPO
from finpercep_plugin.algorithms.members import alone, member_randn, number_members
from finpercep_plugin.algorithms.noisy_steps import NoisySteps
from finpercep_plugin.diffusion.steps import gaussian_log_prob, step
from finpercep_plugin.generators.memory import Memory
from finpercep_plugin.rollout import no_gradient

TITLE = 'One iteration of GRPO'
WORDS = """A group of samples of one new lq, their rewards, and one AdamW update with a KL to the start. The textbook loop (written in benchmarks/grpo.py): conditions computed for every sample of the group, every step of the sampler draws and is trained, the
reference is a second copy of the network. Both in float32, without guidance, in batches of the same size, nothing recomputed. The *window* is of 3 neighbouring steps that draw, the others are deterministic (`noise.window`)."""

TEXTBOOK, ALL, WINDOW = 'the textbook loop', 'all steps, shared conditions', 'window of 3, shared conditions'
CLIP, KL, BATCH = 1e-3, 0.04, 2


def run(setup: Setup) -> Result:
    """Time of an iteration."""
    side = 512 if setup.device != 'cpu' else 64
    steps, group = (5, 2) if setup.quick else (8, 4)
    with tempfile.TemporaryDirectory(prefix='bench_grpo_') as name:
        files = write(Path(name), setup)
        lq, gt = pictures(setup, 1, side)
        reward = load_reward(files, setup)
        plain = load_seesr(files, setup, checkpointing=False, cache=0)
        generator = load_seesr(files, setup, checkpointing=False, reference=True)
        works = {TEXTBOOK: _textbook_work(plain, reward, lq, steps, group, setup.seed)}
        for row, window in ((ALL, None), (WINDOW, 3)):
            algorithm = FlowGRPO(
                group, NoisySteps(window=window), clip=CLIP, kl_weight=KL, micro_batch=BATCH, guidance=1.0, steps=steps
            )
            works[row] = _work(generator, reward, lq, algorithm, setup.seed)
        seconds = in_turn(works, max(1, setup.rounds - 1), setup.device, warm=False)
        sizes = f'{describe(generator, reward, side)}, group of {group}, {steps} steps'
    return Result(
        [
            figure(f'{ALL}: time', TEXTBOOK, seconds[ALL], seconds[TEXTBOOK]),
            figure(f'{WINDOW}: time', TEXTBOOK, seconds[WINDOW], seconds[TEXTBOOK], goal='<= 0.7'),
        ],
        sizes=sizes,
    )


def _optimiser(generator: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in generator.parameters() if p.requires_grad], lr=1e-6)


def _work(generator: Any, reward: Any, lq: torch.Tensor, algorithm: FlowGRPO, seed: int) -> Callable[[], float]:
    """An iteration by the package; its loss."""
    optimiser = _optimiser(generator)

    def work() -> float:
        forget(generator)
        total = 0.0
        for update in algorithm.updates(generator, lq, None, reward, seed, 1, [0], alone):
            optimiser.zero_grad(set_to_none=True)
            for loss, _ in update:
                loss.backward()
                total += loss.item()
            optimiser.step()
        return total

    return work


def _textbook_work(
    generator: Any, reward: Any, lq: torch.Tensor, steps: int, group: int, seed: int
) -> Callable[[], float]:
    optimiser, reference = _optimiser(generator), copy.deepcopy(generator.network).requires_grad_(False)
    generator.text.memory = Memory(0)

    def work() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = textbook(generator, reference, reward, lq, steps, group, seed)
        optimiser.step()
        return loss

    return work


def textbook(
    generator: Any, reference: torch.nn.Module, reward: Any, lq: torch.Tensor, steps: int, group: int, seed: int
) -> float:
    """Gradients of one update as one would write it down, with the draws of the package's, of which the loss is the same number.

    Args:
        generator: with an eps network, which forgets its conditions.
        reference: a copy of its network.
        reward: (sr, lq=, prompt=) -> .score.
        lq: (1, 3, h, w).
        steps: of the sampler; all but the last two draw.
        group: samples, a multiple of `BATCH`.
        seed: of the draws.
    """
    members, timesteps = number_members([0], group), generator.timesteps(steps)
    batches = []
    with no_gradient():
        for first in range(0, group, BATCH):
            part = members[first : first + BATCH]
            cond = generator.condition(lq.repeat(len(part), 1, 1, 1))
            shape = generator.latent_shape(cond)
            x, path = generator.start(cond, member_randn(shape, part, seed, 1, 'grpo', 'start', device=lq.device)), []
            for index in range(steps):
                draws = index < steps - 2
                mean, std = _gaussian(generator, x, index, timesteps, cond, 1.0 if draws else 0.0)
                if draws:
                    after = mean + std * member_randn(shape, part, seed, 1, 'grpo', 'step', index, device=lq.device)
                    path.append((index, x, after, gaussian_log_prob(after, mean, std)))
                    mean = after
                x = mean
            sr = generator.decode(x, cond)
            batches.append((cond, path, reward(sr, lq=lq, prompt=generator.prompts(cond)).score))
    scores = torch.cat([score for _, _, score in batches])
    advantages = ((scores - scores.mean()) / (scores.std(unbiased=False) + 1e-4)).clamp(-5, 5).split(BATCH)
    total = 0.0
    for (cond, path, _), advantage in zip(batches, advantages):
        for index, before, after, old in path:
            mean, std = _gaussian(generator, before, index, timesteps, cond, 1.0)
            ratio = (gaussian_log_prob(after, mean, std) - old).exp()
            with no_gradient():
                network, generator.part.network = generator.part.network, reference
                start, _ = _gaussian(generator, before, index, timesteps, cond, 1.0)
                generator.part.network = network
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            kl = ((mean - start) ** 2 / (2 * std**2)).flatten(1).mean(1)
            loss = (KL * kl - gain).sum() / (group * len(path))
            loss.backward()
            total += loss.item()
    return total


def _gaussian(
    generator: Any, x: torch.Tensor, index: int, timesteps: torch.Tensor, cond: Any, eta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread of the sample after step `index`."""
    t, schedule = timesteps[index].item(), generator.schedule
    level = schedule.level(t, x)
    after = (
        torch.full_like(level, schedule.clean)
        if index + 1 == len(timesteps)
        else schedule.level(timesteps[index + 1].item(), x)
    )
    return step(x, generator.predict(x, t, cond), level, after, 'eps', eta)
