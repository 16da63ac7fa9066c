"""Growth at the switches as processes: from YAML, killed wherever it may be, and as two processes under torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip('basicsr')
from finpercep_plugin.cli.options import copy, shipped  # noqa: E402
from finpercep_plugin.config import merge  # noqa: E402
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset  # noqa: E402

pytestmark = pytest.mark.slow
TRAIN = ['-m', 'finpercep_plugin.train', '-opt']


def write(opt: dict, file: str) -> str:
    Path(file).write_text(yaml.safe_dump(opt, sort_keys=False))
    return file


def state(name: str, iteration: int) -> dict:
    return torch.load(f'experiments/{name}/training_states/{iteration}.state', weights_only=True)


def rm(name: str, stage: int) -> dict:
    return torch.load(f'experiments/{name}/growth/stage_{stage}/rm.pth', weights_only=True)['params']


def furthest(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max(float((one[k].double() - other[k].double()).abs().max()) for k in one)


def test_killed_wherever_it_may_be_and_resumed_is_bit_identical(growing, python):
    opt = growing('refl')
    opt['train'] |= {'total_iter': 9, 'ccl': {**opt['train']['ccl'], 'stages': [3, 3, 3]}}
    opt['train']['ccl']['growth'] |= {'fresh': 12, 'rm_2': {'opt': 'rm.yml', 'train': {'total_iter': 8}}}
    opt['val'], opt['logger']['save_checkpoint_freq'] = None, 2
    opt['train']['monitor'] = {'every': 3, 'samples': 4}
    python(*TRAIN, write({**opt, 'name': 'whole'}, 'whole.yml'))
    command = [sys.executable, *TRAIN, write(opt, 'opt.yml'), '--auto_resume']
    root, kills = Path('experiments/refl'), 0
    moments = {
        'samples of the first switch': 'growth/stage_1/fgr/data.mdb',
        'training of RM_1': 'growth/stage_1/training_states/2.state',
        'RM_1 is there': 'growth/stage_1/rm.pth',
        'after the first switch': 'training_states/4.state',
        'training of RM_2': 'growth/stage_2/training_states/5.state',
        'RM_2 is there': 'growth/stage_2/rm.pth',
    }
    for file in moments.values():
        with open('log', 'a') as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        deadline = time.time() + 200
        while not (root / file).exists() and process.poll() is None and time.time() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == len(moments), Path('log').read_text()[-2000:]
    python(*command[1:])
    one, other = state('whole', 8), state('refl', 8)
    assert furthest(one['trained'], other['trained']) == 0 and one['grown'] == other['grown']
    assert one['ccl'] == other['ccl'] and one['monitor'] == other['monitor']
    assert all(furthest(rm('whole', k), rm('refl', k)) == 0 for k in (1, 2))


def test_the_files_that_come_with_the_package_train_through_all_stages(fgr_set, tmp_path, monkeypatch, python):
    """RM_0, the generator, then CCL, by the YAML files and in the folders that they name; sizes aside."""
    monkeypatch.chdir(tmp_path)
    copy(list(shipped()), Path('options'))
    data = {'dataroot': str(fgr_set), 'num_worker_per_gpu': 0}
    small = {'num_gpu': 0, 'datasets': {'train': data, 'val': data}, 'val': {'panel': 1}}
    network = {'network_g': {'vit': {'size': 32, 'patch': 8, 'width': 32, 'depth': 3, 'heads': 2, 'stem': 8}}}
    for name, changes in (
        ('rm_0_small', {**small, **network, 'train': {'total_iter': 2}}),
        ('diffusion_small', {**small, 'train': {'total_iter': 2}}),
        ('rm_1_small', network),
        ('rm_2_small', network),
        ('ccl_refl_at_switch_small', {**small, 'train': {'total_iter': 6, 'ccl': {'stages': [2, 2, 2]}}}),
    ):
        file = Path(f'options/{name}.yml')
        opt = merge(yaml.safe_load(file.read_text()), changes)
        opt['logger']['use_tb_logger'] = False
        if 'generator' in opt:
            opt['val']['metrics'] = {'psnr': {'type': 'calculate_psnr', 'crop_border': 4}}
        if 'ccl' in opt['train']:
            growth, short = opt['train']['ccl']['growth'], {**small, 'train': {'total_iter': 3}}
            growth |= {'rm_1': {'opt': growth['rm_1'], **short}, 'rm_2': {**growth['rm_2'], **short}, 'fresh': 8}
            opt['train']['ccl']['calibration'] = 6
        file.write_text(yaml.safe_dump(opt, sort_keys=False))
        if not name.startswith(('rm_1', 'rm_2')):
            python('-m', 'finpercep_plugin.train', '-opt', file)
    root = Path('experiments/ccl_refl_at_switch_small')
    assert (root / 'models/generator_latest.pth').is_file() and list(root.glob('visualization/*panel*.png'))
    assert all((root / f'growth/stage_{k}/rm.pth').is_file() for k in (1, 2))
    assert next(root.glob('*.log')).read_text().count('CCL stage') == 2


def test_two_processes_are_one_with_the_doubled_batch(growing, python):
    """The same fresh samples, and reward models and generator to rounding.

    Of the losses of a reward model only that of the map: in the others' gradient of a new head's bias everything cancels,
    and AdamW makes whole steps of what rounding leaves.
    """
    opt = growing('refl')
    opt['train']['ema_decay'], opt['val'] = 0.0, None
    opt['train']['optim_g']['eps'] = 1e-3  # of 1e-8, the rounding of gradients near 0 would become whole steps
    map_alone = {'opt': 'rm.yml', 'train': {'rank_opt': None, 'align_opt': None, 'optim_g': {'eps': 1e-3}}}
    opt['train']['ccl']['growth'] |= {'rm_1': {**map_alone, 'network_g': {'stage': 1}}, 'rm_2': map_alone}
    opt['train']['ccl']['growth']['fresh'] = 6  # not whole rounds
    python(*TRAIN, write({**opt, 'name': 'one'}, 'one.yml'), timeout=300)
    opt['name'], half = 'two', {'train': {'batch_size_per_gpu': 2}}
    opt = merge(opt, {'datasets': half, 'train': {'ccl': {'growth': {f'rm_{k}': {'datasets': half} for k in (1, 2)}}}})
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', *TRAIN, write(opt, 'two.yml')]
    python(*launch, '--launcher', 'pytorch', timeout=300)
    for stage in (1, 2):
        folders = (f'experiments/{name}/growth/stage_{stage}/fgr' for name in ('one', 'two'))
        one, two = (FinPercepFGRDataset({'dataroot': folder}) for folder in folders)
        apart = [abs(one.read(k)['sr'].astype(int) - two.read(k)['sr'].astype(int)).max() for k in one.keys]
        assert len(one) == len(two) == 6 and max(apart) <= 1
        assert furthest(rm('one', stage), rm('two', stage)) < 1e-5
    assert furthest(state('one', 4)['trained'], state('two', 4)['trained']) < 1e-5
    Path('experiments/two/training_states/4.state').unlink()
    python(*launch, '--launcher', 'pytorch', '--auto_resume', timeout=300)
    assert furthest(state('one', 4)['trained'], state('two', 4)['trained']) < 1e-5
