"""Experiments as BasicSR leaves them, written by its own logger and TensorBoard's own writer."""

from __future__ import annotations

import datetime
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from finpercep_plugin.config import merge
from finpercep_plugin.visual import grid

OPTIONS = {
    'name': 'run',
    'model_type': 'FinPercepReFLModel',
    'train': {'total_iter': 40, 'monitor': {'every': 5}, 'optim_g': {'lr': '1e-4'}},
    'val': {'rewards': {'held': {'type': 'Sharpness'}}},
    'logger': {'print_freq': 1, 'use_tb_logger': True},
}


def panel(seed: int, columns: int = 4, side: int = 8) -> np.ndarray:
    """Two rows of dark noise, as `report_panel` is given them."""
    rng = np.random.default_rng(seed)
    return grid([[rng.integers(0, 200, (side, side, 3), dtype=np.uint8) for _ in range(columns)] for _ in range(2)])


def cells(html: str, heading: str) -> list[str]:
    """The body of the first table below a heading."""
    section = html[html.index(f'<h2>{heading}') :]
    return re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', section[section.index('<tbody>') : section.index('</tbody>')])


class Run:
    """Writes what a run does. `begin` starts it, or starts it again."""

    def __init__(self, root: Path, name: str = 'run', **options):
        self.folder, self.logs = root / 'experiments' / name, root / 'tb_logger' / name
        self.opt = merge(OPTIONS, {'name': name, **options})
        self.folder.mkdir(parents=True)
        text = yaml.safe_dump(self.opt, sort_keys=False)
        (self.folder / f'{name}.yml').write_text(f'# GENERATE TIME: now\n# CMD:\n# train.py -opt {name}.yml\n\n{text}')
        self.clock = datetime.datetime(2026, 1, 1, 12)
        self.file, self.writer, self.message = None, None, None

    def begin(self, resumed: int = 0) -> Run:
        """A new log and a new event file; `resumed`: iterations done before."""
        from basicsr.utils.logger import MessageLogger
        from torch.utils.tensorboard import SummaryWriter

        self.clock += datetime.timedelta(hours=1)
        self.file = self.folder / f'train_{self.opt["name"]}_{self.clock:%Y%m%d_%H%M%S}.log'
        self.writer = SummaryWriter(str(self.logs), filename_suffix=f'.{self.clock:%H}')
        self.message = MessageLogger(self.opt, resumed, self.writer)
        self.message.logger = logging.Logger('basicsr')
        handler = logging.Handler()
        handler.emit = lambda record: self.say(record.getMessage())
        self.message.logger.addHandler(handler)
        self.say('\nVersion Information: \n\tBasicSR: 1.4.2\n\tMachine: host, 2 cores')
        if resumed:
            self.say(f'Resuming training from iter {resumed}.')
        return self

    def say(self, text: str, level: str = 'INFO') -> None:
        """A line of the log."""
        self.clock += datetime.timedelta(seconds=1)
        with self.file.open('a') as stream:
            stream.write(f'{self.clock:%Y-%m-%d %H:%M:%S},123 {level}: {text}\n')

    def step(self, iteration: int, **numbers: float) -> None:
        """An iteration's numbers, to both."""
        self.message({'epoch': 0, 'iter': iteration, 'lrs': [1e-4], 'time': 0.5, 'data_time': 0.1, **numbers})
        self.writer.flush()

    def picture(self, iteration: int, image: np.ndarray | None = None) -> None:
        self.writer.add_image('panel/val', panel(iteration) if image is None else image, iteration, dataformats='HWC')
        self.writer.flush()

    def saved(self, name: str, image: np.ndarray) -> None:
        """A file in `visualization/`."""
        file = self.folder / 'visualization' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)

    def end(self) -> None:
        self.say('End of training. Save the latest model.')
        self.writer.close()


@pytest.fixture
def make_run(tmp_path):
    """make_run(name, **options) -> a `Run` below the test's folder."""
    pytest.importorskip('basicsr')
    return lambda name='run', **options: Run(tmp_path, name, **options)


@pytest.fixture
def staged(make_run):
    """A finished run of two stages with monitor, decisions, pictures and a validation."""
    from finpercep_plugin.curriculum.monitor import Verdict
    from finpercep_plugin.curriculum.schedule import Decision

    made = make_run().begin()
    for i in range(1, 41):
        stage, seen, numbers = int(i > 20), (i - i % 5), {}
        if i == 21:
            made.say('iter 21: CCL stage 1')
        if i % 5 == 0:
            level = 'ok' if i < 15 else 'warn' if i < 30 else 'hacked'
            evidence = {
                'reward': i / 10,
                'rise': i / 20,
                'lq_psnr': 40 - i / 10,
                'lq_psnr_z': -i / 25,
                'lq_psnr_se': 0.01,
            }
            reasons = ('lq_psnr',) if level != 'ok' else ()
            made.say(
                f'iter {i}: {Verdict(i, level, reasons, i / 10, {}, False, evidence).text()}',
                'WARNING' if reasons else 'INFO',
            )
            found = {'steps': float(i), 'reward_rise': 0.5, 'reward_se': 0.1, 'lq_psnr_rise': -0.6, 'lq_psnr_se': 0.05}
            if i <= 20:
                leave, counts = i == 20, {'flat': 0.0, 'hacked': i / 10, 'monitor': 0.0}
                made.say(f'iter {i}: {Decision(i, 0, leave, "hacked" if leave else "rising", found | counts).text()}')
        if seen:
            numbers = {
                'monitor_level': float(seen >= 15) + float(seen >= 30),
                'monitor_safe_step': 10.0,
                'monitor_rise': seen / 20,
            }
            numbers |= {'monitor_lq_psnr': 40 - seen / 10, 'monitor_lq_psnr_z': -seen / 25, 'monitor_lq_psnr_se': 0.01}
        terms = {
            'l_reward': 1 / i,
            'l_total': 2 / i,
            'reward': i / 10,
            'reward_std': 0.5,
            'grad_norm': 1.0,
            'stage': float(stage),
        }
        made.step(i, **terms, **numbers)
        if i % 20 == 0:
            made.picture(i)
            made.writer.add_scalar('metrics/val/psnr', 20 + i / 10, i)
            made.writer.add_scalar('metrics/val/held', i / 10, i)
    made.end()
    return made
