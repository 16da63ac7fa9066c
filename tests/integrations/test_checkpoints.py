import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from finpercep_plugin.config import ConfigError
from finpercep_plugin.integrations import checkpoints


class Model:
    """What `protect` asks of a BasicSR model."""

    def __init__(self, root: Path, fail: bool = False):
        self.opt = {'is_train': True, 'path': {'models': str(root / 'models'), 'training_states': str(root / 'states')}}
        self.schedulers, self.fail = [], fail
        for folder in self.opt['path'].values():
            Path(folder).mkdir(parents=True)

    def save(self, epoch, current_iter):
        torch.save({'params': {}}, Path(self.opt['path']['models']) / f'net_g_{current_iter}.pth')
        if self.fail:
            raise KeyboardInterrupt
        if current_iter != -1:
            torch.save({'iter': current_iter}, Path(self.opt['path']['training_states']) / f'{current_iter}.state')

    def resume_training(self, state):
        self.resumed = state


def names(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob('*') if f.is_file())


def test_rng_states_load_safely_and_come_back(tmp_path):
    torch.save(checkpoints.get_rng(), tmp_path / 'rng')
    first = random.random(), np.random.randn(), torch.rand(1), random.gauss(0, 1)
    checkpoints.set_rng(torch.load(tmp_path / 'rng', weights_only=True))
    assert first == (random.random(), np.random.randn(), torch.rand(1), random.gauss(0, 1))


def test_saved_files_are_where_basicsr_puts_them(tmp_path):
    model = Model(tmp_path)
    checkpoints.protect(model)
    model.save(0, 5)
    model.save(-1, -1)
    assert names(tmp_path) == ['models/net_g_-1.pth', 'models/net_g_5.pth', 'states/5.rng', 'states/5.state']
    assert model.opt['path']['models'] == str(tmp_path / 'models')


def test_interrupted_save_leaves_nothing_to_pick_up(tmp_path):
    model = Model(tmp_path, fail=True)
    checkpoints.protect(model)
    with pytest.raises(KeyboardInterrupt):
        model.save(0, 5)
    assert not list((tmp_path / 'models').glob('*.pth')) and not list((tmp_path / 'states').glob('*.state'))
    model.fail = False
    model.save(0, 6)
    assert names(tmp_path / 'models') == ['net_g_6.pth']


def test_file_that_was_not_written_to_its_end_is_an_error(tmp_path, monkeypatch):
    model = Model(tmp_path)
    checkpoints.protect(model)

    def save(value, file):
        file.write(b'PK') if hasattr(file, 'write') else Path(file).write_bytes(b'PK\x03\x04 half')

    monkeypatch.setattr(torch, 'save', save)
    with pytest.raises(OSError, match='net_g_5.pth could not be written'):
        model.save(0, 5)
    assert not list((tmp_path / 'models').glob('*.pth'))


def test_leftovers_of_killed_runs_are_removed(tmp_path):
    model = Model(tmp_path)
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    kept = ['net_g_5.pth', f'net_g_6.pth.{os.getppid()}.tmp', 'notes.tmp']
    for name in (*kept, f'net_g_7.pth.{gone.pid}.tmp', f'net_g_8.pth.{os.getpid()}.tmp'):
        (tmp_path / 'models' / name).write_text('x')
    (tmp_path / 'states' / f'7.state.{gone.pid}.tmp').write_text('x')
    checkpoints.remove_leftovers(model.opt)
    assert names(tmp_path) == sorted(f'models/{name}' for name in kept)


def test_generators_go_on_where_they_were(tmp_path):
    model = Model(tmp_path)
    checkpoints.protect(model)
    model.save(0, 5)
    expected = random.random(), torch.rand(1)
    model.resume_training({'iter': 5})
    assert model.resumed == {'iter': 5}
    assert (random.random(), torch.rand(1)) == expected


def test_the_plugins_own_models_are_left_alone(tmp_path):
    own = type('Own', (Model,), {'__module__': 'finpercep_plugin.models.x'})(tmp_path)
    save = own.save
    checkpoints.protect(own)
    assert own.save == save


def options(root: Path, **path) -> dict:
    folders = {'models': str(root / 'models'), 'training_states': str(root / 'states')}
    return {'auto_resume': not path, 'network_g': {}, 'path': {**folders, 'resume_state': None, **path}}


@pytest.fixture
def run(tmp_path) -> Path:
    """An experiment with whole checkpoints of 5 and 10 iterations."""
    pytest.importorskip('basicsr', reason='BasicSR is not installed', exc_type=ImportError)
    model = Model(tmp_path)
    for i in (5, 10):
        model.save(0, i)
    return tmp_path


def test_auto_resume_takes_the_newest(run):
    opt = options(run)
    assert checkpoints.load_resume_state(opt) == {'iter': 10}
    assert opt['path']['pretrain_network_g'] == str(run / 'models/net_g_10.pth')


@pytest.mark.parametrize('broken', ['states/10.state', 'models/net_g_10.pth'])
def test_half_written_checkpoint_is_passed_over(run, broken):
    half = (run / broken).read_bytes()
    (run / broken).write_bytes(half[: len(half) // 2])
    opt = options(run)
    assert checkpoints.load_resume_state(opt) == {'iter': 5}
    assert opt['path']['resume_state'] == str(run / 'states/5.state')
    assert opt['path']['pretrain_network_g'] == str(run / 'models/net_g_5.pth')


def test_state_without_its_network_is_passed_over(run):
    (run / 'models/net_g_10.pth').unlink()
    assert checkpoints.load_resume_state(options(run)) == {'iter': 5}


def test_experiment_with_only_broken_states_is_an_error(run):
    for i in (5, 10):
        (run / f'states/{i}.state').write_bytes(b'')
    with pytest.raises(ConfigError, match='5.state is not a whole, safe training state'):
        checkpoints.load_resume_state(options(run))


def test_auto_resume_of_nothing_is_a_new_run(tmp_path):
    assert checkpoints.load_resume_state(options(tmp_path)) is None


def test_named_state_must_be_there(run):
    with pytest.raises(ConfigError, match=r'\$.path.resume_state: no training state at .*7.state'):
        checkpoints.load_resume_state(options(run, resume_state=str(run / 'states/7.state')))


def test_state_with_code_in_it_is_refused(run):
    torch.save({'iter': 5, 'x': zipfile.ZipFile}, run / 'states/5.state')
    with pytest.raises(ConfigError, match='not a whole, safe training state'):
        checkpoints.load_resume_state(options(run, resume_state=str(run / 'states/5.state')))
