"""ReFL: reward feedback learning through one late sampler step.

Formulas: METHOD.md §5; FinPercep-RM supplement Eq. 1-2; ImageReward (Xu et al. 2023), Algorithm 1.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, Optional, Sequence, Tuple, Union

import torch

from finpercep_plugin.algorithms.members import Update, reward_terms
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
from finpercep_plugin.rng import keyed_numpy, keyed_randn, keyed_torch
from finpercep_plugin.rollout import sampler_steps, step_x0

__all__ = ['ReFL', 'refl_objective', 'region_weight']


def refl_objective(
    reward: torch.Tensor,
    pretrain_mse: torch.Tensor,
    weight: float = 1e-3,
    margin: float = 2.0,
    pretrain_weight: float = 1.0,
) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
    """`L = weight * mean(relu(margin - R)) + pretrain_weight * mean(MSE)`.

    Args:
        reward: (B,) R, higher better.
        pretrain_mse: (B,) error of the noise prediction on pre-training data.
        weight: lambda.
        margin: rewards above it no longer pull.
        pretrain_weight: of the second term.

    Returns:
        the loss, a scalar, and diagnostics, detached scalars: both weighted terms, reward mean and std, share of
            samples below the margin.

    >>> loss, seen = refl_objective(torch.tensor([1.0, 3.0]), torch.tensor([0.2, 0.4]), weight=0.1)
    >>> round(loss.item(), 4), round(seen['below_margin'].item(), 2)
    (0.35, 0.5)
    """
    reward, pretrain_mse = reward.float(), pretrain_mse.float()
    l_reward = weight * torch.relu(margin - reward).mean()
    l_pretrain = pretrain_weight * pretrain_mse.mean()
    diagnostics = {
        'l_reward': l_reward,
        'l_pretrain': l_pretrain,
        'reward': reward.mean(),
        'reward_std': reward.std(unbiased=False),
        'below_margin': (reward < margin).float().mean(),
    }
    return l_reward + l_pretrain, {name: value.detach() for name, value in diagnostics.items()}


def region_weight(degradation: torch.Tensor, dense: float) -> torch.Tensor:
    """`1 - dense + dense M / mean(M)`: weights of mean 1 that follow the map, as the dense reward of ReFL has them.

    Args:
        degradation: M (B, 1, H, W), [0, 1], 1 = fully degraded; detached here.
        dense: 0 (all 1) .. 1 (proportional to M).

    Returns:
        (B, 1, H, W); all 1 for a map that is 0 everywhere.

    >>> region_weight(torch.tensor([[[[0.1, 0.3]]]]), 0.5)
    tensor([[[[0.7500, 1.2500]]]])
    """
    degradation = degradation.detach().float()
    mean = degradation.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(mean > 0, 1 - dense + dense * degradation / mean.clamp(min=1e-12), 1.0)


@ALGORITHMS.register('ReFL')
class ReFL:
    """Fine-tunes a generator towards a differentiable reward.

    Each iteration samples one step index k for all ranks, runs the sampler to k without gradient, predicts the clean
    image at k with gradient, and adds the noise-prediction error on the same gt. A one-step generator has k = 0.

    Args:
        k_start: first step index that may be k; None: the last quarter of the sampler begins there.
        k_end: last one, inclusive; None: the sampler's last step.
        weight: lambda of the reward term.
        margin: of the hinge phi(R) = relu(margin - R).
        pretrain_weight: of the noise-prediction error; 0 leaves it out.
        guidance: of the rollout and of the step with gradient.
        steps: length of the rollout's sampler; None: the generator's own.
        eta: noise of the rollout's steps, 0 (DDIM) .. 1 (DDPM); eps and v only; None: the generator's own.
        decode_size: side in pixels of the square of sr that is decoded and rewarded, at a new place each iteration, the
            same for the whole batch; None: all of it. Saves the memory of the decoder's and the reward's activations.
        micro_batch: samples in one forward and backward pass; None: the whole batch.
        dense: how much of the reward's gradient to the picture goes where its map says that the picture is degraded, 0
            (everywhere alike) .. 1; see `region_weight`. Without effect on a reward that gives no map.
    """

    needs_gradient, needs_reference = True, False

    def __init__(
        self,
        k_start: Optional[int] = None,
        k_end: Optional[int] = None,
        weight: float = 1e-3,
        margin: float = 2.0,
        pretrain_weight: float = 1.0,
        guidance: float = 1.0,
        steps: Optional[int] = None,
        eta: Optional[float] = None,
        decode_size: Optional[int] = None,
        micro_batch: Optional[int] = None,
        dense: float = 0.0,
    ):
        if not 0 <= dense <= 1:
            raise ValueError(f'ReFL: dense must be in 0..1, got {dense}')
        check_micro_batch(micro_batch, 'ReFL')
        self.k_start, self.k_end = k_start, k_end
        self.weight, self.margin, self.pretrain_weight = weight, margin, pretrain_weight
        self.guidance, self.steps, self.eta, self.decode_size = guidance, steps, eta, decode_size
        self.micro_batch, self.dense = micro_batch, dense

    def check(self, generator: Any) -> None:
        """Whether the settings fit the generator, which may have no networks yet.

        Raises:
            ValueError: see `window`.
        """
        self.window(generator)

    def shorten(self) -> None:
        """For a dry run: the step with gradient is the sampler's first."""
        self.k_start = self.k_end = 0

    def updates(
        self,
        generator: Any,
        lq: torch.Tensor,
        gt: torch.Tensor,
        reward_fn: Callable[..., Any],
        seed: int,
        iteration: int,
        samples: Sequence[int],
        exchange: Any,
    ) -> Iterator[Update]:
        """The one optimiser update of an iteration, as micro-batches of (loss, diagnostics); the losses add up to the batch's mean.

        Args:
            generator: in training.
            lq: (B, 3, h, w), [0, 1].
            gt: (B, 3, H, W), [0, 1].
            reward_fn: (sr, lq=, gt=, prompt=) -> RewardOutput, with gradient.
            seed: of the run.
            iteration: of the run.
            samples: B global sample indices.
            exchange: not used: the mean over ranks is the caller's.
        """
        yield self._parts(generator, lq, gt, reward_fn, seed, iteration, samples)

    def _parts(
        self,
        generator: Any,
        lq: torch.Tensor,
        gt: torch.Tensor,
        reward_fn: Callable[..., Any],
        seed: int,
        iteration: int,
        samples: Sequence[int],
    ) -> Update:
        size = self.micro_batch or len(lq)
        for first in range(0, len(lq), size):
            part = slice(first, first + size)
            cond = generator.condition(lq[part])
            loss, seen = self.loss(generator, cond, gt[part], reward_fn, seed, iteration, samples[part])
            yield loss * (len(cond) / len(lq)), seen

    def window(self, generator: Any) -> Tuple[int, int]:
        """(first, last) step index that may be k, for this generator; call it early, to find a wrong setting.

        Raises:
            ValueError: the range does not lie inside the sampler, is empty, or eta is not defined for the generator.
        """
        number = len(sampler_steps(generator, self.steps))
        first = 3 * number // 4 if self.k_start is None else self.k_start
        last = number - 1 if self.k_end is None else self.k_end
        if last >= number:
            raise ValueError(
                f'ReFL: k_end = {last}, but the sampler has {number} step{"s" if number > 1 else ""}, '
                f'indices 0..{number - 1}'
            )
        if not 0 <= first <= last:
            raise ValueError(f'ReFL: needs 0 <= k_start <= k_end, got k_start = {first}, k_end = {last}')
        check_eta(generator, self.eta, 'ReFL')
        check_decode_size(generator, self.decode_size, 'ReFL')
        return first, last

    def loss(
        self,
        generator: Any,
        cond: Condition,
        gt: torch.Tensor,
        reward_fn: Callable[..., Any],
        seed: int,
        iteration: int,
        samples: Sequence[int],
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Loss of a batch, its mean over samples; the mean over equal parts of a batch is the loss of the whole.

        Args:
            generator: in training.
            cond: B conditions.
            gt: (B, 3, H, W), [0, 1].
            reward_fn: (sr, lq=, gt=, prompt=) -> RewardOutput, with gradient.
            seed: of the run.
            iteration: of the run; k is drawn from (seed, iteration).
            samples: B global sample indices; every other draw is keyed on them.

        Returns:
            the loss and its diagnostics: those of `refl_objective`, `k`, and the mean and spread of each reward term as
                `reward_<name>` and `reward_<name>_std`.
        """
        first, last = self.window(generator)
        k = int(keyed_numpy(seed, iteration, 'refl k').integers(first, last + 1))
        region = self.region(generator, cond.lq_up.shape[-2:], seed, iteration)
        x_t = sample_at(generator, cond, k, samples, seed, iteration, 'refl', self.steps, self.guidance, self.eta)
        sr = generator.decode(step_x0(generator, x_t, k, cond, self.steps, self.guidance), cond, region)
        lq_region = None if region is None else tuple(side // generator.scale for side in region)
        lq, gt_part = crop(cond.lq, lq_region), crop(gt, region)
        output = reward_fn(sr, lq=lq, gt=gt_part, prompt=generator.prompts(cond))
        if self.dense and 'map' in output.maps and sr.requires_grad:
            weight = region_weight(output.maps['map'], self.dense)
            sr.register_hook(lambda gradient: gradient * weight.to(gradient))
        mse = self._pretrain_mse(generator, cond, gt, seed, iteration, samples)
        loss, diagnostics = refl_objective(output.score, mse, self.weight, self.margin, self.pretrain_weight)
        return loss, {**diagnostics, **reward_terms([output]), 'k': torch.tensor(float(k))}

    def region(self, generator: Any, size: Sequence[int], *key: Union[int, str]) -> Optional[Region]:
        """The part of sr that is decoded and rewarded, at a place drawn from `key`; None for all of it.

        Args:
            generator: in training; the part lies on the grids of its latents and of lq.
            size: height and width of sr.
            key: what the draw is for: (seed, iteration).
        """
        return decode_region(generator, self.decode_size, size, *key, purpose='refl')

    def _pretrain_mse(
        self, generator: Any, cond: Condition, gt: torch.Tensor, seed: int, iteration: int, samples: Sequence[int]
    ) -> torch.Tensor:
        if self.pretrain_weight == 0:
            return gt.new_zeros(len(gt))
        shape, device = generator.latent_shape(cond), gt.device
        noise = keyed_randn(shape, samples, seed, iteration, 'pretrain noise', device=device)
        t = [generator.draw_t(keyed_torch(seed, iteration, 'pretrain t', int(i))) for i in samples]
        return generator.pretrain_loss(gt, cond, noise, torch.stack(t))
