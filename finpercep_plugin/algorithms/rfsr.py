"""RFSR: reward feedback at late sampler steps, structure of the ground truth at early ones (arXiv 2412.03268).

Formulas: METHOD.md §5.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Literal, Optional, Sequence, Tuple, Union

import torch

from finpercep_plugin.algorithms.gram import VGGFeatures, find_vgg, gram_loss, shared_scale
from finpercep_plugin.algorithms.lowpass import Wavelet, ll_loss
from finpercep_plugin.algorithms.members import Exchange, Update, chunks, reward_terms
from finpercep_plugin.algorithms.one_step import (
    check_decode_size,
    check_eta,
    check_micro_batch,
    decode_region,
    sample_at,
)
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.generators.pixels import Region, crop
from finpercep_plugin.registry import ALGORITHMS
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rng import keyed_numpy
from finpercep_plugin.rollout import no_gradient, sampler_steps, step_x0

__all__ = ['RFSR']

Steps = Tuple[int, int]


@ALGORITHMS.register('RFSR')
class RFSR:
    """Fine-tunes a generator towards a differentiable reward, one sampler step an iteration, alike for all ranks.

    The sampler runs to that step without gradient, and x0 is predicted there with it. Early steps, `ll_weight |LL(x0) -
    LL(gt)|`. Late steps, `reward_weight relu(margin - R) + gram_weight` times the distance of Gram matrices to the picture
    that the starting generator would make of the same x_t.

    Args:
        early: first and last index of the early steps, 0 the noisiest; None: the first 40 % (0-19 of 50).
        late: of the late steps; None: the last 20 % (40-49 of 50).
        early_probability: of an early step; where a sampler is so short that it has none, all are late.
        ll_weight: of the LL term.
        wavelet: whose LL.
        reward_weight: of the reward term.
        margin: rewards above it no longer pull.
        gram_weight: of the Gram term; 0 leaves it out.
        gram_share: instead of `gram_weight`, weigh each sample's Gram term so that its gradient to the picture is this
            share of that of the reward term; it then rests where the reward no longer pulls.
        gram: distance of the Gram matrices; 'kl' between their row-wise softmax.
        vgg: file of torchvision's VGG19 weights; None: in the cache of torch.hub.
        guidance: of the rollout and of the step with gradient.
        steps: length of the sampler; None: the generator's own.
        eta: noise of the rollout's steps, eps and v only; None: the generator's own.
        decode_size: side in pixels of the square of sr that is decoded, at a new place each iteration, the same for the
            whole batch; None: all of it.
        micro_batch: samples in one forward and backward pass; None: all.

    Raises:
        ValueError: numbers out of range.
    """

    needs_gradient = True
    files = ('vgg',)

    def __init__(
        self,
        early: Optional[Tuple[int, int]] = None,
        late: Optional[Tuple[int, int]] = None,
        early_probability: float = 2 / 3,
        ll_weight: float = 5e-4,
        wavelet: Wavelet = 'dtcwt',
        reward_weight: float = 5e-5,
        margin: float = 2.0,
        gram_weight: float = 5e-7,
        gram_share: Optional[float] = None,
        gram: Literal['l1', 'kl'] = 'l1',
        vgg: Optional[str] = None,
        guidance: float = 1.0,
        steps: Optional[int] = None,
        eta: Optional[float] = None,
        decode_size: Optional[int] = None,
        micro_batch: Optional[int] = None,
    ):
        if not 0 <= early_probability <= 1:
            raise ValueError(f'RFSR: early_probability must be in 0..1, got {early_probability}')
        weights = {'ll_weight': ll_weight, 'reward_weight': reward_weight, 'gram_weight': gram_weight}
        wrong = [f'{n} = {v}' for n, v in {**weights, 'gram_share': gram_share or 0.0}.items() if v < 0]
        if wrong:
            raise ValueError(f'RFSR: weights must not be negative, got {", ".join(wrong)}')
        check_micro_batch(micro_batch, 'RFSR')
        self.early, self.late, self.early_probability = early, late, early_probability
        self.ll_weight, self.wavelet, self.reward_weight, self.margin = ll_weight, wavelet, reward_weight, margin
        self.gram_weight, self.gram_share, self.gram, self.vgg = gram_weight, gram_share, gram, vgg
        self.guidance, self.steps, self.eta = guidance, steps, eta
        self.decode_size, self.micro_batch = decode_size, micro_batch
        self.needs_reference = bool(gram_weight if gram_share is None else gram_share)
        self._features: Optional[VGGFeatures] = None

    def check(self, generator: Any) -> None:
        """Whether the settings fit the generator, which may have no networks yet, and the VGG weights are there.

        Raises:
            ValueError: they do not, or are not; says what to set.
        """
        number = len(sampler_steps(generator, self.steps))
        for name, steps in zip(('early', 'late'), self.ranges(generator)):
            if steps is not None and not 0 <= steps[0] <= steps[1] < number:
                raise ValueError(
                    f'RFSR: {name} = {list(steps)} must be first and last of the step indices 0..{number - 1}'
                )
        check_eta(generator, self.eta, 'RFSR')
        check_decode_size(generator, self.decode_size, 'RFSR')
        if self.needs_reference:
            try:
                find_vgg(self.vgg)
            except ValueError as error:
                raise ValueError(f'RFSR: {error}; gram_weight: 0 does without') from None

    def ranges(self, generator: Any) -> Tuple[Optional[Steps], Steps]:
        """First and last index of the early steps, or None, and of the late ones."""
        number = len(sampler_steps(generator, self.steps))
        early = self.early or ((0, 2 * number // 5 - 1) if number >= 3 else None)
        return early, self.late or (min(4 * number // 5, number - 1), number - 1)

    def draw_step(self, generator: Any, seed: int, iteration: int) -> Tuple[int, bool]:
        """The iteration's step index, and whether it is an early one."""
        rng, (early, late) = keyed_numpy(seed, iteration, 'rfsr step'), self.ranges(generator)
        is_early = rng.random() < self.early_probability and early is not None
        first, last = early if is_early and early is not None else late
        return int(rng.integers(first, last + 1)), is_early

    def region(self, generator: Any, size: Sequence[int], *key: Union[int, str]) -> Optional[Region]:
        """The part of sr that is decoded, at a place drawn from `key`; None for all of it.

        Args:
            generator: in training; the part lies on the grids of its latents and of lq.
            size: height and width of sr.
            key: what the draw is for: (seed, iteration).
        """
        return decode_region(generator, self.decode_size, size, *key, purpose='rfsr')

    def shorten(self) -> None:
        """For a dry run: the sampler's first step, late, which decodes and rewards."""
        self.early, self.late, self.early_probability = (0, 0), (0, 0), 0.0

    def updates(
        self,
        generator: Any,
        lq: torch.Tensor,
        gt: Optional[torch.Tensor],
        reward_fn: Callable[..., RewardOutput],
        seed: int,
        iteration: int,
        samples: Sequence[int],
        exchange: Optional[Exchange] = None,
    ) -> Iterator[Update]:
        """The only optimiser update of one iteration.

        Args:
            generator: in training.
            lq: (B, 3, h, w), [0, 1].
            gt: (B, 3, H, W), [0, 1].
            reward_fn: (sr, lq=, gt=, prompt=) -> RewardOutput, with gradient.
            seed: of the run.
            iteration: of the run.
            samples: B global indices of the lq images.
            exchange: not needed, since all ranks draw the same step.

        Yields:
            an iterator of micro-batches, each a loss, whose sum is the update's, and the micro-batch's diagnostics.

        Raises:
            ValueError: an early step without gt.
        """
        yield self._update(generator, lq, gt, reward_fn, seed, iteration, list(samples))

    def _update(
        self,
        generator: Any,
        lq: torch.Tensor,
        gt: Optional[torch.Tensor],
        reward_fn: Callable[..., RewardOutput],
        seed: int,
        iteration: int,
        samples: List[int],
    ) -> Update:
        k, early = self.draw_step(generator, seed, iteration)
        if early and gt is None:
            raise ValueError('RFSR compares early steps with gt, and there is none; set early_probability: 0')
        for rows in chunks(range(len(lq)), self.micro_batch or len(lq)):
            cond, part = generator.condition(lq[rows]), [samples[i] for i in rows]
            region = self.region(generator, cond.lq_up.shape[-2:], seed, iteration)
            target = None if gt is None else crop(gt[rows], region)
            x_t = sample_at(generator, cond, k, part, seed, iteration, 'rfsr', self.steps, self.guidance, self.eta)
            sr = generator.decode(step_x0(generator, x_t, k, cond, self.steps, self.guidance), cond, region)
            if early:
                ll = ll_loss(sr, target, self.wavelet)
                loss = self.ll_weight * ll
                seen = {'ll': ll.detach().mean(), 'l_ll': loss.detach().mean()}
            else:
                reference = self._reference(generator, lq[rows], x_t.detach(), k, region)
                loss, seen = self._late(generator, sr, cond, target, region, reference, reward_fn)
            yield loss.sum() / len(lq), {**seen, 'k': torch.tensor(float(k)), 'early': torch.tensor(float(early))}

    def _late(
        self,
        generator: Any,
        sr: torch.Tensor,
        cond: Condition,
        gt: Optional[torch.Tensor],
        region: Optional[Region],
        reference: Optional[torch.Tensor],
        reward_fn: Callable[..., RewardOutput],
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """(B,) reward term and Gram term, and diagnostics."""
        small = None if region is None else tuple(side // generator.scale for side in region)
        output = reward_fn(sr, lq=crop(cond.lq, small), gt=gt, prompt=generator.prompts(cond))
        score = output.score.float()
        loss = self.reward_weight * torch.relu(self.margin - score)
        seen = {'l_reward': loss.mean(), 'below_margin': (score < self.margin).float().mean(), **reward_terms([output])}
        if reference is not None:
            features = self.features(sr.device)
            distance = gram_loss(features(sr), features(reference), kind=self.gram)
            weight: Any = self.gram_weight
            if self.gram_share is not None:
                weight = shared_scale(loss, distance, sr, self.gram_share)
                seen['gram_weight'] = weight.mean()
            seen |= {'gram': distance.mean(), 'l_gram': (weight * distance).mean()}
            loss = loss + weight * distance
        return loss, {name: value.detach() for name, value in seen.items()}

    def _reference(
        self, generator: Any, lq: torch.Tensor, x_t: torch.Tensor, k: int, region: Optional[Region]
    ) -> Optional[torch.Tensor]:
        """The picture that the starting generator makes of x_t, (B, 3, H, W), where the Gram term is in use."""
        if not self.needs_reference:
            return None
        with no_gradient(), generator.reference():
            cond = generator.condition(lq)
            return generator.decode(step_x0(generator, x_t, k, cond, self.steps, self.guidance), cond, region)

    def features(self, device: torch.device) -> VGGFeatures:
        """VGG19, loaded at its first use."""
        if self._features is None:
            self._features = VGGFeatures.from_file(self.vgg)
        return self._features.to(device)
