"""How a cell changes the YAML file of its algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finpercep_plugin.cli.options import shipped
from finpercep_plugin.config import merge
from finpercep_plugin.replication.bench import RM_BATCH, Bench
from finpercep_plugin.replication.grid import Cell, Variant

__all__ = ['BATCH', 'RATE', 'STRENGTH', 'options', 'stages']

STRENGTH: dict[str, dict[str, Any]] = {
    'ReFL': {'weight': 3e-2, 'margin': 2.0},
    'DPO': {'members': 6, 'best': 2},
    'FlowGRPO': {'group': 6},
    'RFSR': {'reward_weight': 3e-2, 'margin': 2.0},
}
"""{algorithm: options of it in all its cells}: how strongly the reward pulls."""

RATE = {'ReFL': 5e-4, 'DPO': 2e-4, 'FlowGRPO': 5e-4, 'RFSR': 2e-4}
BATCH = {'ReFL': 4, 'DPO': 2, 'FlowGRPO': 2, 'RFSR': 4}


def stages(variant: Variant, steps: int) -> list[int] | None:
    """Steps of RM_0, RM_1, RM_2; None for a reward without stages.

    >>> from finpercep_plugin.replication.grid import variant
    >>> stages(variant('ReFL', 'ccl'), 100)
    [33, 33, 34]
    """
    third = steps // 3
    return {
        'global': [steps, 0, 0],
        'rm_2': [0, 0, steps],
        'ccl': [third, third, steps - 2 * third],
        'none': None,
    }[variant.curriculum]


def options(bench: Bench, cell: Cell) -> dict[str, Any]:
    """What a cell changes in its algorithm's YAML file."""
    variant, plan = cell.variant, bench.plan
    steps, algorithm = plan.steps[variant.algorithm], variant.algorithm
    train: dict[str, Any] = {
        'optim_g': {'lr': RATE[algorithm]},
        'ema_decay': 0.0,
        'algorithm': STRENGTH[algorithm],
        'ccl': {'stages': stages(variant, steps), 'calibration': plan.calibration},
        'monitor': {'every': 0, 'keep_best': False},
    }
    if variant.name == 'ccl_adaptive':
        every = max(1, steps // 28)
        train['ccl']['adaptive'] = {'window': 5, 'patience': 2, 'min_steps': max(1, steps // 6)}
        train['monitor'] |= {'every': every, 'samples': 8}
    changes: dict[str, Any] = {
        'generator': {'weights': str(bench.shop('cells').weights('generator'))},
        'datasets': {'train': {'batch_size_per_gpu': BATCH[algorithm]}, 'val': {'limit': 1}},
        'reward': {} if variant.curriculum == 'none' else _reward(bench, variant),
        'train': train,
        'val': {'save_img': False, 'panel': 0},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': max(1, steps // plan.points)},
    }
    if variant.name == 'gram':
        changes = merge(changes, {'train': {'algorithm': {'vgg': str(random_vgg(bench.out / 'vgg19_random.pth'))}}})
    if variant.name == 'at_switch':
        changes['reward']['rms'] = [str(bench.rms()[0])]
        changes['train']['ccl'] |= {'reward_update': 'at_switch', 'growth': _growth(bench)}
    return merge(changes, variant.changes)


def _reward(bench: Bench, variant: Variant) -> dict[str, Any]:
    return {'rms': [str(file) for file in bench.rms(variant.rms)], 'l2': bench.base['l2']}


def _growth(bench: Bench) -> dict[str, Any]:
    """RM_1 and RM_2 trained at the switches as long, and on the same data, as those made beforehand."""
    data = {'photos': 'all', 'num_worker_per_gpu': 0}
    sections: dict[str, Any] = {}
    for stage, steps in ((1, bench.plan.rm_1), (2, bench.plan.rm_2)):
        sections[f'rm_{stage}'] = {
            'opt': str(shipped()[f'rm_{stage}_small']),
            'network_g': {'vit': {'size': bench.plan.size}},
            'datasets': {
                'train': {**data, 'dataroot': str(bench.data('triplets')), 'batch_size_per_gpu': RM_BATCH},
                'val': {**data, 'dataroot': str(bench.data('held_out')), 'limit': 1},
            },
            'train': {'total_iter': steps},
            'val': {'val_freq': steps, 'save_img': False, 'panel': 0},
            'logger': {'print_freq': max(1, steps // 10), 'save_checkpoint_freq': steps},
        }
    return {**sections, 'fresh': max(24, bench.plan.triplets // 16), 'share': 0.25}


def random_vgg(file: Path) -> Path:
    """A file of torchvision's VGG19 layout with random convolutions whose outputs keep the scale of their inputs."""
    if not file.is_file():
        from torchvision.models import vgg19

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            state = vgg19(weights=None, init_weights=True).features.state_dict()  # He et al.: scale is kept
        partial = file.with_suffix('.part')
        torch.save({f'features.{name}': value for name, value in state.items()}, partial)
        partial.replace(file)
    return file
