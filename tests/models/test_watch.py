"""The hacking monitor and the adaptive curriculum on a model: what they log, keep, stop, and that they resume exactly."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('basicsr')
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.curriculum.adaptive import AdaptiveOptions  # noqa: E402
from finpercep_plugin.curriculum.monitor import MonitorOptions, RewardHacked  # noqa: E402
from finpercep_plugin.models.watch import check_watch  # noqa: E402
from finpercep_plugin.train import main, train_pipeline  # noqa: E402


def state(name: str, iteration: int) -> dict:
    return torch.load(f'experiments/{name}/training_states/{iteration}.state', weights_only=True)


def watched(options, kind='refl', **monitor):
    opt = options(kind)
    opt['train']['monitor'] = {'every': 1, 'samples': 8, **monitor}
    opt['val']['val_freq'] = 1000
    return opt


def test_a_reward_that_is_hacked_stops_the_run_and_the_safe_weights_are_kept(options, tmp_path):
    opt = watched(options, every=2, stop=True)
    opt['reward'], opt['train']['ccl'] = {'type': 'Sharpness'}, {'calibration': 6}
    opt['val']['rewards'].pop('sharpness')
    opt['train'] |= {'total_iter': 60, 'ema_decay': 0.0}
    opt['train']['algorithm'] = {'type': 'ReFL', 'weight': 1.0, 'pretrain_weight': 0.0, 'margin': 50.0}
    opt['train']['optim_g']['lr'] = 1e-2
    opt['logger']['save_checkpoint_freq'] = 1000
    with pytest.raises(RewardHacked, match=r'the state of iter \d+ is saved, and net_g_safe.pth'):
        train_pipeline(str(tmp_path), opt)
    folder = Path('experiments/refl')
    assert (folder / 'models/net_g_safe.pth').exists() and len([*folder.glob('training_states/*.state')]) == 1
    log = next(folder.glob('*.log')).read_text()
    assert 'hacked' in log and 'WARNING' in log


def test_an_adaptive_curriculum_leaves_stages_early_and_resumes_bit_identically(options, tmp_path):
    opt = watched(options)
    opt['train'] |= {'total_iter': 16}
    adaptive = {'window': 4, 'min_steps': 4, 'patience': 1}
    opt['train']['ccl'] = {'stages': [20, 20, 20], 'calibration': 6, 'adaptive': adaptive}
    opt['logger'] |= {'print_freq': 5, 'save_checkpoint_freq': 8}
    train_pipeline(str(tmp_path), opt)
    whole = state('refl', 16)
    assert whole['ccl']['starts'][1] < 21, 'stage 0 was left before its 20 steps were over'
    assert 'stage 0 is left after step' in next(Path('experiments/refl').glob('*.log')).read_text()
    opt['path']['resume_state'] = 'experiments/refl/training_states/8.state'
    train_pipeline(str(tmp_path), opt)
    again = state('refl', 16)
    assert again['ccl'] == whole['ccl'] and again['monitor'] == whole['monitor']
    assert all(torch.equal(value, again['trained'][name]) for name, value in whole['trained'].items())


def test_it_can_be_switched_off(options, tmp_path):
    opt = watched(options, every=0)
    train_pipeline(str(tmp_path), opt)
    assert state('refl', 4)['monitor'] is None
    assert not Path('experiments/refl/models/net_g_safe.pth').exists()


def test_names_and_lengths_are_checked_with_everything_else():
    monitor = MonitorOptions(units={'nothing': 1.0})
    lines = check_watch(monitor, AdaptiveOptions(metrics=('nowhere',)), [500, 500, 500], ['lq_psnr', 'musiq'])
    assert [line.split(':')[0] for line in lines] == [
        '$.val.rewards.lq_psnr',
        '$.train.monitor.units',
        '$.train.ccl.adaptive.metrics',
        '$.train.ccl.adaptive',
        '$.train.ccl.adaptive',
    ]
    assert check_watch(MonitorOptions(), AdaptiveOptions(), None, []) == [
        '$.train.ccl.adaptive: this reward has no stages to leave'
    ]
    assert check_watch(MonitorOptions(), None, None, ['musiq']) == []


def test_a_yaml_with_a_wrong_name_ends_with_one_line(options, tmp_path, capsys):
    import yaml

    opt = watched(options)
    opt['val']['rewards']['reward'] = {'type': 'Sharpness'}
    Path('x.yml').write_text(yaml.safe_dump(opt))
    assert main(['-opt', 'x.yml']) == 2
    assert '$.val.rewards.reward: the hacking monitor uses this name' in capsys.readouterr().err
    with pytest.raises(ConfigError, match='samples >= 4'):
        train_pipeline(str(tmp_path), watched(options, samples=2))
