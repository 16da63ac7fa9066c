"""Bad YAML files: each mistake is reported with its path, what was expected and the nearest valid name, before
anything is loaded.
"""

import copy
from pathlib import Path

import pytest

from finpercep_plugin.checks import _check_weights, check_options, check_yaml, uses_plugin
from finpercep_plugin.config import ConfigError
from finpercep_plugin.integrations import basicsr

try:
    basicsr.require()
except ImportError:
    pytest.skip('BasicSR is not installed', allow_module_level=True)


@pytest.fixture
def opt(tmp_path) -> dict:
    """Options as parse_options returns them: an EDSR with a loss of the plugin, and nothing wrong."""
    (tmp_path / 'gt').mkdir()
    data = {
        'name': 'd',
        'type': 'PairedImageDataset',
        'dataroot_gt': str(tmp_path / 'gt'),
        'io_backend': {'type': 'disk'},
    }
    data['dataroot_lq'] = data['dataroot_gt']
    return {
        'name': 'x',
        'model_type': 'SRModel',
        'scale': 2,
        'num_gpu': 0,
        'manual_seed': 0,
        'is_train': True,
        'auto_resume': False,
        'datasets': {
            'train': {**data, 'phase': 'train', 'gt_size': 32, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0},
            'val_1': {**data, 'phase': 'val'},
        },
        'network_g': {'type': 'EDSR', 'num_in_ch': 3},
        'path': {'pretrain_network_g': None, 'param_key_g': 'params', 'strict_load_g': True, 'experiments_root': 'x'},
        'train': {
            'total_iter': 5.0,
            'optim_g': {'type': 'Adam', 'lr': 1e-4},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [3]},
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0},
            'perceptual_opt': {'type': 'FinPercepMapLoss', 'loss_weight': 1.0},
        },
        'val': {'val_freq': 5, 'save_img': False, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 5, 'use_tb_logger': False, 'wandb': {'project': None}},
    }


def put(options: dict, path: str, value) -> dict:
    """A copy with `value` at a dotted path; a value of ... takes the key away."""
    options = copy.deepcopy(options)
    *outer, key = path.split('.')
    section = options
    for part in outer:
        section = section[part]
    if value is ...:
        del section[key]
    else:
        section[key] = value
    return options


