"""Photos -> FGR -> generator -> RM_0, RM_1, RM_2 -> CCL + ReFL -> before and after, through the same YAML files and tools that users have."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

import torch
import yaml
from tqdm import tqdm

from finpercep_plugin.cli.options import shipped
from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_options import BuildOptions

__all__ = ['QuickStart', 'Recipe', 'merge']


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sizes, for two CPU cores and at most twelve minutes; the YAML files hold everything else.

    Attributes:
        size: side of the crops in pixels.
        pairs, triplets, crops: samples of the set that the generator trains on, of the reward models', and held-out crops to measure on.
        generator, rm_0, rm_1, rm_2: training steps.
        held_out_rm: steps of the two stages of the reward model that is never optimised.
        refl: steps of each CCL stage.
        calibration: see `train.ccl.calibration`.
    """

    size: int = 64
    pairs: int = 800
    triplets: int = 1000
    crops: int = 96
    generator: int = 850
    rm_0: int = 300
    rm_1: int = 100
    rm_2: int = 400
    held_out_rm: tuple[int, int] = (220, 220)
    refl: tuple[int, int, int] = (60, 60, 80)
    calibration: int = 32


def merge(options: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with `changes` laid over it, section by section.

    >>> merge({'a': {'b': 1, 'c': 2}}, {'a': {'b': 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    result = dict(options)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


class QuickStart:
    """The steps, in one folder; a step whose result is there is not repeated.

    Args:
        out: folder of everything.
        seed: of every draw.
        train, held_out: photos.
        recipe: sizes.
        announce: called with a line a step.
    """

    def __init__(
        self,
        out: Path,
        seed: int,
        train: Sequence[Path],
        held_out: Sequence[Path],
        recipe: Recipe,
        announce: Callable[[str], None] = print,
    ):
        self.out, self.seed, self.recipe, self.announce = out.absolute(), seed, recipe, announce
        both = sorted({str(p) for p in train} & {str(p) for p in held_out})
        if both:
            raise ValueError(
                f'{len(both)} photos are to be trained on and held out, such as {both[0]}; give different ones'
            )
        self.photos = {'train': [str(p) for p in train], 'held_out': [str(p) for p in held_out]}
        self.seconds: dict[str, float] = {}
        self.out.mkdir(parents=True, exist_ok=True)
        self._remember()

    def run(self) -> None:
        """All steps but measuring and the page."""
        r, workers = self.recipe, min(2, os.cpu_count() or 1)
        producers = [{'type': 'classical', 'weight': 2.0}]
        self.fgr('pairs', self.photos['train'], r.pairs, self.seed, producers, workers)
        self.fgr('held_out', self.photos['held_out'], r.crops, self.seed + 1, producers, workers)
        self.train('generator', 'diffusion_small', 'pairs', r.generator, val_freq=max(1, r.generator // 3))
        own = {
            'type': 'generator',
            'weight': 1.0,
            'generator': self.generator_section(),
            'weights': str(self.weights('generator')),
        }
        self.fgr('triplets', self.photos['train'], r.triplets, self.seed + 2, [*producers, own], workers)
        self.train('rm_0', 'rm_0_small', 'triplets', r.rm_0)
        self.train('rm_1', 'rm_1_small', 'triplets', r.rm_1, start='rm_0')
        self.train('rm_2', 'rm_2_small', 'triplets', r.rm_2, start='rm_1')
        self.train('held_out_rm_0', 'rm_0_small', 'triplets', r.held_out_rm[0], seed=self.seed + 1000)
        self.train(
            'held_out_rm', 'rm_2_small', 'triplets', r.held_out_rm[1], start='held_out_rm_0', seed=self.seed + 1000
        )
        rewards = {
            'generator': {'weights': str(self.weights('generator'))},
            'reward': {'rms': [str(self.weights(f'rm_{k}')) for k in range(3)]},
            'train': {'ccl': {'stages': list(r.refl), 'calibration': r.calibration}},
            'val': {'rewards': {'held_out': {'type': 'FinPercep', 'rm': str(self.weights('held_out_rm'))}}},
        }
        total = sum(r.refl)
        self.train('refl', 'ccl_refl_small', 'pairs', total, val_freq=max(1, total // 5), changes=rewards)

    def weights(self, name: str) -> Path:
        """The file that training `name` ends with."""
        file = 'generator_latest.pth' if name == 'refl' else 'net_g_latest.pth'
        return self.out / 'experiments' / name / 'models' / file

    def generator_section(self) -> dict[str, Any]:
        """`generator:` of diffusion_small.yml."""
        return _options('diffusion_small')['generator']

    def data(self, name: str) -> Path:
        return self.out / 'datasets' / name

    def fgr(self, name: str, photos: list[str], count: int, seed: int, producers: list[dict], workers: int) -> None:
        """Build, or continue, an FGR set."""
        with self._timed(f'Building FGR data: {name}', f'fgr {name}'):
            options = BuildOptions(
                photos=photos,
                out=str(self.data(name)),
                count=count,
                size=self.recipe.size,
                seed=seed,
                workers=workers,
                producers=producers,
            )
            with tqdm(total=count, unit='sample', dynamic_ncols=True) as bar:
                build(options, lambda done, total: bar.update(done - bar.n))

    def train(
        self,
        name: str,
        yaml_name: str,
        data: str,
        steps: int,
        start: str | None = None,
        seed: int | None = None,
        val_freq: int | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        """Train by a YAML file that ships with the package, with paths and sizes changed; an interrupted one continues."""
        from finpercep_plugin.train import train_pipeline

        if self.weights(name).is_file():
            self.announce(f'{name}: trained already')
            return
        with self._timed(f'Training {name}', name):
            options = merge(_options(yaml_name), self._changes(name, data, steps, seed, val_freq))
            options = merge(options, changes or {})
            if start:
                options['path']['pretrain_network_g'] = str(self.weights(start))
            if self.recipe.size < 96 and 'network_g' in options:
                options['network_g']['vit'] = {**options['network_g']['vit'], 'size': self.recipe.size}
            state = self._last_state(name)
            if state:
                options['path']['resume_state'] = str(state)
            with tqdm(total=steps, unit='step', dynamic_ncols=True) as bar:
                train_pipeline(str(self.out), options, lambda step, total: bar.update(step - bar.n), console=False)

    def _changes(self, name: str, data: str, steps: int, seed: int | None, val_freq: int | None) -> dict[str, Any]:
        dataset = {'dataroot': str(self.data(data)), 'photos': 'all', 'num_worker_per_gpu': 0}
        return {
            'name': name,
            'manual_seed': self.seed if seed is None else seed,
            'num_gpu': 'auto' if torch.cuda.is_available() else 0,
            'datasets': {
                'train': dataset,
                'val': {'dataroot': str(self.data('held_out')), 'photos': 'all', 'limit': 24},
            },
            'train': {'total_iter': steps},
            'val': {'val_freq': val_freq or steps},
            'logger': {'print_freq': max(1, steps // 50), 'save_checkpoint_freq': max(1, steps // 4)},
        }

    def _last_state(self, name: str) -> Path | None:
        states = (self.out / 'experiments' / name / 'training_states').glob('*.state')
        return max(states, key=lambda p: int(p.stem), default=None)

    def _remember(self) -> None:
        """A folder holds one quick start; another seed, recipe or set of photos is refused.

        Raises:
            ValueError: the folder is of another one.
        """
        what = {
            'seed': self.seed,
            'recipe': json.loads(json.dumps(dataclasses.asdict(self.recipe))),
            'photos': self.photos,
        }
        file = self.out / 'quickstart.json'
        if file.is_file():
            if json.loads(file.read_text(encoding='utf-8')) != what:
                raise ValueError(
                    f'{self.out} holds a quick start with another seed, size or photos; choose another --out'
                )
        else:
            partial = file.with_suffix('.part')
            partial.write_text(json.dumps(what, indent=1), encoding='utf-8')
            os.replace(partial, file)

    @contextlib.contextmanager
    def _timed(self, line: str, key: str) -> Iterator[None]:
        self.announce(line)
        began = time.perf_counter()
        yield
        self.seconds[key] = time.perf_counter() - began


def _options(name: str) -> dict[str, Any]:
    """The YAML file called `name` that ships with the package."""
    return yaml.safe_load(shipped()[name].read_text(encoding='utf-8'))
