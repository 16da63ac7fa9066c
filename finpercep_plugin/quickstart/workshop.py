"""Data sets and trainings by the YAML files that ship with the package, in one folder; what is there is not made again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

import torch
import yaml
from tqdm import tqdm

from finpercep_plugin.cli.options import shipped
from finpercep_plugin.config import merge
from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_options import BuildOptions

__all__ = ['CLASSICAL', 'Workshop', 'cores', 'own_producer', 'shipped_options']

CLASSICAL = {'type': 'classical', 'weight': 2.0}
"""The producer that needs no weights."""


def shipped_options(name: str) -> dict[str, Any]:
    """The YAML file called `name` that ships with the package."""
    return yaml.safe_load(shipped()[name].read_text(encoding='utf-8'))


def own_producer(section: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """The producer that is the generator of section `generator:` with the weights of a file."""
    return {'type': 'generator', 'weight': 1.0, 'generator': dict(section), 'weights': str(weights)}


@dataclasses.dataclass
class Workshop:
    """Makes and remembers.

    Attributes:
        out: folder of everything, absolute.
        seed: of every training that names no other.
        size: side of the crops in pixels.
        announce: called with a line a step.
        bars: show progress.
        seconds: what each step took that was not there already.
    """

    out: Path
    seed: int
    size: int
    announce: Callable[[str], None] = print
    bars: bool = True
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def weights(self, name: str) -> Path:
        """The file that training `name` ends with: of a generator that was fine-tuned, the whole of it."""
        models = self.out / 'experiments' / name / 'models'
        whole = models / 'generator_latest.pth'
        return whole if whole.is_file() else models / 'net_g_latest.pth'

    def data(self, name: str) -> Path:
        return self.out / 'datasets' / name

    def fgr(self, name: str, photos: Sequence[str], count: int, seed: int, producers: list[dict], workers: int) -> None:
        """Build, or continue, an FGR set."""
        options = BuildOptions(
            photos=list(photos),
            out=str(self.data(name)),
            count=count,
            size=self.size,
            seed=seed,
            workers=workers,
            producers=producers,
        )
        with self._timed(f'Building FGR data: {name}', f'fgr {name}'), self._bar(count, 'sample') as bar:
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
        replace: Sequence[str] = (),
    ) -> None:
        """Train by a YAML file, with paths and sizes changed; an interrupted one continues.

        Args:
            name: of the training.
            yaml_name: of the file, see `finpercep-options list`.
            data: name of the FGR set.
            steps: iterations.
            start: name of the training whose reward model it grows from.
            seed: None: the workshop's.
            val_freq: None: at the end.
            changes: laid over the options last.
            replace: sections of which nothing but the changes is kept, where these name a `type`.
        """
        from finpercep_plugin.train import train_pipeline

        options = merge(shipped_options(yaml_name), self._changes(name, data, steps, seed, val_freq))
        last = 'generator_latest.pth' if 'reward' in options else 'net_g_latest.pth'
        if (self.out / 'experiments' / name / 'models' / last).is_file():
            self.announce(f'{name}: trained already')
            return
        if start:
            options['path']['pretrain_network_g'] = str(self.weights(start))
        if self.size < 96 and 'network_g' in options:
            options['network_g']['vit'] = {**options['network_g']['vit'], 'size': self.size}
        if state := self._last_state(name):
            options['path']['resume_state'] = str(state)
        for section in replace:
            if 'type' in (changes or {}).get(section, {}):
                options[section] = {}
        options = merge(options, changes or {})
        with self._timed(f'Training {name}', name), self._bar(steps, 'step') as bar:
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

    def _bar(self, total: int, unit: str) -> tqdm:
        return tqdm(total=total, unit=unit, dynamic_ncols=True, disable=not self.bars)

    @contextlib.contextmanager
    def _timed(self, line: str, key: str) -> Iterator[None]:
        self.announce(line)
        began = time.perf_counter()
        yield
        self.seconds[key] = time.perf_counter() - began


def cores() -> int:
    """Processes that data is built by."""
    return min(2, os.cpu_count() or 1)
