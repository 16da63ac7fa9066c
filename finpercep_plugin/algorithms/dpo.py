"""Diffusion-DPO: preferences between samples of one low-quality image, learnt through the denoising error.

Formula: `dpo_objective`. Pairs of the best and worst of many samples, with weights: DP2O-SR (Wu et al. 2025).
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Iterator, List, Literal, Optional, Sequence, Tuple

import torch

from finpercep_plugin.algorithms.denoising import denoising_error, one_step_error
from finpercep_plugin.algorithms.dpo_objective import dpo_objective
from finpercep_plugin.algorithms.group_scores import group_scores
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
from finpercep_plugin.algorithms.one_step import check_eta
from finpercep_plugin.algorithms.preferences import PreferenceBatch, best_worst_pairs
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.registry import ALGORITHMS
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rng import keyed_randn, keyed_torch
from finpercep_plugin.rollout import no_gradient, rollout, sampler_steps

__all__ = ['DPO']

BETA = {'eps': 2000.0, 'v': 2000.0, 'flow': 100.0}


@ALGORITHMS.register('DPO')
class DPO:
    """Online Diffusion-DPO: samples of each lq image are ranked by the reward, and the pairs are learnt at once.

    The error of a sample is that of the network's prediction at a random timestep, eps, v or velocity, with one timestep
    and one noise for both samples of a pair, and no guidance. For a one-step generator it is the error of the x0 that it
    predicts from its start, again with one noise for both.

    Args:
        beta: of the objective; None: 2000 for eps and v, 100 for flow.
        members: M, samples of each lq image.
        best: N; each of the N best is paired with each of the N worst. M = 4 N (32 and 8) is known to work.
        min_gap: pairs closer than this in reward are left out; ties always are.
        gap_power: pairs are weighted by gap^p, scaled to a mean of 1; 0: all alike.
        policy: what samples: 'current', or 'start', the policy that training began with.
        epochs: updates an iteration, each over all pairs with new timesteps and noise.
        sample_batch: samples made at a time.
        micro_batch: pairs in one forward and backward pass.
        guidance: of the sampler; None: the generator's own.
        steps: of the sampler; None: the generator's own.
        eta: noise of the sampler's steps, eps and v only; None: the generator's own.

    Attributes:
        even: all ranks make as many passes as the one with the most pairs, the others some without weight: where each has
            a part of the network.

    Raises:
        ValueError: numbers out of range.
    """

    needs_gradient = False
    needs_reference = True
    even = False

    def __init__(
        self,
        beta: Optional[float] = None,
        members: int = 8,
        best: int = 2,
        min_gap: float = 0.0,
        gap_power: float = 0.0,
        policy: Literal['current', 'start'] = 'current',
        epochs: int = 1,
        sample_batch: int = 8,
        micro_batch: int = 4,
        guidance: Optional[float] = None,
        steps: Optional[int] = None,
        eta: Optional[float] = None,
    ):
        if not 1 <= best <= members // 2:
            raise ValueError(f'DPO: needs 1 <= best <= members / 2, got best = {best}, members = {members}')
        if min(epochs, sample_batch, micro_batch) < 1 or min(min_gap, gap_power) < 0 or beta is not None and beta <= 0:
            raise ValueError(
                'DPO: needs epochs, sample_batch, micro_batch >= 1, min_gap, gap_power >= 0 and beta > 0, got '
                f'{epochs}, {sample_batch}, {micro_batch}, {min_gap}, {gap_power} and {beta}'
            )
        self.beta, self.members, self.best, self.min_gap, self.gap_power = beta, members, best, min_gap, gap_power
        self.policy, self.epochs, self.sample_batch, self.micro_batch = policy, epochs, sample_batch, micro_batch
        self.guidance, self.steps, self.eta = guidance, steps, eta

    def check(self, generator: Any) -> None:
        """Whether the settings fit the generator, which may have no networks yet.

        Raises:
            ValueError: eta for a flow, a number of steps it does not take, or samples that cannot differ.
        """
        sampler_steps(generator, self.steps)
        check_eta(generator, self.eta, 'DPO')
        check_varied(generator, 'DPO')

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
        """The optimiser updates of one iteration; none where no pair on any rank is left.

        Args:
            generator: in training; its parameters change between updates.
            lq: (B, 3, h, w), [0, 1].
            gt: (B, 3, H, W), for rewards that compare with it.
            reward_fn: (sr, lq=, gt=, prompt=) -> RewardOutput; called without gradient.
            seed: of the run.
            iteration: of the run.
            samples: B global indices of the lq images.
            exchange: ((n, ...) values, (n,) ids) -> those of all ranks.

        Yields:
            updates: iterators of micro-batches, each a loss, whose sum is the update's, and the micro-batch's
                diagnostics.
        """
        members = number_members(samples, self.members)
        latents, outputs = self._sample(generator, lq, gt, reward_fn, seed, iteration, members)
        ids = torch.tensor([m.image for m in members], device=outputs[0].score.device)
        scores, _ = group_scores(reward_fn, outputs, ids, exchange)
        pairs = best_worst_pairs(scores, [m.image for m in members], self.best, self.min_gap)
        winners, losers = [p.winner for p in pairs], [p.loser for p in pairs]
        batch = PreferenceBatch(
            [members[i].row for i in winners],
            [(members[i].image, members[i].number, members[j].number) for i, j in zip(winners, losers)],
            latents[winners],
            latents[losers],
            scores.new_tensor([pair.gap for pair in pairs]),
        )
        seen = {**reward_terms(outputs), 'pairs': torch.tensor(float(len(pairs)))}
        yield from self.pair_updates(generator, lq, batch, seed, iteration, samples, exchange, seen=seen)

    def pair_updates(
        self,
        generator: Any,
        lq: torch.Tensor,
        pairs: PreferenceBatch,
        seed: int,
        iteration: int,
        samples: Sequence[int],
        exchange: Exchange,
        images: bool = False,
        seen: Optional[Dict[str, torch.Tensor]] = None,
    ) -> Iterator[Update]:
        """As `updates`, of pairs that are there already.

        Args:
            generator: in training.
            lq: (B, 3, h, w), [0, 1].
            pairs: of the rows of lq.
            seed: of the run.
            iteration: of the run.
            samples: B global indices of the lq images.
            exchange: ((n, ...) values, (n,) ids) -> those of all ranks.
            images: winners and losers are images, to be encoded, not latents.
            seen: further diagnostics of every micro-batch.
        """
        weights = pairs.gap.float() ** self.gap_power
        rows = torch.tensor(pairs.rows, dtype=torch.long, device=weights.device)
        share = weights.new_zeros(len(lq)).index_add(0, rows, weights)
        everywhere, _ = exchange(share, torch.tensor(list(samples), device=share.device))
        mean = float(everywhere.double().sum()) * len(share) / len(everywhere)  # summed weight a rank, on average
        if mean == 0:
            return
        idle = self._idle(len(pairs), exchange, share.device) if self.even else 0
        for epoch in range(self.epochs):
            yield self._update(generator, lq, pairs, weights / mean, (seed, iteration, epoch), images, seen or {}, idle)

    def _idle(self, count: int, exchange: Exchange, device: torch.device) -> int:
        """How many more micro-batches another rank has than this one, with `count` pairs, goes through."""
        passes = max(1, -(-count // self.micro_batch))
        everywhere, _ = exchange(torch.tensor([passes], device=device), torch.tensor([0], device=device))
        return int(everywhere.max()) - passes

    def _update(
        self,
        generator: Any,
        lq: torch.Tensor,
        pairs: PreferenceBatch,
        weights: torch.Tensor,
        key: Tuple[int, ...],
        images: bool,
        seen: Dict[str, torch.Tensor],
        idle: int,
    ) -> Update:
        blank = pairs.winner.new_zeros(1, *pairs.winner.shape[1:])
        if not len(pairs):  # other ranks have some: one of no weight takes part in their update
            pairs = PreferenceBatch([0], [('none',)], blank, blank, pairs.gap.new_ones(1))
            weights = weights.new_zeros(1)
        beta = BETA[generator.prediction] if self.beta is None else self.beta
        for part in chunks(range(len(pairs)), self.micro_batch):
            rows, keys = [pairs.rows[i] for i in part], [pairs.keys[i] for i in part]
            stored = torch.cat([pairs.winner[part], pairs.loser[part]])
            errors = self._errors(generator, lq, rows, keys, stored, key, images)
            loss, diagnostics = dpo_objective(*errors, beta, weights[part])
            yield loss.sum(), {**seen, 'gap': pairs.gap[part].float().mean(), **diagnostics}
        for _ in range(idle):
            errors = self._errors(generator, lq, [0], [('none',)], torch.cat([blank, blank]), key, images)
            yield dpo_objective(*errors, beta, weights.new_zeros(1))[0].sum(), {}

    def _errors(
        self,
        generator: Any,
        lq: torch.Tensor,
        rows: List[int],
        keys: List[Tuple],
        stored: torch.Tensor,
        key: Tuple[int, ...],
        images: bool,
    ) -> Tuple[torch.Tensor, ...]:
        """Errors (P,) of policy on winner and loser, then of the reference, in batches of the same shape."""
        cond = condition_rows(generator, lq, rows + rows)
        with no_gradient():
            x0 = generator.encode(stored, cond) if images else stored
        noise = torch.cat([keyed_randn(x0.shape[1:], [0], *key, 'dpo noise', *pair) for pair in keys]).to(x0)
        t = torch.stack([generator.draw_t(keyed_torch(*key, 'dpo t', *pair)) for pair in keys])

        def errors(condition: Condition) -> Tuple[torch.Tensor, ...]:
            if len(generator.steps) == 1:
                return one_step_error(generator, x0, torch.cat([noise, noise]), condition).chunk(2)
            return denoising_error(generator, x0, torch.cat([noise, noise]), torch.cat([t, t]), condition).chunk(2)

        policy = errors(cond)
        with no_gradient(), generator.reference():
            return *policy, *errors(condition_rows(generator, lq, rows + rows))

    def _sample(
        self,
        generator: Any,
        lq: torch.Tensor,
        gt: Optional[torch.Tensor],
        reward_fn: Callable[..., RewardOutput],
        seed: int,
        iteration: int,
        members: List[Member],
    ) -> Tuple[torch.Tensor, List[RewardOutput]]:
        """Clean latents of the members, (n, C, h, w), and their rewards, a batch at a time."""
        latents, outputs = [], []
        for part in chunks(members, self.sample_batch):
            with no_gradient():
                sample, sr, prompts = self._rollout(generator, lq, part, seed, iteration)
                outputs.append(reward_rows(reward_fn, sr, lq, gt, [m.row for m in part], prompts))
            latents.append(sample)
        return torch.cat(latents), outputs

    def _rollout(
        self, generator: Any, lq: torch.Tensor, part: List[Member], seed: int, iteration: int
    ) -> Tuple[torch.Tensor, torch.Tensor, Sequence[str]]:
        """Clean latents (n, C, h, w), their images and texts, by the policy that samples."""
        with generator.reference() if self.policy == 'start' else contextlib.nullcontext():
            cond = condition_rows(generator, lq, [m.row for m in part])
            shape, key = generator.latent_shape(cond), (seed, iteration, 'dpo')
            noise = member_randn(shape, part, *key, 'start', device=lq.device)
            guidance = generator.guidance if self.guidance is None else self.guidance

            def draw(index: int) -> torch.Tensor:
                return member_randn(shape, part, *key, 'step', index, device=lq.device)

            x0 = rollout(generator, cond, noise, None, self.steps, guidance, self.eta, draw).latents[-1]
            return x0, generator.decode(x0, cond), generator.prompts(cond)
