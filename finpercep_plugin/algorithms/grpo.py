"""Flow-GRPO: groups of samples of one low-quality image, and the likelihood of the sampler steps that made the better ones.

Formulas: METHOD.md §5; FinPercep-RM supplement Eq. 4-6; Flow-GRPO (Liu et al. 2025). The map as a dense reward is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Literal, Optional, Sequence, Tuple

import torch

from finpercep_plugin.algorithms.advantages import Advantages
from finpercep_plugin.algorithms.grpo_objective import default_clip, gaussian_kl, grpo_objective
from finpercep_plugin.algorithms.members import (
    Exchange,
    Member,
    Update,
    check_varied,
    chunks,
    condition_rows,
    member_randn,
    number_members,
    reward_rows,
    reward_terms,
)
from finpercep_plugin.algorithms.noisy_steps import NoisySteps
from finpercep_plugin.algorithms.policy import DTYPES, StoredRollout, policy_rollout, step_gaussian
from finpercep_plugin.algorithms.unfit import Unfit
from finpercep_plugin.diffusion.regions import region_shares
from finpercep_plugin.registry import ALGORITHMS
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rng import keyed_numpy
from finpercep_plugin.rollout import no_gradient, sampler_steps

__all__ = ['FlowGRPO']


@dataclass(frozen=True)
class _Chunk:
    """Samples that are made together and trained together, so that every batch has one shape throughout."""

    members: List[Member]
    rollout: StoredRollout
    reward: RewardOutput
    advantage: torch.Tensor

    @property
    def rows(self) -> List[int]:
        return [member.row for member in self.members]


@ALGORITHMS.register('FlowGRPO')
class FlowGRPO:
    """Policy gradient over sampler steps that draw; for any reward, and without its gradient.

    A step of a flow model becomes one of an SDE, that of an eps or v model is DDIM with noise. Each step's ratio, its log
    a mean over dimensions, is exactly 1 while the parameters are those that sampled: each batch of samples is trained as
    it was made, from latents as they are stored. Call both under the same autocast. What a generator makes its start of
    is given to the policy, and not trained.

    Args:
        group: samples of each lq image that each process makes; where several processes have the same image,
            `first_member` tells their samples apart, and they are one group.
        noise: which steps draw, and how; None: as `NoisySteps` has it.
        trained_steps: how many of the steps that draw are trained, chosen anew each iteration; None: all.
        clip: range of the ratio; None: 1e-4 sqrt(65536 / D) for latents of D dimensions. That of a region of d of them
            is wider by sqrt(D / d).
        kl_weight: of the KL to the starting policy; 0 leaves it out.
        advantage_std: over each 'group' or over the whole 'batch'.
        advantage_clip: largest advantage.
        epochs: times that the samples of an iteration are gone through.
        updates_per_epoch: optimiser updates in each of them; at most as many as there are micro-batches.
        dense: how much of the advantage is that of the region, from a reward's map M: `A(p) = (1 - dense) A + dense
            A_region(p)`, where A_region compares `r(p) = 1 - M(p)`, a mean over region p, with the same place in the
            other samples of the group (`group_advantage`), and regions have ratios and clips of their own. 0 .. 1, which
            forgets what the map does not show, and what a region does to others. Without effect on a reward that gives
            no map, such as RM_0 in the curriculum's first stage: then A is that of the whole.
        region_size: side of the regions, in pixels of sr.
        micro_batch: samples in one rollout, and in one forward and backward pass, which is of one step.
        store: dtype of the stored latents.
        guidance: of sampling and training; None: the generator's own.
        steps: of the sampler; None: the generator's own.

    Attributes:
        first_member: number of the first sample of an image that this process makes.

    Raises:
        ValueError: numbers out of range.
    """

    needs_gradient = False
    eta: Optional[float] = None  # of the samples that a reward is calibrated on: the generator's own

    def __init__(
        self,
        group: int = 24,
        noise: Optional[NoisySteps] = None,
        trained_steps: Optional[int] = None,
        clip: Optional[float] = None,
        kl_weight: float = 0.04,
        advantage_std: Literal['group', 'batch'] = 'group',
        advantage_clip: float = 5.0,
        epochs: int = 1,
        updates_per_epoch: int = 1,
        dense: float = 0.0,
        region_size: int = 32,
        micro_batch: int = 4,
        store: Literal['float32', 'bfloat16', 'float16'] = 'float32',
        guidance: Optional[float] = None,
        steps: Optional[int] = None,
    ):
        counts = {'group': group, 'epochs': epochs, 'updates_per_epoch': updates_per_epoch, 'micro_batch': micro_batch}
        wrong = [f'{name} must be 1 or more, got {value}' for name, value in counts.items() if value < 1]
        if trained_steps is not None and trained_steps < 1:
            wrong.append(f'trained_steps must be 1 or more, got {trained_steps}')
        if kl_weight < 0 or advantage_clip <= 0 or clip is not None and clip <= 0:
            wrong.append(
                f'kl_weight must not be negative, and clip and advantage_clip must be above 0, got {kl_weight}, '
                f'{clip} and {advantage_clip}'
            )
        if not 0 <= dense <= 1 or region_size < 1:
            wrong.append(f'dense must be in 0..1 and region_size 1 or more, got {dense} and {region_size}')
        if wrong:
            raise ValueError('FlowGRPO: ' + '; '.join(wrong))
        self.group, self.noise, self.trained_steps = group, noise or NoisySteps(), trained_steps
        self.clip, self.kl_weight, self.dense = clip, kl_weight, dense
        self.advantages = Advantages(advantage_std, advantage_clip, dense, region_size)
        self.epochs, self.updates_per_epoch, self.micro_batch = epochs, updates_per_epoch, micro_batch
        self.store, self.guidance, self.steps = DTYPES[store], guidance, steps
        self.needs_reference = kl_weight > 0
        self.first_member = 0

    def check(self, generator: Any) -> None:
        """Whether the settings fit the generator, which may have no networks yet.

        Raises:
            ValueError: they do not; says what to set.
        """
        check_varied(generator, 'FlowGRPO')
        number = len(sampler_steps(generator, self.steps))
        try:
            self.noise.check(generator, number)
        except Unfit as error:
            raise Unfit(f'FlowGRPO: {error}', error.options) from None
        except ValueError as error:
            raise ValueError(f'FlowGRPO: {error}') from None
        drawn = self.noise.window or self.noise.allowed(generator, number)
        if self.trained_steps is not None and self.trained_steps > drawn:
            raise ValueError(f'FlowGRPO: trained_steps = {self.trained_steps}, but only {drawn} steps draw')
        self.advantages.side(generator)

    def shorten(self) -> None:
        """For a dry run: nothing to leave out, since all of the rollout is learnt from."""

    def updates(
        self,
        generator: Any,
        lq: torch.Tensor,
        gt: Optional[torch.Tensor],
        reward_fn: Callable[..., RewardOutput],
        seed: int,
        iteration: int,
        samples: Sequence[int],
        exchange: Exchange,
    ) -> Iterator[Update]:
        """The optimiser updates of one iteration, `epochs * updates_per_epoch`.

        Args:
            generator: in training; its parameters change between updates.
            lq: (B, 3, h, w), [0, 1].
            gt: (B, 3, H, W), for rewards that compare with it.
            reward_fn: (sr, lq=, gt=, prompt=) -> RewardOutput; called without gradient.
            seed: of the run.
            iteration: of the run.
            samples: B global indices of the lq images, by which samples are grouped.
            exchange: ((n, ...) values, (n,) ids) -> those of all ranks.

        Yields:
            updates: iterators of micro-batches, each a loss, whose sum is the update's, and the micro-batch's
                diagnostics, with those of all samples.
        """
        timesteps = sampler_steps(generator, self.steps)
        drawn = self.noise.indices(generator, len(timesteps), seed, iteration)
        sampled = [
            self._sample(generator, lq, gt, reward_fn, timesteps, drawn, members, seed, iteration)
            for members in chunks(number_members(samples, self.group, self.first_member), self.micro_batch)
        ]
        batches, seen = self._with_advantages(reward_fn, sampled, exchange)
        trained = drawn
        if self.trained_steps is not None:
            order = keyed_numpy(seed, iteration, 'grpo steps').permutation(len(drawn))[: self.trained_steps]
            trained = sorted(drawn[i] for i in order)
        for epoch in range(self.epochs):
            order = keyed_numpy(seed, iteration, epoch, 'grpo order').permutation(len(batches)).tolist()
            number = min(self.updates_per_epoch, len(batches))
            for part in range(number):
                yield self._update(generator, lq, [batches[i] for i in order[part::number]], timesteps, trained, seen)

    def _update(
        self,
        generator: Any,
        lq: torch.Tensor,
        batches: List[_Chunk],
        timesteps: torch.Tensor,
        trained: List[int],
        seen: Dict[str, torch.Tensor],
    ) -> Update:
        total = sum(len(batch.members) for batch in batches) * len(trained)
        for batch in batches:
            for index in trained:
                loss, diagnostics = self._loss(generator, lq, batch, timesteps, index)
                yield loss * (len(batch.members) / total), {**seen, **diagnostics}

    def _loss(
        self, generator: Any, lq: torch.Tensor, batch: _Chunk, timesteps: torch.Tensor, index: int
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Mean over the samples of a micro-batch, at one step."""
        policy, x_t = self.noise.policy(generator), batch.rollout.before[index].float()
        guidance = self._guidance(generator)
        cond = condition_rows(generator, lq, batch.rows)
        mean, std = step_gaussian(generator, x_t, index, timesteps, cond, guidance, policy)
        side = self.advantages.side(generator)
        log_prob, kl = policy.log_prob(batch.rollout.after[index].float(), mean, std, side), None
        if self.kl_weight:
            with no_gradient(), generator.reference():
                cond = condition_rows(generator, lq, batch.rows)
                reference, _ = step_gaussian(generator, x_t, index, timesteps, cond, guidance, policy)
            kl = gaussian_kl(mean, reference, std)
        old, (height, width) = batch.rollout.log_probs[index], x_t.shape[2:]
        clip = default_clip(x_t[0].numel()) if self.clip is None else self.clip
        if side is None:
            return grpo_objective(log_prob, old, batch.advantage, clip, kl, self.kl_weight)
        clip *= math.sqrt(height * width / (min(side, height) * min(side, width)))
        shares = region_shares(height, width, side).to(log_prob.device)
        return grpo_objective(log_prob, old, batch.advantage, clip, kl, self.kl_weight, shares)

    @no_gradient()
    def _sample(
        self,
        generator: Any,
        lq: torch.Tensor,
        gt: Optional[torch.Tensor],
        reward_fn: Callable[..., RewardOutput],
        timesteps: torch.Tensor,
        drawn: List[int],
        members: List[Member],
        seed: int,
        iteration: int,
    ) -> Tuple[List[Member], StoredRollout, RewardOutput]:
        rows = [member.row for member in members]
        cond = condition_rows(generator, lq, rows)
        shape, key = generator.latent_shape(cond), (seed, iteration, 'grpo')

        def draw(index: int) -> torch.Tensor:
            return member_randn(shape, members, *key, 'step', index, device=lq.device)

        noise = member_randn(shape, members, *key, 'start', device=lq.device)
        policy, guidance = self.noise.policy(generator), self._guidance(generator)
        side = self.advantages.side(generator)
        rollout = policy_rollout(generator, cond, noise, timesteps, guidance, policy, drawn, draw, self.store, side)
        sr = generator.decode(rollout.final, cond)
        return members, rollout, reward_rows(reward_fn, sr, lq, gt, rows, generator.prompts(cond))

    def _with_advantages(
        self,
        reward_fn: Callable[..., RewardOutput],
        sampled: List[Tuple[List[Member], StoredRollout, RewardOutput]],
        exchange: Exchange,
    ) -> Tuple[List[_Chunk], Dict[str, torch.Tensor]]:
        outputs = [reward for _, _, reward in sampled]
        ids = torch.tensor([m.image for members, _, _ in sampled for m in members], device=outputs[0].score.device)
        grid = next(iter(sampled[0][1].log_probs.values())).shape[1:]
        advantage, seen = self.advantages(reward_fn, outputs, ids, exchange, grid)
        parts = advantage.split([len(members) for members, _, _ in sampled])
        seen |= {**reward_terms(outputs), 'advantage_abs': advantage.abs().mean()}
        return [_Chunk(*sample, part) for sample, part in zip(sampled, parts)], seen

    def _guidance(self, generator: Any) -> float:
        return generator.guidance if self.guidance is None else self.guidance
