"""What `tools/soak.py` watches: a process that scores, or trains, on small random things until it is ended.

    python -m finpercep_plugin.cli.soak_work scoring|training FOLDER

The file FOLDER/<work>.done holds how many pictures were scored, or iterations done.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np

__all__ = ['WORKS', 'main', 'prepare']

_GENERATOR = {'type': 'TinyDiffusion', 'scale': 4, 'steps': 3}
_NETWORK = {'shuffle': 4, 'channels': [16], 'layers': 1, 'norm_groups': 4}
_PICTURES, _EVERY = 32, 20
_KEPT = 2
"""Training states that are left on disk."""


def prepare(folder: Path, seed: int) -> None:
    """Photos, an FGR set, reward models and a generator, all small and random."""
    import torch

    from finpercep_plugin.cli.tiny_checkpoints import reward_models
    from finpercep_plugin.data.fgr_builder import build
    from finpercep_plugin.data.fgr_options import BuildOptions
    from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion
    from finpercep_plugin.images import write_png

    rng, ramp = np.random.default_rng(seed), np.linspace(0, 200, 64)
    for number in range(_PICTURES):
        photo = ramp[:, None, None] * rng.uniform(0.2, 1, 3) + rng.normal(0, 20, (64, 64, 3))
        write_png(folder / f'photos/{number:02d}.png', photo.clip(0, 255).astype(np.uint8))
    build(BuildOptions(photos=[str(folder / 'photos')], out=str(folder / 'fgr'), count=32, size=32, scale=4, seed=seed))
    reward_models(folder, seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        generator = TinyDiffusion(network=_NETWORK, **{k: v for k, v in _GENERATOR.items() if k != 'type'})
        torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
    generator.save(folder / 'base.pth')


def scoring(folder: Path, tell: Callable[[int], None]) -> None:
    """The command, again and again: the reward model with its maps and a metric, from nothing and from its journal."""
    from finpercep_plugin.cli.score import main as score

    for turn in itertools.count(1):
        out = folder / 'scores'
        words = [str(folder / 'photos'), '--rm', str(folder / 'rm_2.pth'), '--metrics', 'sharpness=Sharpness']
        words += ['--maps', str(out / 'maps'), '--out', str(out / 's.csv'), '--device', 'cpu', '--quiet']
        if score(words):
            raise SystemExit('scoring failed')
        tell(turn * _PICTURES)
        if turn % 4 == 0:
            shutil.rmtree(out)


def training(folder: Path, tell: Callable[[int], None]) -> None:
    """ReFL with its curriculum and monitor, with checkpoints and validation, without an end."""
    from finpercep_plugin.train import train_pipeline

    states = folder / 'experiments/soak/training_states'

    def on_step(iteration: int, total: int) -> None:
        tell(iteration)
        for old in sorted(states.glob('*.state'), key=lambda f: int(f.stem))[:-_KEPT]:
            old.unlink()
            (folder / f'experiments/soak/models/net_g_{old.stem}.pth').unlink(missing_ok=True)

    os.chdir(folder)
    train_pipeline(str(folder), _options(folder), on_step, console=False)


def _options(folder: Path) -> dict[str, Any]:
    data = {'type': 'FinPercepFGRDataset', 'dataroot': str(folder / 'fgr')}
    train = {'use_hflip': True, 'batch_size_per_gpu': 4, 'num_worker_per_gpu': 1}
    return {
        'name': 'soak',
        'model_type': 'FinPercepReFLModel',
        'scale': 4,
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {'train': {**data, 'name': 'train', **train}, 'val': {**data, 'name': 'val', 'limit': 4}},
        'generator': {**_GENERATOR, 'network': _NETWORK, 'weights': str(folder / 'base.pth'), 'train': 'all'},
        'reward': {'type': 'FinPercep', 'rms': [str(folder / f'rm_{stage}.pth') for stage in range(3)]},
        'path': {'resume_state': None},
        'train': {
            'total_iter': 10**9,
            'optim_g': {'type': 'AdamW', 'lr': 1e-6},
            'scheduler': {'type': 'constant'},
            'ema_decay': 0.9,
            'algorithm': {'type': 'ReFL', 'weight': 0.1},
            'ccl': {'stages': [50, 50, 10**8], 'calibration': 8},
            'monitor': {'every': _EVERY, 'samples': 4},
        },
        'val': {
            'val_freq': _EVERY,
            'save_img': False,
            'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}},
        },
        'logger': {'print_freq': _EVERY, 'save_checkpoint_freq': _EVERY, 'use_tb_logger': True},
    }


WORKS = {'scoring': scoring, 'training': training}


def main(argv: list[str] | None = None) -> int:
    """Work until killed."""
    work, place = argv or sys.argv[1:]
    folder = Path(place)
    with open(folder / f'{work}.done', 'wb', buffering=0) as done:

        def tell(count: int) -> None:
            done.seek(0)
            done.write(f'{count:20d}'.encode())

        WORKS[work](folder, tell)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
