"""The models as processes: in another repository, killed and resumed, and as two processes under torchrun."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from finpercep_plugin.report.experiment.events import read_scalars

basicsr = pytest.importorskip('basicsr')
pytestmark = pytest.mark.slow
KINDS = ('rm', 'diffusion', 'refl', 'dpo', 'grpo', 'rfsr')


def write(opt: dict, file: str) -> str:
    Path(file).write_text(yaml.safe_dump(opt, sort_keys=False))
    return file


def trained(name: str, iteration: int) -> dict[str, torch.Tensor]:
    return torch.load(f'experiments/{name}/training_states/{iteration}.state', weights_only=True)['trained']


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('own', [False, True])
def test_another_repository_trains_by_its_unmodified_train_py(options, tmp_path, python, kind, own):
    shutil.copytree(Path(basicsr.__file__).parent, 'basicsr', ignore=shutil.ignore_patterns('__pycache__'))
    sign = tmp_path / 'imported'
    with open('basicsr/utils/registry.py', 'a') as file:
        file.write(f'\nopen({str(sign)!r}, "a").write(__name__)\n')
    write(options(kind), 'opt.yml')
    python('basicsr/train.py', '-opt', 'opt.yml', **({'PYTHONPATH': '.'} if own else {}))
    assert trained(kind, 4) and sign.exists() == own  # pip's copy is found first unless PYTHONPATH says otherwise
    for file in Path(f'experiments/{kind}').rglob('4.state'):
        file.unlink()
    python('basicsr/train.py', '-opt', 'opt.yml', '--auto_resume', **({'PYTHONPATH': '.'} if own else {}))
    assert trained(kind, 4)


@pytest.mark.parametrize('kind', KINDS)
def test_killed_at_any_moment_and_resumed_is_bit_identical(options, tmp_path, python, kind):
    opt = options(kind)
    opt['val'] = None
    opt['train']['total_iter'], opt['logger']['save_checkpoint_freq'] = 40, 3
    if 'ccl' in opt['train']:
        opt['train']['ccl']['stages'] = [10, 10, 20]
    python('-m', 'finpercep_plugin.train', '-opt', write({**opt, 'name': 'whole'}, 'whole.yml'))
    write(opt, 'opt.yml')
    command = [sys.executable, '-m', 'finpercep_plugin.train', '-opt', 'opt.yml', '--auto_resume']
    states, kills = Path(f'experiments/{kind}/training_states'), 0
    for wait in (0.0, 0.13, 0.31):  # seconds after the first new checkpoint
        before = set(states.glob('*.state'))
        with open('log', 'w') as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        deadline = time.time() + 100
        while set(states.glob('*.state')) <= before and process.poll() is None and time.time() < deadline:
            time.sleep(0.005)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills, Path('log').read_text()[-2000:]
    python(*command[1:])
    one, other = trained('whole', 39), trained(kind, 39)
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize('kind', KINDS)
def test_two_processes_are_one_with_the_doubled_batch(options, tmp_path, python, kind):
    """The same losses at every iteration, and the same after resuming, to rounding: 1e-5; DPO multiplies it by beta."""
    loss, weight = 1e-4 if kind == 'dpo' else 1e-5, 1e-5
    opt = options(kind)
    opt['train']['ema_decay'], opt['logger']['use_tb_logger'] = 0.0, True
    opt['train']['optim_g']['eps'] = 1e-3  # of 1e-8, the rounding of gradients near 0 would become whole steps
    python('-m', 'finpercep_plugin.train', '-opt', write(opt, 'one.yml'))
    opt['name'], opt['datasets']['train']['batch_size_per_gpu'] = 'two', 2
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '-m', 'finpercep_plugin.train']
    launch += ['-opt', write(opt, 'two.yml'), '--launcher', 'pytorch']
    python(*launch, timeout=200)
    one, two = (read_scalars(Path('tb_logger') / name)['losses/l_total'][1] for name in (kind, 'two'))
    assert len(one) == 4 and two == pytest.approx(one, rel=loss, abs=loss)
    one, two = trained(kind, 4), trained('two', 4)
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < weight
    Path('experiments/two/training_states/4.state').unlink()
    python(*launch, '--auto_resume', timeout=200)
    again = trained('two', 4)
    assert all(torch.allclose(two[k], again[k], atol=1e-6, rtol=0) for k in two)
