"""Drives a `FinPercepRewardLoss` inside any BasicSR model: BasicSR's losses are told no iteration and are not saved."""

from __future__ import annotations

import inspect
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable

import torch
import torch.distributed as dist
from torch import nn

from finpercep_plugin.generators.checkpoint import why_refused, write_weights
from finpercep_plugin.losses.reward_loss import FinPercepRewardLoss, NonFiniteReward

__all__ = ['attach', 'reward_losses']

log = logging.getLogger('basicsr')


def reward_losses(model: Any) -> dict[str, FinPercepRewardLoss]:
    """{attribute: loss} of the reward losses that a model holds."""
    return {
        name: module
        for name, value in vars(model).items()
        if isinstance(value, nn.Module)
        for module in value.modules()
        if isinstance(module, FinPercepRewardLoss)
    }


def attach(model: Any, opt: dict[str, Any]) -> None:
    """Let a model's reward losses follow the curriculum. A model that has none is left as it is; twice is once.

    - `optimize_parameters(current_iter)` first tells the losses the iteration. The reward's terms and the stage join
      `model.log_dict`. Where a reward is not finite, nothing is updated, the step is counted, and after
      `max_bad_steps` of them the run is saved and stopped.
    - `save_training_state` first writes `<iter>.ccl` beside `<iter>.state`, whole or not at all.
    - `resume_training` reads it.

    Args:
        model: a BasicSR model, or anything with those methods, an `opt` and a `log_dict`.
        opt: its options; `model.opt` is what counts later, since BasicSR copies them.
    """
    losses = reward_losses(model)
    if losses and not hasattr(model, 'finpercep_curriculum'):
        model.finpercep_curriculum = _Curriculum(model, losses)


class _Curriculum:
    """The wrapped methods of one model, and what they share.

    Attributes:
        bad_steps: steps skipped so far.
    """

    def __init__(self, model: Any, losses: dict[str, FinPercepRewardLoss]):
        self.model, self.losses = model, losses
        self.bad_steps = 0
        self.stages: dict[str, int] = {}
        self.optimize: Callable = model.optimize_parameters
        self.save_state: Callable = model.save_training_state
        self.resume: Callable = model.resume_training
        model.optimize_parameters = self.optimize_parameters
        model.save_training_state = self.save_training_state
        model.resume_training = self.resume_training

    def optimize_parameters(self, *args: Any, **kwargs: Any) -> Any:
        iteration = self._iteration(args, kwargs)
        for name, loss in self.losses.items():
            stage = loss.begin(iteration)
            if self.stages.get(name) != stage:
                log.info('iter %d: CCL stage %d (RM_%d)', iteration, stage, stage)
                self.stages[name] = stage
        try:
            result = self.optimize(*args, **kwargs)
        except NonFiniteReward as error:
            self._skipped(iteration, error)
            return None
        self._log()
        return result

    def _iteration(self, args: tuple, kwargs: dict[str, Any]) -> int:
        """The first argument, whatever its name; a model that takes none has its calls counted."""
        bound = inspect.signature(self.optimize).bind(*args, **kwargs).arguments
        if not bound:
            return next(iter(self.losses.values())).schedule.step + 1
        value = next(iter(bound.values()))
        value = (
            value[0] if isinstance(value, tuple) else next(iter(value.values())) if isinstance(value, dict) else value
        )
        return int(value)

    def _skipped(self, iteration: int, error: NonFiniteReward) -> None:
        self.bad_steps += 1
        limit = min(loss.max_bad_steps for loss in self.losses.values())
        log.warning('iter %d: %s; step skipped (%d of at most %d)', iteration, error, self.bad_steps, limit)
        self._log(terms=False)
        if self.bad_steps >= limit:
            self.model.save(0, iteration)
            if dist.is_available() and dist.is_initialized():
                dist.barrier()  # a rank that raises takes the others down, rank 0 in the middle of its save
            raise FloatingPointError(
                f'{self.bad_steps} steps had rewards that are not finite (max_bad_steps); the state of iter '
                f'{iteration} is saved. Lower train.optim_g.lr or loss_weight'
            ) from error

    def _log(self, terms: bool = True) -> None:
        """Put numbers, averaged over ranks, where BasicSR looks for them."""
        if not isinstance(getattr(self.model, 'log_dict', None), dict):
            self.model.log_dict = OrderedDict()
        for name, loss in self.losses.items() if terms else ():
            prefix = '' if len(self.losses) == 1 else f'{name}_'
            self.model.log_dict.update(self.model.reduce_loss_dict({f'{prefix}{k}': v for k, v in loss.log.items()}))
        self.model.log_dict['bad_steps'] = float(self.bad_steps)

    def save_training_state(self, epoch: int, current_iter: int, *args: Any, **kwargs: Any) -> Any:
        if current_iter != -1 and self.model.opt.get('rank', 0) == 0:
            losses = {name: loss.curriculum_state() for name, loss in self.losses.items()}
            file = Path(self.model.opt['path']['training_states']) / f'{current_iter}.ccl'
            write_weights({'losses': losses, 'bad_steps': self.bad_steps}, file)
        return self.save_state(epoch, current_iter, *args, **kwargs)

    def resume_training(self, resume_state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """
        Raises:
            FileNotFoundError: no `<iter>.ccl` beside the state.
            ValueError: it is of a run with other reward losses or other stages.
        """
        result = self.resume(resume_state, *args, **kwargs)
        paths = self.model.opt['path']
        state_file = paths.get('resume_state')
        folder = Path(state_file).parent if state_file else Path(paths['training_states'])
        file = folder / f'{resume_state["iter"]}.ccl'
        if not file.is_file():
            raise FileNotFoundError(
                f'{file} is not there; it holds the CCL stage and the reward scales of iteration '
                f'{resume_state["iter"]}, without which the run cannot go on as it was'
            )
        try:
            state = torch.load(file, map_location='cpu', weights_only=True)
        except Exception as error:  # what a cut-off pickle or zip raises is anything
            raise ValueError(f'{file} is not the state of a curriculum: {why_refused(error)}') from error
        if set(state['losses']) != set(self.losses):
            raise ValueError(
                f'{file} is of a run with reward losses {sorted(state["losses"])}, not {sorted(self.losses)}'
            )
        for name, loss in self.losses.items():
            loss.load_curriculum_state(state['losses'][name])
        self.bad_steps = state['bad_steps']
        return result
