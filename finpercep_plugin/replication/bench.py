"""Everything that is made once and shared by all cells: data, the generator, reward models, what it all starts from."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch

from finpercep_plugin.config import merge
from finpercep_plugin.quickstart.measure import load_generator
from finpercep_plugin.quickstart.workshop import CLASSICAL, Workshop, cores, own_producer, shipped_options
from finpercep_plugin.replication.grid import RMs
from finpercep_plugin.replication.measures import Crops, Judges, read_crops
from finpercep_plugin.replication.plan import Plan
from finpercep_plugin.replication.pool import Task

__all__ = ['RM_BATCH', 'RM_TASKS', 'Bench', 'machine', 'write_json']

OTHER_SEED = 1000
RM_BATCH = 8
BALANCED = 24
"""Outputs of the starting generator that l2 is measured on."""
ARTIFACT_SHARE = 0.05
"""Of the starting generator's pixels that count as artifacts: the threshold of the held-out map is the quantile that gives this."""


@dataclasses.dataclass(frozen=True)
class RMTask:
    """Training of a reward model.

    Attributes:
        yaml: file that it is trained by.
        start: reward model it grows from.
        changes: to the options.
        held_out: its seed is another one.
    """

    yaml: str
    start: str | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    held_out: bool = False


NO_MAP = {'train': {'map_opt': None}}
PIXEL = {'datasets': {'train': {'alpha': 1.0}, 'val': {'alpha': 1.0}}}

