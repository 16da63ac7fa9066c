import datetime
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from finpercep_plugin.config import ConfigError
from finpercep_plugin.integrations import wrappers


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """parse_options of BasicSR's shape, wrapped: returns (its result, the root it was given)."""
    monkeypatch.chdir(tmp_path)

    def run(arguments, opt, root='/repo'):
        monkeypatch.setattr(sys, 'argv', ['train.py', *arguments])
        roots = []

        def original(root_path, is_train=True):
            roots.append(root_path)
            return opt, list(sys.argv)

        result = wrappers.parse_options(original)(root)
        return (*result, roots[0])

    return run


def plain(**more) -> dict:
    return {'model_type': 'SRModel', 'num_gpu': 0, 'is_train': True, **more}


def test_numbers_that_yaml_reads_as_strings(parse):
    opt, *_ = parse([], plain(name='1e3', train={'optim_g': {'lr': '1e-4', 'type': 'Adam'}, 'l': [{'w': '2.5E+1'}]}))
    assert opt['train'] == {'optim_g': {'lr': 1e-4, 'type': 'Adam'}, 'l': [{'w': 25.0}]}
    assert opt['name'] == '1e3'


def test_old_spelling_of_the_local_rank(parse):
    _, argv, _ = parse(['--local-rank=1'], plain())
    assert argv == ['train.py', '--local_rank=1']


def test_missing_logger_keys_are_filled_and_given_ones_kept(parse):
    opt, *_ = parse([], plain(logger={'print_freq': 7}))
    assert opt['logger'] == {'print_freq': 7, 'save_checkpoint_freq': 5000, 'use_tb_logger': False}


@pytest.mark.skipif(torch.cuda.is_available(), reason='with a GPU the number stands')
def test_gpus_that_are_not_there(parse, caplog):
    opt, *_ = parse([], plain(num_gpu=2))
    assert opt['num_gpu'] == 0
    assert 'there is no GPU' in caplog.text


def test_nothing_is_written_into_site_packages(parse, tmp_path):
    *_, root = parse([], plain(), root='/venv/lib/python3.11/site-packages')
    assert root == str(tmp_path)
    assert parse([], plain(), root='/repo')[-1] == '/repo'
    moved = wrappers.relocated(lambda log_dir: log_dir)(log_dir='/venv/lib/site-packages/tb_logger/x')
    assert moved == str(tmp_path / 'tb_logger/x')


def test_yaml_that_is_not_there(parse, tmp_path):
    (tmp_path / 'edsr.yml').write_text('a: 1')
    with pytest.raises(ConfigError, match="the YAML file not found at .*edrs.yml; did you mean 'edsr.yml'"):
        parse(['-opt', 'edrs.yml'], plain())


def test_train_py_run_as_a_script_gets_a_resume_that_needs_no_gpu(parse, monkeypatch):
    def load_resume_state(opt):
        return torch.cuda.current_device()

    monkeypatch.setattr(sys.modules['__main__'], 'load_resume_state', load_resume_state, raising=False)
    parse([], plain())
    assert sys.modules['__main__'].load_resume_state is not load_resume_state


def test_empty_training_loader_is_an_error():
    build = wrappers.build_dataloader(lambda dataset, opt: torch.utils.data.DataLoader(dataset, 4, drop_last=True))
    assert len(build(range(4), {'phase': 'train'})) == 1
    with pytest.raises(ConfigError, match=r'\$.datasets.train: 3 items do not fill one batch of 4'):
        build(range(3), {'phase': 'train'})
    assert len(build(range(3), {'phase': 'val'})) == 0


def test_jpeg_quality_is_whole():
    assert wrappers.add_jpg_compression(lambda img, quality: quality)('img', 61.7) == 61


@pytest.mark.skipif(torch.cuda.is_available(), reason='the original is used')
def test_resume_without_a_gpu_takes_the_plugins_loader(tmp_path):
    opt = {'auto_resume': True, 'path': {'training_states': str(tmp_path)}}
    assert wrappers.load_resume_state(lambda opt: 'original')(opt) is None


def test_unknown_launcher():
    with pytest.raises(ValueError, match='Invalid launcher type: mpi'):
        wrappers._init_group('mpi', None, 'gloo')


@pytest.fixture
def group(monkeypatch):
    """init_dist of a machine with 4 GPUs, as process 5 of 8 under Slurm; returns what it asked torch for, or 'original'
    and what that was given.
    """
    calls = []
    for name, value in {'SLURM_PROCID': '5', 'SLURM_NTASKS': '8', 'SLURM_NODELIST': 'n[0-1]'}.items():
        monkeypatch.setenv(name, value)
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: calls.append(device))
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda **given: calls.append(given))
    monkeypatch.setattr(wrappers.subprocess, 'run', lambda *_, **__: SimpleNamespace(stdout='n0\nn1\n'))
    monkeypatch.setattr(wrappers.atexit, 'register', lambda function: function)
    monkeypatch.setattr(torch.multiprocessing, 'get_start_method', lambda allow_none: 'spawn')

    def run(launcher, yaml):
        monkeypatch.setattr(wrappers, '_yaml', yaml)
        start = wrappers.init_dist(lambda *a, **k: calls.append(('original', a, k)))
        start(launcher, **(yaml.get('dist_params', {}) if launcher == 'slurm' else {}))
        return calls

    return run


def test_gpus_are_left_to_basicsr(group):
    assert group('pytorch', {'num_gpu': 'auto'}) == [('original', ('pytorch',), {'backend': 'nccl'})]


@pytest.mark.parametrize('number', [0, '0'])
def test_no_gpu_wanted_is_gloo(group, number):
    assert group('pytorch', {'num_gpu': number, 'dist_params': {'backend': 'nccl'}}) == [{'backend': 'gloo'}]


def test_timeout_counts_under_slurm_too(group):
    calls = group('slurm', {'num_gpu': 'auto', 'dist_params': {'backend': 'nccl', 'port': 12345, 'timeout': 2}})
    assert calls == [1, {'backend': 'nccl', 'timeout': datetime.timedelta(minutes=2)}]
    wanted = {'RANK': '5', 'WORLD_SIZE': '8', 'LOCAL_RANK': '1', 'MASTER_ADDR': 'n0', 'MASTER_PORT': '12345'}
    assert {name: os.environ[name] for name in wanted} == wanted


def test_a_folder_archived_in_the_same_second_is_waited_for(tmp_path, monkeypatch):
    waited, names = [], iter(['_old', '_old', '_new'])

    def rename(path):
        if os.path.exists(path):
            os.rename(path, path + next(names))
        os.makedirs(path)
        (tmp_path / 'run/file').touch()

    monkeypatch.setattr(wrappers.time, 'sleep', waited.append)
    archive = wrappers.mkdir_and_rename(rename)
    for _ in range(3):
        archive(str(tmp_path / 'run'))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['run', 'run_new', 'run_old'] and len(waited) == 1
