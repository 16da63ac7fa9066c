"""YAML sections that every model of the plugin reads, as dataclasses: they are the schema."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Literal

__all__ = ['OptimOptions', 'SchedulerOptions', 'TrainOptions', 'ValOptions']


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """`train.optim_g`.

    Attributes:
        type: 'AdamW8bit' keeps both moments in 8 bits, 2 bytes a trained parameter in place of 8 (bitsandbytes).
        lr, weight_decay, betas: of the optimiser.
    """

    type: Literal['AdamW', 'Adam', 'AdamW8bit'] = 'AdamW'
    lr: float = 1e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.type == 'AdamW8bit' and importlib.util.find_spec('bitsandbytes') is None:
            raise ValueError('type: AdamW8bit needs bitsandbytes, which is not installed: pip install bitsandbytes')
        if self.lr < 0 or self.weight_decay < 0:
            raise ValueError(f'lr, weight_decay: expected 0 or more, got {self.lr:g}, {self.weight_decay:g}')
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f'betas: expected 0 or more, below 1, got {self.betas}')


@dataclasses.dataclass(frozen=True)
class SchedulerOptions:
    """`train.scheduler`: the rate falls from lr to lr * `floor` over the whole run, or stays."""

    type: Literal['cosine', 'constant'] = 'cosine'
    floor: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """`train:` keys of every model.

    Attributes:
        total_iter: optimiser steps.
        warmup_iter: linear warm-up steps; -1 for none.
        ema_decay: of the trained parameters' shadow, which is what `net_g_*.pth` holds, min(ema_decay, (1 + i) / (10 + i)) at step i;
            0 for none.
        grad_clip: largest gradient norm; null for no clipping.
        precision: of the forward pass; losses and trained parameters are fp32.
        parallel: of several processes: 'ddp', each has the whole model; 'fsdp', each has a part of the generator's network, its
            gradients, EMA and optimiser state (torch >= 2.6; docs/parallel.md).
        max_bad_steps: this many steps with a loss or gradient that is not finite stop the run, with its state saved.
    """

    total_iter: int
    warmup_iter: int = -1
    optim_g: OptimOptions = OptimOptions()
    scheduler: SchedulerOptions = SchedulerOptions()
    ema_decay: float = 0.0
    grad_clip: float | None = None
    precision: Literal['fp32', 'bf16'] = 'fp32'
    parallel: Literal['ddp', 'fsdp'] = 'ddp'
    max_bad_steps: int = 20

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ('total_iter', self.total_iter > 0, 'more than 0'),
            ('ema_decay', 0 <= self.ema_decay < 1, '0 or more, below 1'),
            ('grad_clip', self.grad_clip is None or self.grad_clip > 0, 'more than 0, or null'),
            ('max_bad_steps', self.max_bad_steps > 0, 'more than 0'),
        ):
            if not fits:
                raise ValueError(f'{name}: expected {wanted}, got {getattr(self, name)}')
        if self.parallel == 'fsdp' and self.optim_g.type == 'AdamW8bit':
            raise ValueError('optim_g.type: AdamW8bit does not know sharded parameters; set AdamW, or parallel: ddp')


@dataclasses.dataclass(frozen=True)
class ValOptions:
    """`val:`. `panel` samples of each validation set go to TensorBoard as pictures with their maps."""

    val_freq: int = 1000
    save_img: bool = False
    panel: int = 4
