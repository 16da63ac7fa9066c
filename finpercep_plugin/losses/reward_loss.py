"""R_k of METHOD.md §4 as a loss for plain BasicSR models."""

from __future__ import annotations

import inspect
from typing import Any, Literal, Mapping, Sequence, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import Unpack

from finpercep_plugin.config import ConfigError
from finpercep_plugin.curriculum.schedule import CCLSchedule
from finpercep_plugin.curriculum.statistics import mean_and_spread
from finpercep_plugin.generators.pixels import straight_through_clamp
from finpercep_plugin.losses.reduce import Reduction, reduce
from finpercep_plugin.registry import LOSSES, nearest
from finpercep_plugin.rewards.finpercep_reward import FinPercepReward, by_stage, check_files

__all__ = ['FinPercepRewardLoss', 'NonFiniteReward', 'hinge']

FEWEST = 8  # images whose spread is certain enough to divide by


class NonFiniteReward(FloatingPointError):
    """A reward is NaN or infinite, on this rank or another: the step has to be skipped, on all."""


# `with` cannot be the name of a parameter.
Nested = TypedDict('Nested', {'with': 'dict[str, Any] | None'}, total=False)


def hinge(reward: Tensor, margin: float) -> Tensor:
    """phi(R) = relu(margin - R).

    >>> hinge(torch.tensor([-1.0, 1.5, 3.0]), margin=2.0)
    tensor([3.0000, 0.5000, 0.0000])
    """
    return torch.relu(margin - reward)


