"""What every model of the plugin does the same way: optimiser, schedule, EMA, gradient sync, bad steps, checkpoints, logs."""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any, ContextManager, Iterable, Iterator, Tuple

import numpy as np
import torch
import torch.distributed as dist
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from PIL import Image
from torch import Tensor, nn

from finpercep_plugin.generators.swapped import swapped
from finpercep_plugin.models.optimisers import build_optimiser
from finpercep_plugin.models.options import TrainOptions
from finpercep_plugin.models.parallel import Trained, choose
from finpercep_plugin.models.resuming import check_kind, check_trained
from finpercep_plugin.models.steps import cosine_rate, mean_terms

__all__ = ['FinPercepModel', 'Micro']

Micro = Tuple[Tensor, dict[str, Tensor]]


class FinPercepModel(BaseModel):
    """Base of the plugin's BasicSR models.

    A subclass's constructor builds `self.net_g` (its trained parameters have requires_grad), then calls `init_training`. It implements
    `feed_data`, `losses(current_iter) -> (loss, {name: scalar tensor to log})`, and `export(path)`, which writes `net_g_<iter>.pth`.
    """

    net_g: nn.Module
    settings: TrainOptions
    exports_everything = True

    def __init__(self, opt: dict[str, Any]):
        super().__init__(opt)
        self.parallel = choose(opt, self.device, self.autocast)
        self.trained: dict[str, nn.Parameter] = {}
        self.ema: dict[str, Tensor] = {}
        self.log_dict: OrderedDict[str, Tensor] = OrderedDict()
        self.bad_steps = 0
        self.best_results: dict[tuple[str, str], tuple[float, Any]] = {}

    def init_training(
        self, settings: TrainOptions, groups: dict[str, Iterable[nn.Parameter]], rates: dict[str, float] | None = None
    ) -> None:
        """Optimiser over named groups, each at `optim_g.lr` or at its own of `rates`.

        Raises:
            ValueError: nothing trains.
        """
        self.settings = settings
        self.trained = {n: p for n, p in self.net_g.named_parameters() if p.requires_grad}
        if not self.trained:
            raise ValueError(f'{type(self.net_g).__name__}: nothing to train with these options')
        optim = settings.optim_g
        groups = [
            {'params': list(params), 'lr': rate, 'initial_lr': rate}
            for name, params in groups.items()
            for rate in [(rates or {}).get(name, optim.lr)]
        ]
        self.optimizers = [build_optimiser(optim, [g for g in groups if g['params']], self.device)]
        self.parallel.begin(self.net_g)
        self.ema = {n: p.detach().clone() for n, p in self.trained.items()} if settings.ema_decay else {}

    # ---------------------------------------------------------------- a step

    def losses(self, current_iter: int) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def export(self, path: Path) -> None:
        raise NotImplementedError

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """A pure function of the iteration: nothing to save, nothing to overrun."""
        rate = 1.0
        if self.settings.scheduler.type == 'cosine':
            rate = cosine_rate(current_iter, self.settings.total_iter, self.settings.scheduler.floor)
        if current_iter < self.settings.warmup_iter:
            rate *= current_iter / self.settings.warmup_iter
        for group in self.optimizers[0].param_groups:
            group['lr'] = group['initial_lr'] * rate

    def updates(self, current_iter: int) -> Iterator[Iterator[Micro]]:
        """The optimiser updates of an iteration, each as micro-batches whose losses add up to its loss; `losses` alone unless
        overridden. Parameters change between them.
        """
        yield iter([self.losses(current_iter)])

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration. A loss or gradient that is not finite on any rank skips its update on all of them.

        Raises:
            FloatingPointError: `max_bad_steps` updates were bad; the state is saved first.
        """
        seen: list[dict[str, Tensor]] = []
        updates = self.updates(current_iter)
        while (update := self._next(updates)) is not None:
            seen.append(self._update(update, current_iter))
        self.log_dict = OrderedDict(mean_terms(seen))
        self.log_dict['bad_steps'] = torch.tensor(float(self.bad_steps), device=self.device)

    def _next(self, iterator: Iterator[Any]) -> Any:
        with self.autocast():
            return next(iterator, None)

    def _update(self, micro_batches: Iterator[Micro], current_iter: int) -> dict[str, Tensor]:
        """One optimiser update; what it measured, its terms the means over micro-batches."""
        optimizer = self.optimizers[0]
        optimizer.zero_grad(set_to_none=True)
        total, parts = torch.zeros((), device=self.device), []
        while (micro := self._next(micro_batches)) is not None:
            loss, terms = micro
            if loss.requires_grad and (self.parallel.sharded or torch.isfinite(loss)):  # all ranks go through a shard's
                loss.backward()
            total = total + loss.detach().float()
            parts.append({k: torch.as_tensor(v, device=self.device).detach().float() for k, v in terms.items()})
            # A ranking or a hinge hides a reward that is not finite from the loss; 0 times it is NaN.
            total = total + 0 * parts[-1].get('reward', total.new_zeros(()))
        parameters = list(self.trained.values())
        finite = self.parallel.average(parameters, total)
        seen = {**mean_terms(parts), 'l_total': total}
        if not finite:
            self._bad_step(current_iter, total)
            return seen
        seen['grad_norm'] = self.parallel.clip(parameters, self.settings.grad_clip)
        optimizer.step()
        decay = min(self.settings.ema_decay, (1 + current_iter) / (10 + current_iter))  # short runs forget their start
        for name, shadow in self.ema.items():
            shadow.lerp_(self.trained[name].detach(), 1 - decay)
        return seen

    @property
    def bf16(self) -> bool:
        """Whether forward passes run in bfloat16, by `train.precision`."""
        return (self.opt.get('train') or {}).get('precision', 'fp32') == 'bf16'

    def autocast(self) -> torch.autocast:
        """The precision of every forward pass, in training and validation.

        Casts of a sharded network's parameters are not kept: they would outlive what is gathered, and one that was made
        without gradient would be used with it.
        """
        keep = not self.parallel.sharded
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=keep)

    def _bad_step(self, current_iter: int, total: Tensor) -> None:
        self.bad_steps += 1
        get_root_logger().warning(
            f'iter {current_iter}: loss {float(total):.4g} or its gradient is not finite; step skipped '
            f'({self.bad_steps} of at most {self.settings.max_bad_steps})'
        )
        if self.bad_steps >= self.settings.max_bad_steps:
            self.save(0, current_iter)
            if self.opt['dist']:  # or the launcher ends rank 0 while it writes
                dist.barrier()
            raise FloatingPointError(
                f'{self.bad_steps} steps were not finite (train.max_bad_steps); the state of iter {current_iter} is saved. '
                'Lower train.optim_g.lr or the loss weights, or set train.grad_clip'
            )

    def get_current_log(self) -> OrderedDict:
        """The last step's terms, averaged over ranks (a collective call)."""
        if not self.log_dict:
            return self.log_dict
        values = torch.stack([v.reshape(()).float().to(self.device) for v in self.log_dict.values()])
        if self.opt['dist']:
            dist.all_reduce(values)
            values /= self.opt['world_size']
        return OrderedDict(zip(self.log_dict, values.tolist()))

    def prepare_dry_run(self) -> None:
        """Skip what a single step would do first and a training run does once."""

    # ---------------------------------------------------------------- checkpoints

    def save(self, epoch: int, current_iter: int) -> None:
        """`net_g_<iter>.pth`, then `<iter>.state`, which is enough to continue; each appears whole or not at all (a
        collective call).
        """
        name = 'latest' if current_iter == -1 else current_iter
        with self.exporting(self.exports_everything) as writes:
            if writes:
                self.export(Path(self.opt['path']['models']) / f'net_g_{name}.pth')
        if current_iter != -1:
            path = Path(self.opt['path']['training_states']) / f'{current_iter}.state'
            self.parallel.write_state(self.training_state(epoch, current_iter), path)

    @contextlib.contextmanager
    def exporting(self, everything: bool) -> Iterator[bool]:
        """Inside, the network holds the EMA, if there is one, and can be saved by the rank that gets True (a collective call).

        Args:
            everything: all parameters, not the trained ones alone.
        """
        if not self.parallel.sharded and self.opt['rank'] != 0:
            yield False
            return
        with self.ema_weights(), self.parallel.whole(self.net_g, None if everything else self.trained) as writes:
            yield writes

    def training_state(self, epoch: int, current_iter: int) -> dict[str, Any]:
        """Everything to continue bit-exactly; plain tensors and numbers, so `weights_only=True` opens it."""
        buffers, state = {}, self.net_g.state_dict()
        if not getattr(self.net_g, 'buffers_are_constant', False):
            buffers = dict(self.net_g.named_buffers())
        return {
            'model': type(self).__name__,
            'epoch': epoch,
            'iter': current_iter,
            'optimizers': [o.state_dict() for o in self.optimizers],
            'schedulers': [],
            'trained': {n: p.detach() for n, p in self.trained.items()},
            'buffers': {n: b for n, b in buffers.items() if n in state},
            'ema': self.ema,
            'bad_steps': self.bad_steps,
            'rng': torch.get_rng_state(),
        }

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Inverse of `training_state`, for any number of processes.

        Raises:
            ValueError: the state is of another model, or of other trained parameters; what differs is named.
        """
        check_kind(resume_state, type(self).__name__)
        numbered = [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group['params']]
        folder = Path(self.opt['path'].get('resume_state') or self.opt['path']['training_states'])
        folder = folder.parent if folder.suffix == '.state' else folder
        resume_state = self.parallel.read_state(resume_state, folder, Trained(self.trained, numbered))
        saved = resume_state['trained']
        check_trained(saved, self.trained)
        with torch.no_grad():
            for name, value in saved.items():
                self.trained[name].copy_(value)
            buffers = dict(self.net_g.named_buffers())
            for name, value in resume_state['buffers'].items():
                buffers[name].copy_(value)
        for optimizer, state in zip(self.optimizers, resume_state['optimizers']):
            optimizer.load_state_dict(state)
        self.ema = {n: v.to(self.device) for n, v in resume_state['ema'].items()}
        self.bad_steps = (
            resume_state['bad_steps'] % self.settings.max_bad_steps
        )  # one that was stopped starts counting anew
        torch.set_rng_state(resume_state['rng'].cpu())

    def ema_weights(self) -> ContextManager[None]:
        """Context in which the trained parameters hold their shadow, if there is one."""
        return swapped(self.trained, self.ema)

    # ---------------------------------------------------------------- validation

    def shard(self, dataset: Any) -> range:
        """The indices of a validation set that this rank takes."""
        return range(self.opt['rank'], len(dataset), self.opt['world_size'])

    def reduce_sum(self, values: Tensor) -> Tensor:
        """Sum over ranks (a collective call)."""
        if self.opt['dist']:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values.cpu()

    def report(self, dataset: str, results: dict[str, float], current_iter: int, tb_logger: Any) -> None:
        """Log validation results, each with the best so far, and keep them in `self.metric_results`."""
        self.metric_results = dict(results)
        metrics, lines = (self.opt.get('val') or {}).get('metrics') or {}, []
        for key, value in results.items():
            sign = -1 if (metrics.get(key) or {}).get('better') == 'lower' else 1
            best = self.best_results.setdefault((dataset, key), (value, current_iter))
            if sign * value > sign * best[0] or math.isnan(best[0]):
                best = self.best_results[dataset, key] = (value, current_iter)
            lines.append(f'\t # {key}: {value:.4f}\tbest: {best[0]:.4f} @ {best[1]} iter')
        if self.opt['rank'] == 0:
            text = '\n'.join(lines)
            get_root_logger().info(f'Validation {dataset}\n{text}')
            if tb_logger:
                for key, value in results.items():
                    tb_logger.add_scalar(f'metrics/{dataset}/{key}', value, current_iter)

    def report_panel(
        self, dataset: str, picture: np.ndarray, current_iter: int, tb_logger: Any, save_img: bool
    ) -> None:
        """A picture (H, W, 3) uint8 to TensorBoard and, where wanted, to `path.visualization`."""
        if self.opt['rank'] != 0:
            return
        if tb_logger:
            tb_logger.add_image(f'panel/{dataset}', picture, current_iter, dataformats='HWC')
        if save_img:
            path = Path(self.opt['path']['visualization']) / f'{dataset}_panel_{current_iter}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
