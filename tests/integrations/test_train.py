"""finpercep_plugin.train and .test in this process, on a plain BasicSR model."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml

pytest.importorskip('torchvision')
from finpercep_plugin import test as tester
from finpercep_plugin import train
from finpercep_plugin.config import ConfigError
from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.lmdb_io import StoreError
from finpercep_plugin.integrations import basicsr, entry

try:
    basicsr.require()
except ImportError:
    pytest.skip('BasicSR is not installed', allow_module_level=True)


def weights(name: str, iteration='latest') -> dict[str, torch.Tensor]:
    saved = torch.load(f'experiments/{name}/models/net_g_{iteration}.pth', weights_only=True)
    return {f'{key}.{n}': v for key in saved for n, v in saved[key].items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_runs_in_the_current_folder_and_saves_what_basicsr_saves(edsr, tmp_path):
    steps = []
    train.train_pipeline(str(tmp_path), edsr, on_step=lambda *step: steps.append(step))
    assert steps == [(i, 6) for i in range(1, 7)]
    root = tmp_path / 'experiments/edsr'
    assert sorted(f.name for f in (root / 'models').iterdir()) == ['net_g_3.pth', 'net_g_6.pth', 'net_g_latest.pth']
    assert sorted(f.name for f in (root / 'training_states').glob('*.state')) == ['3.state', '6.state']
    log = next(root.glob('train_edsr_*.log')).read_text()
    assert log.count('l_pix') == 6 and log.count('# psnr') == 2
    assert (root / 'edsr.yml').read_text().startswith('# GENERATE TIME')


def test_resumed_run_is_bit_identical(edsr, tmp_path):
    train.train_pipeline(str(tmp_path), edsr)
    whole = weights('edsr')
    edsr['name'], states = 'again', tmp_path / 'experiments/edsr/training_states'
    shutil.copytree(tmp_path / 'experiments/edsr', tmp_path / 'experiments/again')
    torch.manual_seed(99)
    edsr['path']['resume_state'] = str(states / '3.state')
    train.train_pipeline(str(tmp_path), edsr)
    assert equal(weights('again'), whole)
    assert not equal(weights('again', 3), whole)


def test_set_smaller_than_its_batch_trains(edsr, tmp_path):
    edsr['datasets']['train']['batch_size_per_gpu'] = 20
    edsr['train']['total_iter'] = 1
    train.train_pipeline(str(tmp_path), edsr)
    assert weights('edsr')


def test_run_without_a_seed_can_be_repeated(edsr, tmp_path):
    del edsr['manual_seed']
    edsr['train']['total_iter'] = 1
    train.train_pipeline(str(tmp_path), edsr)
    first = weights('edsr')
    train.train_pipeline(str(tmp_path), edsr)
    assert equal(weights('edsr'), first)


def test_empty_training_set_is_an_error(edsr, tmp_path):
    (tmp_path / 'none').mkdir()
    edsr['datasets']['train'].update(dataroot_gt='none', dataroot_lq='none')
    with pytest.raises(ConfigError, match=r'\$.datasets.train: .*empty'):
        train.train_pipeline(str(tmp_path), edsr)


def test_missing_resume_state_is_an_error(edsr, tmp_path):
    edsr['path']['resume_state'] = 'nowhere/5.state'
    with pytest.raises(ConfigError, match='no training state at'):
        train.train_pipeline(str(tmp_path), edsr)
    assert not (tmp_path / 'experiments').exists()


def test_command_line_errors_are_short(edsr, capsys):
    assert train.main(['-opt', 'nothing.yml']) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: -opt: the YAML file not found') and 'Traceback' not in error


def test_command_line_trains_from_the_current_folder(edsr, tmp_path):
    assert train.main(['-opt', 'edsr.yml', '--force_yml', 'train:total_iter=1']) == 0
    assert (tmp_path / 'experiments/edsr/models/net_g_latest.pth').exists()


def test_a_data_set_that_refuses_its_options_is_a_short_error(edsr, tmp_path, capsys):
    edsr['datasets']['val']['dataroot_lq'] = 'nowhere'
    (tmp_path / 'edsr.yml').write_text(yaml.safe_dump(edsr, sort_keys=False))
    assert train.main(['-opt', 'edsr.yml']) == 2
    error = capsys.readouterr().err
    assert 'error: $.datasets.val: ' in error and 'nowhere' in error and 'Traceback' not in error


def test_a_store_or_sample_that_breaks_later_is_a_short_error(capsys):
    worker = 'Caught FGRError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  x\nm.FGRError: set: sample 3\n'
    for error, text in ((StoreError('s: cut off'), 's: cut off'), (FGRError(worker), 'set: sample 3')):
        assert entry.run(Mock(side_effect=error)) == 2
        assert capsys.readouterr().err == f'error: {text}\n'
    with pytest.raises(ValueError, match='a bug'):
        entry.run(Mock(side_effect=ValueError('a bug')))


def test_null_seed_is_0_and_a_forced_one_is_used(edsr, tmp_path):
    edsr['manual_seed'], edsr['train']['total_iter'] = None, 1
    (tmp_path / 'edsr.yml').write_text(yaml.safe_dump(edsr, sort_keys=False))
    found = []
    for arguments in ([], [], ['manual_seed=7'], ['manual_seed=0']):
        force = ['--force_yml', *arguments] if arguments else []
        assert train.main(['-opt', 'edsr.yml', *force]) == 0
        found.append(weights('edsr'))
    assert equal(found[0], found[1]) and equal(found[0], found[3]) and not equal(found[0], found[2])


def test_test_pipeline_reads_the_weights_and_reports(edsr, tmp_path):
    edsr['train']['total_iter'] = 1
    train.train_pipeline(str(tmp_path), edsr)
    edsr['datasets'] = {'test_1': edsr['datasets']['val']}
    edsr['path'] = {'pretrain_network_g': str(tmp_path / 'experiments/edsr/models/net_g_latest.pth')}
    edsr['val'] = {'save_img': True, 'suffix': None, 'metrics': edsr['val']['metrics']}
    tester.test_pipeline(str(tmp_path), edsr)
    results = tmp_path / 'results/edsr'
    assert len(list((results / 'visualization/tinyval').glob('*.png'))) == 8
    assert '# psnr' in next(Path(results).glob('test_edsr_*.log')).read_text()
