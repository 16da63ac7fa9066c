"""One cell: fine-tune by the YAML file that users have, then measure; an interrupted one continues."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from finpercep_plugin.config import merge
from finpercep_plugin.quickstart.workshop import shipped_options
from finpercep_plugin.replication.bench import Bench, machine, write_json
from finpercep_plugin.replication.grid import ALGORITHMS, Cell, cells
from finpercep_plugin.replication.settings import options
from finpercep_plugin.report.experiment.events import read_scalars

__all__ = ['result_file', 'run_cell', 'work']


def result_file(bench: Bench, name: str) -> Path:
    return bench.out / 'results' / f'{name}.json'


def work(bench: Bench, task: str) -> None:
    """Do a task of the bench, or 'cell NAME', unless its result is there by now."""
    kind, _, name = task.partition(' ')
    if kind == 'cell':
        (cell,) = cells(only=name)
        if not result_file(bench, name).is_file():
            run_cell(bench, cell)
    elif not bench.is_made(task):
        bench.make(task)


def run_cell(bench: Bench, cell: Cell) -> None:
    """Train, measure, write `results/<cell>.json`, and remove what was only needed to continue."""
    algorithm, yaml = cell.variant.algorithm, ALGORITHMS[cell.variant.algorithm]
    steps, shop = bench.plan.steps[algorithm], bench.shop(cell.name)
    changes = options(bench, cell)
    began = time.perf_counter()
    shop.train(cell.name, yaml, 'pairs', steps, seed=cell.seed, changes=changes, replace=('reward',))
    trained = time.perf_counter() - began
    result = measure_cell(bench, cell)
    seconds = {'train': trained, 'measure': time.perf_counter() - began - trained}
    merged = merge(shipped_options(yaml)['train'], changes['train'])
    settings = {'algorithm': merged['algorithm'], 'ccl': merged['ccl'], 'lr': merged['optim_g']['lr']}
    about = {'variant': cell.variant.name, 'algorithm': algorithm, 'seed': cell.seed, 'steps': steps}
    write_json(
        result_file(bench, cell.name), {**about, 'seconds': seconds, 'settings': settings, **result, **machine()}
    )
    folder = bench.out / 'experiments' / cell.name
    shutil.rmtree(folder / 'training_states')
    for file in (folder / 'models').glob('net_g_*.pth'):
        file.unlink()


def measure_cell(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The curves, and the final generator on all crops."""
    experiment = bench.out / 'experiments' / cell.name / 'models'
    scalars = read_scalars(bench.out / 'tb_logger' / cell.name)
    training = {
        tag: dict(zip(('step', 'value'), scalars[tag])) for tag in ('reward', 'stage', 'grad_norm') if tag in scalars
    }
    few, generator = bench.crops.first(bench.plan.curve_crops), bench.generator()
    curve: dict[str, list[float]] = {'step': [], 'reward': [], 'held_out': [], 'psnr': []}
    files = {int(f.stem.rsplit('_', 1)[1]): f for f in experiment.glob('net_g_*.pth') if f.stem[-1].isdigit()}
    for step in [0, *sorted(files)]:
        if step:
            generator.load(files[step])
        values = bench.judges.curve(few.super_resolve(generator, bench.seed), few)
        for name, value in {'step': float(step), **values}.items():
            curve[name].append(value)
    sr = bench.crops.super_resolve(bench.generator(cell.name), bench.seed)
    images = bench.judges.measure(sr, bench.crops)
    return {'training': training, 'curve': curve, 'images': images}
