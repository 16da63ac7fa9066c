"""kill -9 at random moments: nothing that was kept is lost, and what goes on ends as if nothing had happened."""

import dataclasses
import random
import shutil
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from finpercep_plugin.data.fgr_verify import verify
from finpercep_plugin.data.lmdb_io import Reader, exists
from finpercep_plugin.images import write_png
from tests.data.conftest import contents
from tests.models.test_kill_inside_iteration import same
from tests.scoring.test_processes import COUNT, FORMATS, SLOW, command, entries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KILLS = {'rm': 15, 'diffusion': 15, 'refl': 15, 'dpo': 15, 'grpo': 15, 'rfsr': 15, 'build': 15, 'score': 15}
"""How often each is killed."""
NAMES = {
    'rm': 'training of a FinPercep-RM',
    'diffusion': 'supervised training of a generator',
    'refl': 'ReFL',
    'dpo': 'DPO',
    'grpo': 'GRPO',
    'rfsr': 'RFSR',
}


@dataclasses.dataclass
class Victim:
    """What is killed.

    Args:
        command: module and arguments; run in `folder`.
        folder: emptied before each run from the start.
        seconds: of a run that nobody kills.
        kept: what is on disk by name, after a kill or at the end; None for what is there without being whole yet.
        whole: name -> what `kept` must say of it.
        ends: what must be on disk once it has ended.
    """

    command: tuple
    folder: Path
    seconds: float
    kept: Callable[[Path], dict]
    whole: dict
    ends: Callable[[Path], object]
    end: object = None
    path: tuple = ()


def survive(forks, told, name, seed, victim, kills):
    """Kill it so often; the row of the page."""
    rng, moments, lost, ended = random.Random(f'{seed} {name}'), [], 0, 0
    before, log = {}, victim.folder.with_name('log')
    victim.folder.mkdir(exist_ok=True)
    while len(moments) < kills or before:
        last = len(moments) >= kills
        wait = 1e4 if last else rng.uniform(0, 0.9 * victim.seconds)
        forks.start(*victim.command, cwd=victim.folder, log=log, path=victim.path)
        killed = forks.wait() != 0 if last else forks.kill(wait)
        now = victim.kept(victim.folder)
        sound = before.keys() <= now.keys() and all(same(value, victim.whole[key]) for key, value in now.items())
        if killed:
            moments.append([round(wait, 3), len(now)])
            lost += not sound
            before = now
        else:
            assert sound and victim.ends(victim.folder) == victim.end, log.read_text()[-3000:]
            ended += 1
            shutil.rmtree(victim.folder)
            victim.folder.mkdir()
            before = {}
    told.add('kill', name, len(moments), len(moments) - lost, lost, ended, seed, moments=moments, whole=victim.seconds)
    print(f'{name}: {len(moments)} kills, {lost} lost, {ended} runs to the end, seed {seed}')
    assert len(moments) == kills and not lost and ended


def states(folder):
    """{file: content} of the training states and weights of a run."""
    files = [
        f for kind in ('training_states/*.state', 'models/*.pth') for f in (folder / 'experiments').glob(f'*/{kind}')
    ]
    return {file.name: torch.load(file, weights_only=True) for file in sorted(files)}


def weights(folder):
    """The weights that a run leaves at its end, by file."""
    (last,) = (folder / 'experiments').glob('*/models/net_g_latest.pth')
    return {name: value.tolist() for name, value in torch.load(last, weights_only=True)['params'].items()}


@pytest.mark.parametrize('kind', NAMES)
def test_training(options, forks, told, seed, tmp_path, kind):
    opt = options(kind)
    opt['train']['total_iter'], opt['logger']['save_checkpoint_freq'], opt['val'] = 18, 2, None
    if kind not in ('rm', 'diffusion'):
        opt['train'] |= {'ccl': {'stages': [6, 6, 6], 'calibration': 6}, 'monitor': {'every': 6, 'samples': 4}}
    (tmp_path / 'opt.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
    command = ('finpercep_plugin.train', '-opt', tmp_path / 'opt.yml', '--auto_resume')
    (tmp_path / 'whole').mkdir()
    seconds = forks.run(*command, cwd=tmp_path / 'whole', log=tmp_path / 'log')
    whole = states(tmp_path / 'whole')
    assert sum(name.endswith('.state') for name in whole) == 9
    victim = Victim(command, tmp_path / 'broken', seconds, states, whole, weights, weights(tmp_path / 'whole'))
    survive(forks, told, NAMES[kind], seed, victim, KILLS[kind])


def test_building(photos, forks, told, seed, tmp_path):
    def kept(folder):
        if not exists(folder / 'set'):
            return {}
        reader = Reader(folder / 'set')
        found = {key: bytes(reader.get(key)) for key in reader.keys()}
        reader.close()
        return found

    def ends(folder):
        assert verify(folder / 'set') == []
        found = contents(folder / 'set')
        Reader(folder / 'set').close()  # the next one has the same path
        return found

    count = ('--size', 32, '--count', 400, '--quiet')
    command = ('finpercep_plugin.cli.build_fgr', '--photos', photos, '--out', 'set', *count)
    (tmp_path / 'whole').mkdir()
    seconds = forks.run(*command, cwd=tmp_path / 'whole', log=tmp_path / 'log')
    whole = kept(tmp_path / 'whole')
    victim = Victim(command, tmp_path / 'broken', seconds, kept, whole, ends, ends(tmp_path / 'whole'))
    survive(forks, told, 'building of an FGR set', seed, victim, KILLS['build'])


def test_scoring(tiny_rms, forks, told, seed, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        gt = rng.integers(0, 256, (48, 40 + 8 * (i % 3), 3), dtype=np.uint8)
        write_png(tmp_path / 'gt' / f'{i:02d}.png', gt)
        write_png(tmp_path / 'sr' / f'{i:02d}.png', (gt * 0.9).astype(np.uint8))
    (tmp_path / 'slow_metric.py').write_text(SLOW)
    module, *arguments = command(tmp_path, tiny_rms)[1:]

    def kept(folder):
        return {(entry['name'], entry['metric']): entry for entry in entries(folder)}

    def ends(folder):
        found = entries(folder)
        assert len({(e['name'], e['metric']) for e in found}) == len(found) == 4 * COUNT  # nothing twice
        return [(folder / f's.{suffix}').read_bytes() for suffix in FORMATS]

    (tmp_path / 'whole').mkdir()
    seconds = forks.run(module, *arguments, cwd=tmp_path / 'whole', log=tmp_path / 'log', path=(tmp_path,))
    whole = {key: entry for key, entry in kept(tmp_path / 'whole').items()}
    end = ends(tmp_path / 'whole')
    victim = Victim((module, *arguments), tmp_path / 'broken', seconds, kept, whole, ends, end, (tmp_path,))
    survive(forks, told, 'scoring, four metrics', seed, victim, KILLS['score'])