RM_TASKS = {
    'rm_0': RMTask('rm_0_small'),
    'held_out_rm_0': RMTask('rm_0_small', held_out=True),
    'rm_1': RMTask('rm_1_small', 'rm_0'),
    'rm_2': RMTask('rm_2_small', 'rm_1'),
    'held_out_rm': RMTask('rm_2_small', 'held_out_rm_0', held_out=True),
    'no_map_rm_1': RMTask('rm_1_small', 'rm_0', NO_MAP),
    'no_map_rm_2': RMTask('rm_2_small', 'no_map_rm_1', NO_MAP),
    'pixel_rm_1': RMTask('rm_1_small', 'rm_0', PIXEL),
    'pixel_rm_2': RMTask('rm_2_small', 'pixel_rm_1', PIXEL),
}
"""Every reward model is trained once, in this order where there is a choice."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """One replication: a folder, photos, a seed and a plan. It is sent to the processes that work on it.

    Attributes:
        out: folder of everything, absolute.
        photos, held_out: files to train on, and to measure on.
        plan: sizes.
        seed: of the data, the generator and the reward models.
    """

    out: Path
    photos: tuple[str, ...]
    held_out: tuple[str, ...]
    plan: Plan
    seed: int = 0

    def remember(self) -> None:
        """A folder holds one replication; other photos, sizes or seeds are refused.

        Raises:
            ValueError: the folder is of another one, or a photo is trained on and measured on.
        """
        if both := sorted(set(self.photos) & set(self.held_out)):
            raise ValueError(f'{len(both)} photos are to be trained on and held out, such as {both[0]}')
        own = {'photos': self.photos, 'held_out': self.held_out, 'plan': dataclasses.asdict(self.plan)}
        own = json.loads(json.dumps({**own, 'seed': self.seed}))
        file = self.out / 'replication.json'
        if not file.is_file():
            write_json(file, own)
        before = json.loads(file.read_text(encoding='utf-8'))
        if other := sorted(key for key in own if before.get(key) != own[key]):
            raise ValueError(f'{self.out} holds a replication with other {", ".join(other)}; choose another --out')

    def shop(self, name: str) -> Workshop:
        """The workshop, whose lines go to the log `name`."""
        log = self.out / 'logs' / f'{name}.txt'
        log.parent.mkdir(parents=True, exist_ok=True)

        def announce(line: str) -> None:
            with log.open('a', encoding='utf-8') as file:
                file.write(f'{time.strftime("%H:%M:%S")} {line}\n')

        return Workshop(self.out, self.seed, self.plan.size, announce, bars=False)

    def data(self, name: str) -> Path:
        """Folder of an FGR set."""
        return self.out / 'datasets' / name

    def generator_section(self) -> dict[str, Any]:
        """`generator:` of diffusion_small.yml."""
        return shipped_options('diffusion_small')['generator']

    def rms(self, prefix: RMs = '') -> list[Path]:
        """Files of RM_0, RM_1, RM_2."""
        shop = self.shop('rms')
        return [shop.weights(name) for name in ('rm_0', f'{prefix}rm_1', f'{prefix}rm_2')]

    def tasks(self) -> list[Task]:
        """What is to be made before any cell, apart from what is there."""
        tasks = [
            Task('data pairs'),
            Task('data held_out'),
            Task('train generator', ('data pairs', 'data held_out')),
            Task('data triplets', ('train generator',)),
        ]
        for name, rm in RM_TASKS.items():
            needs = ('data triplets', *([f'train {rm.start}'] if rm.start else []))
            tasks.append(Task(f'train {name}', needs))
        tasks.append(Task('base', ('train generator', 'train rm_2', 'train held_out_rm')))
        return [task for task in tasks if not self.is_made(task.name)]

    def is_made(self, task: str) -> bool:
        """Whether the result of a task of `tasks` is there."""
        kind, _, name = task.partition(' ')
        if kind == 'train':
            return self.shop('check').weights(name).is_file()
        return (self.out / 'made' / f'{name}.json').is_file() if kind == 'data' else self.base_file.is_file()

    def make(self, task: str) -> None:
        """Do a task of `tasks`; one that was interrupted continues."""
        logging.getLogger('basicsr').setLevel(logging.INFO)
        kind, _, name = task.partition(' ')
        shop = self.shop(task.replace(' ', '_'))
        if kind == 'data':
            self._data(shop, name)
        elif kind == 'base':
            self._base()
        elif name == 'generator':
            shop.train(name, 'diffusion_small', 'pairs', self.plan.generator)
        else:
            rm = RM_TASKS[name]
            seed = self.seed + OTHER_SEED if rm.held_out else self.seed
            changes = merge({'datasets': {'train': {'batch_size_per_gpu': RM_BATCH}}}, rm.changes)
            shop.train(name, rm.yaml, 'triplets', self._rm_steps(name), rm.start, seed, changes=changes)
        write_json(self.out / 'made' / f'{name or kind}.json', {'seconds': shop.seconds, **machine()})

    def _rm_steps(self, name: str) -> int:
        if name.startswith('held_out'):
            return self.plan.held_out_rm[name == 'held_out_rm']
        return getattr(self.plan, name[-4:])

    def _data(self, shop: Workshop, name: str) -> None:
        section, plan = self.generator_section(), self.plan
        if name == 'triplets':
            producers = [CLASSICAL, own_producer(section, shop.weights('generator'))]
            shop.fgr(name, self.photos, plan.triplets, self.seed + 2, producers, cores())
        elif name == 'pairs':
            shop.fgr(name, self.photos, plan.pairs, self.seed, [CLASSICAL], 0)
        else:
            shop.fgr(name, self.held_out, plan.crops, self.seed + 1, [CLASSICAL], 0)

    @property
    def base_file(self) -> Path:
        """Of what the starting generator, bicubic enlargement and ground truth measure."""
        return self.out / 'results' / 'base.json'

    @cached_property
    def crops(self) -> Crops:
        """All that is measured on."""
        return read_crops(self.data('held_out'))

    @cached_property
    def judges(self) -> Judges:
        """With the threshold that `base` found, once it was measured."""
        judges = Judges(self.rms()[2], self.shop('rms').weights('held_out_rm'), device())
        if self.base_file.is_file():
            judges.threshold, judges.l2 = self.base['threshold'], self.base['l2']
        return judges

    @cached_property
    def base(self) -> dict[str, Any]:
        """What `base` measured."""
        return json.loads(self.base_file.read_text(encoding='utf-8'))

    def generator(self, name: str = 'generator') -> torch.nn.Module:
        """What training `name` ended with: 'generator' is what every cell starts from."""
        return load_generator(self.generator_section(), self.shop('base').weights(name)).to(device())

    def _base(self) -> None:
        crops, judges = self.crops, self.judges
        sr = crops.super_resolve(self.generator(), self.seed)
        judges.l2 = judges.balance(sr[:BALANCED])
        judges.threshold = float(judges.maps(sr).flatten().double().quantile(1 - ARTIFACT_SHARE))
        images = {'base': sr, 'bicubic': crops.bicubic(), 'gt': crops.gt}
        measured = {name: judges.measure(image, crops) for name, image in images.items()}
        reward = torch.tensor(measured['base']['reward'], dtype=torch.float64)
        write_json(
            self.base_file,
            {
                'threshold': judges.threshold,
                'l2': judges.l2,
                'mu': float(reward.mean()),
                'sd': float(reward.std(correction=0)),
                'photos': crops.photos,
                'images': measured,
                **machine(),
            },
        )


def device() -> torch.device:
    """What measures."""
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def machine() -> dict[str, Any]:
    """What figures depend on beside seeds and sizes."""
    import finpercep_plugin

    return {
        'machine': platform.machine(),
        'device': torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu',
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'finpercep': finpercep_plugin.__version__,
    }


def write_json(file: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f'.{file.name}.{os.getpid()}.part')
    partial.write_text(json.dumps(content), encoding='utf-8')
    os.replace(partial, file)