def problems(options: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_options(options)
    return caught.value.problems


def test_good_options_pass(opt):
    before = copy.deepcopy(opt)
    check_options(opt)
    assert opt == before


@pytest.mark.parametrize(
    ('path', 'value', 'line'),
    [
        ('manual_sed', 1, "$.manual_sed: unknown key; did you mean 'manual_seed'?"),
        ('num_gpu', 'all', "$.num_gpu: expected int or 'auto', got str 'all'"),
        ('path', None, '$.path: expected dict[str, Any], got null'),
        ('model_type', 'SRModle', "$.model_type: no model named 'SRModle'; did you mean 'SRModel'?"),
        ('network_g.type', 'EDSRR', "$.network_g.type: no arch named 'EDSRR'; did you mean 'EDSR'?"),
        ('train.total_iter', 'many', "$.train.total_iter: expected int, got str 'many'"),
        ('train.total_iter', ..., '$.train.total_iter: missing; expected int'),
        ('train.perceptual_op', {}, "$.train.perceptual_op: unknown key; did you mean 'perceptual_opt'?"),
        ('train.pixel_opt.type', 'L1Los', "$.train.pixel_opt.type: no loss named 'L1Los'; did you mean 'L1Loss'?"),
        (
            'train.perceptual_opt.los_weight',
            1,
            "$.train.perceptual_opt.los_weight: unknown key; did you mean 'loss_weight'?",
        ),
        (
            'train.perceptual_opt.loss_weight',
            'big',
            "$.train.perceptual_opt.loss_weight: expected float, got str 'big'",
        ),
        ('val.save_img', 'no', "$.val.save_img: expected bool, got str 'no'"),
        ('val.val_frq', 5, "$.val.val_frq: unknown key; did you mean 'val_freq'?"),
        (
            'val.metrics.psnr.type',
            'calculate_psnrr',
            "$.val.metrics.psnr.type: no metric named 'calculate_psnrr'; did you mean 'calculate_psnr'?",
        ),
        ('logger.print_freq', 'often', "$.logger.print_freq: expected int, got str 'often'"),
        ('logger.use_tb_loger', True, "$.logger.use_tb_loger: unknown key; did you mean 'use_tb_logger'?"),
        (
            'path.pretrained_network',
            'x',
            "$.path.pretrained_network: unknown key, of which BasicSR would make a folder; did you mean 'pretrain_network_g'?",
        ),
        ('dist_params', {'prot': 1}, "$.dist_params.prot: unknown key; did you mean 'port'?"),
        ('datasets.train', ..., '$.datasets.train: missing; expected a section'),
        ('datasets.vall', {}, '$.datasets.vall: unknown key; expected train, val or val_*'),
        (
            'datasets.train.batch_size_per_gpu',
            ...,
            '$.datasets.train.batch_size_per_gpu: missing; expected int',
        ),
        ('datasets.train.batch_size_per_gpu', 0, '$.datasets.train.batch_size_per_gpu: expected at least 1, got 0'),
        (
            'datasets.train.type',
            'PairedImageDatset',
            "$.datasets.train.type: no dataset named 'PairedImageDatset'; did you mean 'PairedImageDataset'?",
        ),
        ('datasets.train.gt_sise', 32, '$.datasets.train.gt_sise: unknown key'),
    ],
)
def test_mistakes(opt, path, value, line):
    found = problems(put(opt, path, value))
    assert any(p.startswith(line) for p in found), found


@pytest.mark.parametrize('path', ['path.pretrain_network_g', 'path.resume_state', 'datasets.val_1.dataroot_gt'])
def test_missing_files(opt, path, tmp_path):
    found = problems(put(opt, path, str(tmp_path / 'nothing.pth')))
    assert len(found) == 1
    assert found[0].startswith(f'$.{path}: ') and f'not found at {tmp_path / "nothing.pth"}' in found[0]


def test_missing_weights_below_a_loss_are_found_before_it_is_built(opt, tmp_path):
    opt['train']['perceptual_opt'] = {'type': 'FinPercepRewardLoss', 'rm': str(tmp_path / 'rm.pth'), 'stage': 2}
    assert problems(opt) == [f'$.train.perceptual_opt.rm: FinPercep-RM weights not found at {tmp_path / "rm.pth"}']


def test_on_a_resume_the_starting_weights_may_be_gone(opt, tmp_path):
    check_options({**put(opt, 'path.pretrain_network_g', str(tmp_path / 'nothing.pth')), 'auto_resume': True})


def test_all_mistakes_come_at_once(opt):
    bad = put(put(put(opt, 'train.ema_decay', 'x'), 'logger.prnt_freq', 1), 'val.val_freq', None)
    assert len(problems(bad)) == 3


def test_a_misspelt_name_of_the_plugin_is_recognised(opt):
    opt['train']['perceptual_opt'] = {'type': 'FinPercepMapLos'}
    assert "did you mean 'FinPercepMapLoss'?" in problems(opt)[0]


def test_keys_that_a_model_reads_itself_are_known(opt, monkeypatch, tmp_path):
    (tmp_path / 'fork_model.py').write_text(
        "class ForkModel:\n    def __init__(self, opt): self.x = opt['train']['perceptual_opts']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import fork_model
    from basicsr.utils.registry import MODEL_REGISTRY

    monkeypatch.setitem(MODEL_REGISTRY._obj_map, 'ForkModel', fork_model.ForkModel)
    opt['model_type'] = 'ForkModel'
    check_options(put(opt, 'train.perceptual_opts', 1))
    assert "did you mean 'warmup_iter'" in problems(put(opt, 'train.warmup_iters', 1))[0]


def test_plain_basicsr_options_pass_untouched(opt):
    del opt['train']['perceptual_opt']
    opt.update(my_own_key=1, path=None, train={'anything': 'goes'})
    assert not uses_plugin(opt)
    check_options(opt)


def test_test_options_need_no_train(opt):
    opt.update(is_train=False, network_g={'type': 'FinPercepTinyDiffusion'}, val={'save_img': True, 'suffix': None})
    opt['datasets'] = {'test_1': opt['datasets']['val_1']}
    del opt['train'], opt['logger']
    check_options(opt)


@pytest.mark.parametrize('name', ['FinPercepRMModel', 'FinPercepDiffusionModel', 'FinPercepReFLModel'])
def test_own_models_report_their_own_sections(opt, name):
    opt['model_type'] = name
    opt['reword'] = {}
    found = problems(opt)
    assert any(p.startswith("$.reword: unknown key; did you mean 'reward'") for p in found)
    assert any(p.startswith('$.train.pixel_opt: unknown key') for p in found)


def test_reward_files_are_checked_where_they_stand(opt, tiny_rms, tmp_path):
    files = list(tiny_rms.values())
    opt['train']['perceptual_opt'] = {'type': 'FinPercepRewardLoss', 'rm': files}
    check_options(opt)
    opt['train']['perceptual_opt']['rm'] = [files[0], str(tmp_path / 'no.pth'), files[1]]
    lines = problems(opt)
    assert len(lines) == 2
    assert lines[0].startswith('$.train.perceptual_opt.rm[1]: FinPercep-RM weights not found at')
    assert lines[1].startswith('$.train.perceptual_opt.rm[2]: ') and lines[1].endswith(
        'holds an RM_1; expected an RM_2'
    )


def test_fgr_sections_are_checked_by_the_data_sets_own_schema(opt):
    opt['datasets']['val_1'] = {
        'name': 'v',
        'type': 'FinPercepFGRDataset',
        'dataroot': 'nowhere',
        'alfa': 1,
        'phase': 'val',
    }
    found = '\n'.join(problems(opt))
    assert "$.datasets.val_1.alfa: unknown key; did you mean 'alpha'?" in found
    assert '$.datasets.val_1.dataroot: data not found at' in found


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a: [1', 'is not YAML'),
        ('- 1', 'holds no options: expected a mapping, got list'),
        (
            'model_type: FinPercepRMModel',
            '(?s)4 problems.*name: missing.*datasets: missing.*path: missing.*num_gpu: missing',
        ),
    ],
)
def test_yaml_files_that_are_none(tmp_path, text, message):
    (tmp_path / 'x.yml').write_text(text)
    with pytest.raises(ConfigError, match=message):
        check_yaml(str(tmp_path / 'x.yml'))


def test_yaml_of_basicsr_is_only_read(tmp_path):
    (tmp_path / 'x.yml').write_text('model_type: SRModel\ntotal: !!float 5e3\n')
    assert check_yaml(str(tmp_path / 'x.yml')) == {'model_type': 'SRModel', 'total': 5000.0}


def test_a_file_on_the_hub_is_not_looked_for_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = {'type': 'OSEDiff', 'base': 'org/sd2', 'weights': 'org/name/osediff.pkl'}
    opt = {'generator': {**section, 'cfw': 'org/name/x.ckpt'}, 'reward': {'rm': 'org/name/x.pth'}}
    assert [p for p in _check_weights(opt) if 'generator' in p] == []
    assert [p for p in _check_weights(opt) if 'not found at' in p and '$.reward.rm' in p]


SHIPPED = [
    f
    for f in sorted((Path(__file__).parents[1] / 'finpercep_plugin/options').glob('*.yml'))
    if 'model_type:' in f.read_text()
]


@pytest.mark.parametrize('file', SHIPPED, ids=lambda f: f.stem)
def test_shipped_files_lack_nothing_but_data_and_weights(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = check_yaml(str(file))
    options = {'is_train': 'train' in raw['datasets'], 'auto_resume': False, **raw}
    for phase, section in options['datasets'].items():
        section['phase'] = phase.split('_')[0]
    try:
        check_options(options)
    except ConfigError as error:
        assert [p for p in error.problems if 'not found at' not in p] == []