@LOSSES.register('FinPercepRewardLoss')
class FinPercepRewardLoss(nn.Module):
    """loss_weight * phi(R_k(output)), to stand as `perceptual_opt` of any BasicSR model.

    mu_k, sd_k are measured on the first `calibration` outputs of the run (all ranks together, rounded up to whole
    batches), for every stage that will be used, and are frozen then. Until that, the estimate so far stands in; below 8
    images nothing is learnt from the reward, since a spread measured on so few can be next to zero, and dividing by it
    would throw the generator off. Give `mu` and `sd` to skip all this.

    Under `stage: ccl` the iteration comes from `curriculum.hook`, which the plugin puts around the model and which also
    saves and resumes the curriculum.

    Args:
        rm: the file of one FinPercep-RM for a fixed stage; or those of RM_0, RM_1, RM_2 as a list, null for a stage of
            no steps.
        loss_weight: of the reward; the nested loss has its own.
        stage: 0 | 1 | 2, or 'ccl'.
        stages: for 'ccl', the iterations of stage 0, 1 and 2; the last runs on.
        l1, l2, top: see `raw_reward`.
        margin: of the hinge, in standard deviations above the starting generator's mean reward.
        calibration: number of outputs to measure on.
        mu, sd: given scales, as a list by stage; both or neither.
        max_bad_steps: skipped steps (a reward that is not finite) that stop the run.
        reduction: 'mean' | 'sum' | 'none' over samples.
        nested: `with: {type: PerceptualLoss, ...}`, a loss of BasicSR to add.

    Raises:
        ValueError: options that do not fit together; an unknown nested loss.
        FileNotFoundError: a reward model is not there.
    """

    def __init__(
        self,
        rm: str | list[str | None] | dict[int | str, str | None],
        loss_weight: float = 1.0,
        stage: Literal[0, 1, 2, 'ccl'] = 'ccl',
        stages: tuple[int, int, int] = (10000, 10000, 10000),
        l1: float = 1.0,
        l2: float = 1.0,
        top: float = 0.01,
        margin: float = 2.0,
        calibration: int = 64,
        mu: list[float | None] | dict[int | str, float | None] | None = None,
        sd: list[float | None] | dict[int | str, float | None] | None = None,
        max_bad_steps: int = 20,
        reduction: Literal['mean', 'sum', 'none'] = 'mean',
        **nested: Unpack[Nested],
    ):
        super().__init__()
        if set(nested) - {'with'}:
            raise TypeError(f'FinPercepRewardLoss: unknown key {min(set(nested) - {"with"})!r}')
        self.fixed = stage if isinstance(stage, int) else None
        self.schedule = _schedule(stage, stages, calibration, mu, sd)
        self.reward = _reward(rm, self.schedule, self.fixed, l1=l1, l2=l2, top=top)
        self.loss_weight, self.margin, self.calibration = loss_weight, margin, calibration
        self.max_bad_steps = max_bad_steps
        self.reduction: Reduction = reduction
        self.nested = _build_nested(nested.get('with'))
        self.stage = self.fixed
        self.seen = torch.empty(len(self.schedule.used_stages()), 0, dtype=torch.float64)
        self.log: dict[str, Tensor] = {}

    @classmethod
    def check(cls, options: Mapping[str, Any], path: str) -> None:
        """Check a section whose types are right, and the files it names, without building anything.

        Args:
            options: its arguments.
            path: its YAML path.

        Raises:
            ConfigError: options that do not fit together; files that are missing, or hold another stage's model.
        """
        values = {n: p.default for n, p in inspect.signature(cls).parameters.items()} | dict(options)
        try:
            names = ('stage', 'stages', 'calibration', 'mu', 'sd')
            schedule = _schedule(*(values[name] for name in names))
        except ValueError as error:
            raise ConfigError([f'{path}: {error}']) from None
        problems = check_files(values['rm'], schedule.used_stages(), f'{path}.rm')
        if problems:
            raise ConfigError(problems)

    def begin(self, iteration: int) -> int:
        """Tell the loss which iteration comes, counted from 1; returns the stage in force."""
        self.stage = self.schedule.stage(iteration)
        return self.stage

    def forward(self, output: Tensor, gt: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            output: (B, 3, H, W), RGB, [0, 1] or beyond.
            gt: for the nested loss.

        Returns:
            the loss, and the nested loss's style loss if it has one.

        Raises:
            RuntimeError: stage 'ccl' and nobody said which iteration it is.
            NonFiniteReward: on every rank, if it is so on any.
            ValueError: the calibration images all have the same reward.
        """
        if self.stage is None:
            raise RuntimeError(
                'FinPercepRewardLoss under `stage: ccl` needs the iteration: build the model by '
                'basicsr.models.build_model with the plugin installed, or call finpercep_plugin.curriculum.hook.attach(model, opt)'
            )
        sr = straight_through_clamp(output.float())
        out = self.reward.raw(sr, self.stage)
        self._measure(sr.detach(), out.score.detach())
        mu, sd, weight = self._scale(self.stage)
        reward = (out.score - mu) / sd
        self._note({'reward': reward, **out.terms})
        loss = self.loss_weight * weight * reduce(hinge(reward, self.margin), self.reduction)
        percep, style = _pair(None if self.nested is None else self.nested(output, gt))
        return loss if percep is None else loss + percep, style

    @torch.no_grad()
    def _measure(self, sr: Tensor, raw: Tensor) -> None:
        """Check the rewards, and add them to what mu and sd are measured on while that lasts."""
        used = self.schedule.used_stages()
        open_ = not self.schedule.statistics.ready(used)
        rows = (
            torch.stack([raw if k == self.stage else self.reward.raw(sr, k).score for k in used])
            if open_
            else raw[None]
        )
        rows = _gather(rows)
        if not bool(torch.isfinite(rows).all()):
            raise NonFiniteReward(f'the reward of {int((~torch.isfinite(rows)).any(0).sum())} outputs is not finite')
        if open_:
            self.seen = torch.cat([self.seen, rows.double().cpu()], dim=1)
            if self.seen.shape[1] >= self.calibration:
                for k, row in zip(used, self.seen):
                    self.schedule.statistics.measure(k, row)
                self.seen = self.seen[:, :0]

    def _scale(self, stage: int) -> tuple[float, float, float]:
        """mu_k, sd_k, and 0 or 1: whether enough images were seen to use them."""
        used, statistics = self.schedule.used_stages(), self.schedule.statistics
        if statistics.ready(used):
            return (*statistics.moments(stage), 1.0)
        mu, sd = mean_and_spread(self.seen[used.index(stage)], statistics.floor)
        return mu, sd, float(self.seen.shape[1] >= min(FEWEST, self.calibration))

    def _note(self, terms: dict[str, Tensor]) -> None:
        self.log = {'stage': torch.tensor(float(self.stage or 0), device=terms['reward'].device)}
        for name, term in terms.items():
            term = term.detach().float()
            self.log[f'r_{name}'], self.log[f'r_{name}_std'] = term.mean(), term.std(correction=0)

    def curriculum_state(self) -> dict[str, Any]:
        """Schedule, scales and an unfinished calibration; opens with `weights_only=True`."""
        return {'schedule': self.schedule.state_dict(), 'seen': self.seen.clone()}

    def load_curriculum_state(self, state: dict[str, Any]) -> None:
        """Inverse of `curriculum_state`.

        Raises:
            ValueError: the state is of a run with other stages.
        """
        self.schedule.load_state_dict(state['schedule'])
        self.seen = state['seen'].clone()


def _schedule(stage: int | str, stages: Sequence[int], calibration: int, mu: Any, sd: Any) -> CCLSchedule:
    """The curriculum with the scales that are given; a fixed stage is a curriculum of that one."""
    if calibration < 2:
        raise ValueError(f'calibration: expected 2 images or more, got {calibration}')
    schedule = CCLSchedule([int(k == stage) for k in range(3)] if isinstance(stage, int) else stages)
    _give_scales(schedule, mu, sd)
    return schedule


def _reward(rm: Any, schedule: CCLSchedule, fixed: int | None, **options: float) -> FinPercepReward:
    if isinstance(rm, str):
        if fixed is None:
            raise ValueError(
                'rm: `stage: ccl` goes through several reward models; expected a list of files, one a stage'
            )
        return FinPercepReward(rms={fixed: rm}, **options)
    files = by_stage(rm, 'rm')
    missing = [k for k in schedule.used_stages() if k not in files]
    if missing:
        raise ValueError(f'rm: no file for stage {missing[0]}, which has iterations')
    return FinPercepReward(rms={k: files[k] for k in schedule.used_stages()}, **options)


def _give_scales(schedule: CCLSchedule, mu: Any, sd: Any) -> None:
    if (mu is None) != (sd is None):
        raise ValueError('mu and sd: expected both or neither')
    if mu is None:
        return
    mu, sd = by_stage(mu, 'mu'), by_stage(sd, 'sd')
    for k in schedule.used_stages():
        if k not in mu or k not in sd:
            raise ValueError(f'mu and sd: no values for stage {k}, which has iterations')
        schedule.statistics.set(k, mu[k], sd[k])


def _build_nested(options: dict[str, Any] | None) -> nn.Module | None:
    if options is None:
        return None
    from finpercep_plugin.integrations.basicsr import require

    require()
    from basicsr.losses import build_loss
    from basicsr.utils.registry import LOSS_REGISTRY

    name = options.get('type')
    if name not in LOSS_REGISTRY:
        raise ValueError(f'with.type: BasicSR has no loss {name!r}{nearest(str(name), LOSS_REGISTRY.keys())}')
    return build_loss(options)


def _pair(result: Any) -> tuple[Tensor | None, Tensor | None]:
    """What a loss returned, as (loss, style loss)."""
    return result if isinstance(result, tuple) else (result, None)


def _gather(rows: Tensor) -> Tensor:
    """(K, B) of every rank, side by side."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts, dim=1)
