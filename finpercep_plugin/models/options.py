"""YAML sections that every model of the plugin reads, as dataclasses: they are the schema."""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ['OptimOptions', 'SchedulerOptions', 'TrainOptions', 'ValOptions']


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """`train.optim_g`."""

    type: Literal['AdamW', 'Adam'] = 'AdamW'
    lr: float = 1e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


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
        max_bad_steps: this many steps with a loss or gradient that is not finite stop the run, with its state saved.
    """

    total_iter: int
    warmup_iter: int = -1
    optim_g: OptimOptions = OptimOptions()
    scheduler: SchedulerOptions = SchedulerOptions()
    ema_decay: float = 0.0
    grad_clip: float | None = None
    precision: Literal['fp32', 'bf16'] = 'fp32'
    max_bad_steps: int = 20


@dataclasses.dataclass(frozen=True)
class ValOptions:
    """`val:`. `panel` samples of each validation set go to TensorBoard as pictures with their maps."""

    val_freq: int = 1000
    save_img: bool = False
    panel: int = 4
