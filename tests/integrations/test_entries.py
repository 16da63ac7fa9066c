"""The ways in, as processes: BasicSR's own train.py (pip's and a repository's), `python -m`, torchrun; kill -9 and
resume.
"""

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

from finpercep_plugin.integrations import basicsr

try:
    PACKAGE = Path(basicsr.require().__file__).parent
except ImportError:
    pytest.skip('BasicSR is not installed', allow_module_level=True)

pytestmark = pytest.mark.slow


def weights(folder: Path, name: str, iteration='latest') -> dict[str, torch.Tensor]:
    return torch.load(folder / f'experiments/{name}/models/net_g_{iteration}.pth', weights_only=True)['params']


@pytest.fixture
def repository(edsr, tmp_path) -> Path:
    """The current folder becomes a repository with its own, freshly cloned basicsr/."""
    shutil.copytree(PACKAGE, tmp_path / 'basicsr', ignore=shutil.ignore_patterns('__pycache__', 'version.py'))
    (tmp_path / 'VERSION').write_text('1.4.2\n')
    return tmp_path


def mark_import(repository: Path) -> Path:
    """A file that appears when the repository's own copy of BasicSR is imported."""
    sign = repository / 'imported'
    with open(repository / 'basicsr/utils/registry.py', 'a') as file:
        file.write(f'\nopen({str(sign)!r}, "a").write(__name__)\n')
    return sign


@pytest.mark.parametrize('own', [False, True])
def test_unmodified_train_py(repository, python, own):
    sign = mark_import(repository)
    python('basicsr/train.py', '-opt', 'edsr.yml', **({'PYTHONPATH': '.'} if own else {}))
    assert weights(repository, 'edsr')
    assert sign.exists() == own
    # and on from the middle, which without a GPU is where BasicSR asks for the current CUDA device
    for file in (repository / 'experiments/edsr').rglob('6.*'):
        file.unlink()
    python('basicsr/train.py', '-opt', 'edsr.yml', '--auto_resume', **({'PYTHONPATH': '.'} if own else {}))
    assert (repository / 'experiments/edsr/training_states/6.state').exists()


def test_basicsr_as_a_module_writes_into_the_current_folder(edsr, tmp_path, python):
    edsr['logger']['use_tb_logger'] = True
    (tmp_path / 'edsr.yml').write_text(yaml.safe_dump(edsr, sort_keys=False))
    python('-m', 'basicsr.train', '-opt', 'edsr.yml')
    assert weights(tmp_path, 'edsr')
    assert list((tmp_path / 'tb_logger/edsr').glob('events*'))


def test_own_entry_prefers_the_repositorys_basicsr(repository, python):
    sign = mark_import(repository)
    python('-m', 'finpercep_plugin.train', '-opt', 'edsr.yml')
    assert sign.exists()
    assert weights(repository, 'edsr')


def test_unmodified_train_py_refuses_a_set_smaller_than_its_batch(repository, edsr, python):
    edsr['datasets']['train']['batch_size_per_gpu'] = 20
    (repository / 'edsr.yml').write_text(yaml.safe_dump(edsr, sort_keys=False))
    result = python('basicsr/train.py', '-opt', 'edsr.yml', check=False)
    assert '8 items do not fill one batch of 20' in result.stderr


def test_spawned_workers_read_the_same(edsr, tmp_path, python):
    python('-m', 'finpercep_plugin.train', '-opt', 'edsr.yml')
    edsr['name'], edsr['datasets']['train']['num_worker_per_gpu'] = 'workers', 1
    (tmp_path / 'workers.yml').write_text(yaml.safe_dump(edsr, sort_keys=False))
    code = (
        "import torch.multiprocessing as mp\nif __name__ == '__main__':\n    mp.set_start_method('spawn')\n"
        '    from finpercep_plugin.train import main\n    raise SystemExit(main())\n'
    )
    (tmp_path / 'spawn.py').write_text(code)
    python('spawn.py', '-opt', 'workers.yml')
    one, other = weights(tmp_path, 'edsr'), weights(tmp_path, 'workers')
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_kill_and_resume_is_bit_identical(edsr, tmp_path, python):
    edsr['train']['total_iter'], edsr['logger']['save_checkpoint_freq'], edsr['val'] = 300, 2, None
    (tmp_path / 'edsr.yml').write_text(yaml.safe_dump(edsr, sort_keys=False))
    (tmp_path / 'whole.yml').write_text(yaml.safe_dump({**edsr, 'name': 'whole'}, sort_keys=False))
    python('-m', 'finpercep_plugin.train', '-opt', 'whole.yml')
    command = [sys.executable, '-m', 'finpercep_plugin.train', '-opt', 'edsr.yml', '--auto_resume']
    states = tmp_path / 'experiments/edsr/training_states'
    for wanted in (20, 60):
        with open(tmp_path / 'log', 'w') as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        deadline = time.time() + 100
        while not list(states.glob(f'{wanted}.state')) and process.poll() is None and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / 'log').read_text()[-2000:]
    resumed = python('-m', 'finpercep_plugin.train', '-opt', 'edsr.yml', '--auto_resume')
    assert 'Resuming training from iter' in resumed.stderr
    one, other = weights(tmp_path, 'whole'), weights(tmp_path, 'edsr')
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize('entry', ['finpercep_plugin.train', 'basicsr.train'])
def test_two_processes_are_one_with_the_doubled_batch(edsr, tmp_path, python, entry):
    python('-m', entry, '-opt', 'edsr.yml')
    edsr['name'], edsr['datasets']['train']['batch_size_per_gpu'] = 'two', 2
    (tmp_path / 'two.yml').write_text(yaml.safe_dump(edsr, sort_keys=False))
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '-m', entry, '-opt', 'two.yml']
    python(*launch, '--launcher', 'pytorch', timeout=200)
    if (
        entry == 'basicsr.train'
    ):  # its sampler gives each process another part of the data; what is asked is that it runs
        assert weights(tmp_path, 'two', 6)
        return
    one, two = weights(tmp_path, 'edsr'), weights(tmp_path, 'two')
    assert all(torch.allclose(one[k], two[k], atol=1e-5, rtol=0) for k in one)
    for file in (tmp_path / 'experiments/two').rglob('*6.*'):
        file.unlink()
    python(*launch, '--launcher', 'pytorch', '--auto_resume', timeout=200)
    again = weights(tmp_path, 'two')
    assert all(torch.allclose(one[k], again[k], atol=1e-5, rtol=0) for k in one)
