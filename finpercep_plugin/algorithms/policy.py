"""A sampler as a policy: steps that draw from a Gaussian, and rollouts that keep what its log-density is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Collection, Dict, Literal, Optional, Tuple

import torch

from finpercep_plugin.diffusion.flow_sde import cps_step, sde_step, std_free_log_prob
from finpercep_plugin.diffusion.prediction import Prediction, to_eps, to_x0
from finpercep_plugin.diffusion.steps import gaussian_log_prob, step
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.rollout import no_gradient, step_levels

__all__ = ['StepPolicy', 'StoredRollout', 'policy_rollout', 'step_gaussian']

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


@dataclass(frozen=True)
class StepPolicy:
    """How a sampler step becomes a draw.

    Args:
        kind: 'ddim' for eps and v models, 'sde' or 'cps' for flow.
        noise: eta of DDIM, a of the others.
        floor: smallest std, 'ddim' only: a step whose noise has a smaller one draws new noise in the place of some that
            is there. Where less than that is left, at the end of the sampler, the draw is noisier than the step's level.
        std_free: the log-probability is -(x - mean)^2.
    """

    kind: Literal['ddim', 'sde', 'cps']
    noise: float
    floor: float = 0.0
    std_free: bool = False

    def gaussian(
        self,
        x_t: torch.Tensor,
        out: torch.Tensor,
        level: torch.Tensor,
        level_prev: torch.Tensor,
        prediction: Prediction,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """(mean as x_t, std as level) of the next sample, float32; arguments as of `diffusion.steps.step`."""
        if self.kind == 'sde':
            return sde_step(x_t, out, level, level_prev, self.noise)
        if self.kind == 'cps':
            return cps_step(x_t, out, level, level_prev, self.noise)
        mean, std = step(x_t, out, level, level_prev, prediction, self.noise)
        if bool((std >= self.floor).all()):
            return mean, std
        std = std.clamp(min=self.floor)
        x0, eps = to_x0(x_t, out, level, prediction), to_eps(x_t, out, level, prediction)
        return level_prev.sqrt() * x0 + (1 - level_prev - std**2).clamp(min=0).sqrt() * eps, std

    def log_prob(
        self, x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, side: Optional[int] = None
    ) -> torch.Tensor:
        """(B,), mean over dimensions, of the sample x, which is detached; or (B, rows, columns), over each region."""
        return std_free_log_prob(x, mean, side) if self.std_free else gaussian_log_prob(x, mean, std, side)


@dataclass(frozen=True)
class StoredRollout:
    """A rollout's draws, by step index.

    Args:
        before: x_t (B, C, h, w) of each step that drew, in the stored dtype.
        after: what it drew, the same.
        log_probs: (B,) or (B, rows, columns) of it, under the policy that drew.
        final: (B, C, h, w), clean.
    """

    before: Dict[int, torch.Tensor]
    after: Dict[int, torch.Tensor]
    log_probs: Dict[int, torch.Tensor]
    final: torch.Tensor


def step_gaussian(
    generator: Any,
    x_t: torch.Tensor,
    index: int,
    timesteps: torch.Tensor,
    cond: Condition,
    guidance: float,
    policy: StepPolicy,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """(mean as x_t, std) of step `index` of the sampler with these timesteps, with gradient where it is on.

    Args:
        generator: see docs/adding.md.
        x_t: (B, C, h, w), float32, the sample at timesteps[index].
        index: of the step.
        timesteps: descending.
        cond: B conditions.
        guidance: of `generator.predict`.
        policy: what kind of step.
    """
    t, level, level_prev = step_levels(generator, x_t, index, timesteps)
    out = generator.predict(x_t, t, cond, guidance=guidance)
    return policy.gaussian(x_t, out, level, level_prev, generator.prediction)


@no_gradient()
def policy_rollout(
    generator: Any,
    cond: Condition,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    guidance: float,
    policy: StepPolicy,
    drawn: Collection[int],
    draw: Callable[[int], torch.Tensor],
    dtype: torch.dtype = torch.float32,
    side: Optional[int] = None,
) -> StoredRollout:
    """The whole sampler without gradient, in which the steps `drawn` draw and the others are deterministic.

    A latent takes the stored dtype before anything is computed from it, so that the log-probabilities are those of what
    is stored.

    Args:
        generator: see docs/adding.md.
        cond: B conditions.
        noise: (B, C, h, w), standard normal, for `generator.start`.
        timesteps: of the sampler, descending.
        guidance: of `generator.predict`.
        policy: of the steps that draw.
        drawn: their indices.
        draw: step index -> (B, C, h, w) standard normal.
        dtype: of the latents kept.
        side: of the regions whose log-probabilities are kept, in latent cells; None: those of whole samples.
    """
    ode = StepPolicy('ddim', 0.0)
    before, after, log_probs = {}, {}, {}
    x = generator.start(cond, noise).float()
    for index in range(len(timesteps)):
        if index not in drawn:
            x, _ = step_gaussian(generator, x, index, timesteps, cond, guidance, ode)
            continue
        before[index] = x.to(dtype)
        mean, std = step_gaussian(generator, before[index].float(), index, timesteps, cond, guidance, policy)
        after[index] = (mean + std * draw(index).to(mean)).to(dtype)
        x = after[index].float()
        log_probs[index] = policy.log_prob(x, mean, std, side)
    return StoredRollout(before, after, log_probs, x)
