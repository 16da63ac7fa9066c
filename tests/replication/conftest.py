"""Results that look as those of a replication, made up."""

import numpy as np
import pytest

from finpercep_plugin.replication.grid import cells
from finpercep_plugin.replication.measures import SIGNS

CROPS, STEPS = 12, 12
MEASURED = ('reward', 'held_out', 'psnr', 'ssim', 'distance', 'artifacts', *SIGNS)


def images(rng, shift):
    """{measure: a value a crop}; higher measures rise by `shift`."""
    return {name: list(20 + shift + 0.01 * rng.normal(size=CROPS) + np.arange(CROPS)) for name in MEASURED}


def result(cell, shift, wobble=0.0):
    rng, steps = np.random.default_rng(cell.seed), list(range(1, STEPS + 1))
    climb = [20 + shift * s / STEPS + wobble * (-1) ** s for s in (0, *steps)]
    return {
        'variant': cell.variant.name,
        'algorithm': cell.variant.algorithm,
        'seed': cell.seed,
        'steps': STEPS,
        'seconds': {'train': 3.0, 'measure': 1.0},
        'settings': {},
        'training': {'reward': {'step': steps, 'value': [0.1 * s + wobble * (-1) ** s for s in steps]}},
        'curve': {'step': [0, *steps], 'reward': climb, 'held_out': climb, 'psnr': climb},
        'images': images(rng, shift),
        'machine': 'x86_64',
        'device': 'cpu',
        'threads': 1,
        'torch': '2',
        'finpercep': '0',
    }


@pytest.fixture
def replication(tmp_path):
    """A folder with results of ReFL global (worse than the start), rm_2 (swinging) and ccl (better), two seeds each."""
    from finpercep_plugin.replication.bench import Bench, write_json
    from finpercep_plugin.replication.plan import Plan

    bench = Bench(tmp_path / 'out', ('a.png', 'b.png'), ('c.png', 'd.png'), Plan())
    bench.remember()
    base = images(np.random.default_rng(7), 0.0)
    photos = ['c.png'] * (CROPS // 2) + ['d.png'] * (CROPS // 2)
    about = {
        'threshold': 0.4,
        'l2': 6.0,
        'mu': 0.0,
        'sd': 1.0,
        'photos': photos,
        'machine': 'x86_64',
        'device': 'cpu',
        'torch': '2',
    }
    write_json(bench.base_file, {**about, 'images': {'base': base, 'bicubic': base, 'gt': base}})
    write_json(bench.out / 'made' / 'generator.json', {'seconds': {'generator': 5.0}})
    for cell in cells(['ReFL'], [0, 1]):
        shift, wobble = {'global': (-2.0, 0.0), 'rm_2': (1.0, 1.5), 'ccl': (2.0, 0.0)}.get(cell.variant.name, (0, 0))
        if shift:
            write_json(bench.out / 'results' / f'{cell.name}.json', result(cell, shift, wobble))
    return bench
