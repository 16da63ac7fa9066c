"""A rank that dies, or stands still: the other says so within the time limit, and both go on from the last state."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from tests.faults.forks import ROOT
from tests.models.test_kill_inside_iteration import same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
LIMIT, EVERY, TOTAL = 0.2, 2, 24
"""Minutes that ranks wait for each other."""


def launch(folder, *more):
    """Two processes, as a launcher starts them; each with its log."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        variables = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': 2, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
        variables |= {'OMP_NUM_THREADS': 1, 'PYTHONPATH': ROOT}
        command = [sys.executable, '-m', 'finpercep_plugin.train', '-opt', '../opt.yml', '--launcher', 'pytorch', *more]
        environment = {**os.environ, **{key: str(value) for key, value in variables.items()}}
        with open(folder / f'log{rank}', 'w') as log:
            processes.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log))
    return processes


def wait_for(condition, processes, seconds=150):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.02)


@pytest.fixture(scope='module')
def runs():
    """The last state of a run that nothing happened to, by kind; made once."""
    return {}


@pytest.mark.parametrize('sign', [signal.SIGKILL, signal.SIGSTOP], ids=['dies', 'hangs'])
@pytest.mark.parametrize('victim', [0, 1])
def test_a_rank(victim, sign, options, runs, told, seed, tmp_path):
    opt = options('refl')
    opt['train'] |= {'total_iter': TOTAL, 'ccl': {'stages': [8, 8, 8], 'calibration': 6}, 'monitor': {'every': 0}}
    opt['logger']['save_checkpoint_freq'], opt['val'], opt['dist_params'] = EVERY, None, {'timeout': LIMIT}
    opt['datasets']['train']['batch_size_per_gpu'] = 2
    (tmp_path / 'opt.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
    states = Path('experiments/refl/training_states')
    if not runs:
        (tmp_path / 'whole').mkdir()
        for process in launch(tmp_path / 'whole'):
            assert process.wait(200) == 0, (tmp_path / 'whole/log0').read_text()[-3000:]
        runs['whole'] = torch.load(tmp_path / 'whole' / states / f'{TOTAL}.state', weights_only=True)
    broken = tmp_path / 'broken'
    broken.mkdir()
    processes = launch(broken)
    other = 1 - victim
    try:
        wait_for(lambda: (broken / states / f'{EVERY}.state').exists(), processes)
        time.sleep(random.Random(f'{seed} {victim} {sign}').uniform(0, 0.5))
        processes[victim].send_signal(sign)
        begin = time.monotonic()
        assert processes[other].wait(60 * LIMIT + 30) == 1, (broken / f'log{other}').read_text()[-3000:]
        assert time.monotonic() - begin < 60 * LIMIT + 15
    finally:
        for process in processes:
            process.kill()
            process.wait(30)
    log = (broken / f'log{other}').read_text()
    said = [line for line in log.splitlines() if line.startswith('error: ')]
    assert len(said) == 1 and f'rank {other}: another process of the run is gone, or has not answered for' in said[0]
    assert 'Traceback' not in log and '--auto_resume' in log
    for process in launch(broken, '--auto_resume'):
        assert process.wait(200) == 0, (broken / 'log0').read_text()[-3000:]
    assert 'Resuming training from iter' in (broken / 'log0').read_text()
    last = torch.load(broken / states / f'{TOTAL}.state', weights_only=True)
    assert same(last, runs['whole'])
    what = f'rank {victim} {"dies" if sign == signal.SIGKILL else "hangs"}'
    told.add('ranks', what, said[0].split('(dist_params')[0] + '(dist_params.timeout): ...', 'to the bit')
