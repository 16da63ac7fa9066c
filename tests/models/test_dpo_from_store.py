"""FinPercepDPOModel on a preference set: it trains without a reward, resumes, and refuses what does not fit."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from finpercep_plugin.algorithms.dpo import DPO
from finpercep_plugin.algorithms.preferences import Pair
from finpercep_plugin.config import ConfigError
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
from finpercep_plugin.data.fgr_format import FGRError, encode_png
from finpercep_plugin.data.lmdb_io import Writer
from finpercep_plugin.data.preference_builder import PreferenceBuild, PreferenceBuilder
from finpercep_plugin.data.preference_format import PreferenceRecord, read_meta
from finpercep_plugin.data.preference_writer import make_record, open_set
from finpercep_plugin.data.producers.torch_tools import to_uint8
from finpercep_plugin.dry_run import dry_run
from finpercep_plugin.generator_section import load
from finpercep_plugin.images import write_png
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.train import train_pipeline

from .conftest import GENERATOR
from .test_models import differences, state

STORE = 'FinPercepPreferenceDataset'
SHIPPED = Path(__file__).parents[2] / 'finpercep_plugin/options/dpo_from_store_small.yml'


@pytest.fixture(scope='module')
def preference_set(fgr_set, generator_file, tmp_path_factory) -> Path:
    """12 records of a pair each; not to be written to."""
    out = tmp_path_factory.mktemp('preferences') / 'set'
    generator = load({**GENERATOR, 'temperature': 1.0, 'weights': generator_file})
    data = FinPercepFGRDataset({'dataroot': str(fgr_set)})
    settings = PreferenceBuild(members=3, best=1, seed=2)
    report = PreferenceBuilder(generator, REWARDS.get('Sharpness')(), data, settings).build(out)
    assert (report.count, report.pairs) == (12, 12)
    return out


@pytest.fixture
def stored(options, preference_set):
    """stored(root) -> options of a run of 4 iterations on a preference set, without a reward."""

    def make(root: Path = preference_set) -> dict:
        opt = options('dpo')
        del opt['reward'], opt['train']['ccl']
        opt['train']['algorithm'] = {'type': 'DPO', 'micro_batch': 2}
        opt['datasets']['train'] |= {'type': STORE, 'dataroot': str(root)}
        return opt

    return make


@pytest.fixture
def seen(monkeypatch):
    """What is logged, an entry an iteration."""
    import basicsr.utils

    lines = []
    monkeypatch.setattr(basicsr.utils.MessageLogger, '__call__', lambda self, values: lines.append(dict(values)))
    return lines


def _uint8(image: torch.Tensor) -> np.ndarray:
    return to_uint8(image[None])


def problems(tmp_path, opt) -> str:
    with pytest.raises(ConfigError) as caught:
        train_pipeline(str(tmp_path), opt)
    assert not (tmp_path / 'experiments').exists()
    return str(caught.value)


def test_trains_without_a_reward_and_resumes_bit_for_bit(stored, tmp_path, seen):
    model = train_pipeline(str(tmp_path), stored())
    assert len(seen) == 4 and seen[0]['implicit_accuracy'] == 0.5 and seen[0]['margin'] == 0
    assert seen[0]['l_total'] == pytest.approx(np.log(2), rel=1e-5) and seen[1]['margin'] != 0
    assert all(line['gap'] > 0 and line['grad_norm'] > 0 for line in seen) and model.watch is None
    assert {'psnr', 'watched', 'sharpness'} <= set(model.metric_results)  # validation does as ever
    whole = state('dpo', 4)
    assert differences(whole['trained'], state('dpo', 2)['trained'])

    root, opt = tmp_path / 'experiments/dpo/training_states', stored()
    (root / '4.state').unlink()
    torch.manual_seed(123)
    opt['path']['resume_state'] = str(root / '2.state')
    train_pipeline(str(tmp_path), opt)
    assert differences(state('dpo', 4), whole) == []


def test_equals_online_training_on_the_same_pairs(options, stored, tmp_path, seen, monkeypatch):
    """Two iterations of the online model, its pairs written to a set in 8 bits, and the same two from the set."""
    rng, batches, original = np.random.default_rng(0), [], DPO.pair_updates
    for name, side in (('lq', 8), ('gt', 32)):  # grey, so that no sample is clipped
        for i in range(8):
            write_png(tmp_path / name / f'{i}.png', rng.integers(110, 146, (side, side, 3), dtype=np.uint8))

    def record(self, generator, lq, pairs, *rest, **more):
        with torch.no_grad():
            cond = generator.condition(lq[pairs.rows])
            batches.append((lq, pairs, *(generator.decode(latent, cond) for latent in (pairs.winner, pairs.loser))))
        return original(self, generator, lq, pairs, *rest, **more)

    opt, mine = options('dpo'), stored(tmp_path / 'set')
    folders = {f'dataroot_{name}': str(tmp_path / name) for name in ('lq', 'gt')}
    more = {'use_shuffle': False, 'use_hflip': False, 'use_rot': False}
    opt['datasets']['train'] |= {
        'type': 'PairedImageDataset',
        'io_backend': {'type': 'disk'},
        'gt_size': 32,
        **folders,
        **more,
    }
    del opt['datasets']['train']['dataroot']
    opt['train']['monitor'] = {'every': 0}
    mine['datasets']['train'] |= more
    for each in (opt, mine):
        each['train'] |= {'total_iter': 2, 'optim_g': {'lr': 1e-5}}
        each['generator']['temperature'] = 1.0
    with monkeypatch.context() as patch:
        patch.setattr(DPO, 'pair_updates', record)
        train_pipeline(str(tmp_path), opt)
    with open_set(tmp_path / 'set', {}, scale=4) as writer:
        for lq, pairs, winners, losers in batches:
            for row, image in enumerate(pairs.rows):
                pair = Pair(*pairs.keys[row][1:], float(pairs.gap[row]))
                samples = {pair.winner: _uint8(winners[row]), pair.loser: _uint8(losers[row])}
                writer.append(PreferenceRecord(_uint8(lq[image]), samples, [pair]))
    train_pipeline(str(tmp_path), {**mine, 'name': 'again'})
    online, offline = seen[:2], seen[2:]
    for one, other in zip(online, offline):
        print('online, stored:', *((name, one[name], other[name]) for name in ('l_total', 'margin', 'grad_norm')))
        assert other['gap'] == pytest.approx(one['gap'], rel=1e-4)
        assert other['l_total'] == pytest.approx(one['l_total'], rel=1e-3)
        assert other['grad_norm'] == pytest.approx(one['grad_norm'], rel=0.1)
    assert online[0]['margin'] == offline[0]['margin'] == 0
    assert offline[1]['margin'] == pytest.approx(online[1]['margin'], rel=0.2) != 0


def test_a_reward_is_watched_when_it_is_given(stored, options, tmp_path, seen):
    opt = stored()
    opt['reward'] = options('dpo')['reward']
    opt['train'] |= {'ccl': {'stages': [0, 0, 4], 'calibration': 6}, 'monitor': {'every': 2, 'samples': 4}}
    model = train_pipeline(str(tmp_path), opt)
    assert 'monitor_reward' in seen[1] or any(name.startswith('monitor_') for name in seen[1])
    assert state('dpo', 4)['ccl']['statistics']['mu'].keys() == {2} and state('dpo', 4)['monitor']
    assert (tmp_path / 'experiments/dpo/models/net_g_safe.pth').is_file()
    assert model.panel_map(*(torch.rand(1, 3, s, s) for s in (32, 8)), torch.rand(3, 32, 32)) is not None


def test_a_set_without_gt_trains_and_cannot_be_watched(stored, options, tmp_path):
    with open_set(tmp_path / 'set', {}, scale=4) as writer:
        for index in range(4):
            rng = torch.Generator().manual_seed(index)
            writer.append(
                make_record(torch.rand(3, 8, 8, generator=rng), torch.rand(2, 3, 32, 32, generator=rng), [1, 2], 1)
            )
    opt = stored(tmp_path / 'set')
    opt['reward'], opt['train']['ccl'] = {'type': 'Sharpness'}, {'calibration': 6}
    assert '$.reward: is watched on gt too, and ' in problems(tmp_path, opt)
    train_pipeline(str(tmp_path), stored(tmp_path / 'set'))


def test_sections_about_samples_and_rewards_are_refused_where_there_are_none(stored, tmp_path):
    opt = stored()
    opt['train'] |= {'ccl': {'calibration': 6}, 'monitor': {'every': 100}}
    opt['train']['algorithm'] |= {'members': 8, 'min_gap': 0.1}
    text = problems(tmp_path, opt)
    assert '$.train.algorithm.members: FinPercepPreferenceDataset has pairs already; leave it out' in text
    assert '$.train.algorithm.min_gap' in text
    del opt['train']['algorithm']['members'], opt['train']['algorithm']['min_gap']
    text = problems(tmp_path, opt)
    assert '$.train.monitor.every: the monitor compares with a reward; set 0, or give $.reward' in text
    assert '$.train.ccl: stored pairs have no stages' in text


@pytest.mark.parametrize('kind', ['refl', 'grpo', 'rfsr', 'diffusion', 'rm'])
def test_other_models_do_not_train_on_pairs(options, preference_set, tmp_path, kind):
    opt = options(kind)
    opt['datasets']['train'] |= {'type': STORE, 'dataroot': str(preference_set)}
    assert f'$.datasets.train.type: {STORE} is for datasets.train of FinPercepDPOModel' in problems(tmp_path, opt)


def test_pairs_are_not_for_validation_and_online_training_needs_a_reward(stored, options, preference_set, tmp_path):
    opt = stored()
    opt['datasets']['val'] = {'name': 'val', 'type': STORE, 'dataroot': str(preference_set)}
    assert f'$.datasets.val.type: {STORE} is for datasets.train of' in problems(tmp_path, opt)
    opt = options('dpo')
    del opt['reward']
    assert '$.reward: expected a section' in problems(tmp_path, opt)
    opt = stored()
    opt['datasets']['train']['dataroot'] = 'nowhere'
    assert '$.datasets.train.dataroot: data not found at' in problems(tmp_path, opt)


def test_a_bad_record_is_named_or_skipped(stored, preference_set, tmp_path):
    shutil.copytree(preference_set, tmp_path / 'set')
    with Writer(tmp_path / 'set') as writer:
        writer.put({'00000003/lq': encode_png(np.zeros((9, 8, 3), np.uint8))})
    opt = stored(tmp_path / 'set')
    with pytest.raises(FGRError, match=r'sample 00000003/0: winner is \(32, 32, 3\) uint8, expected \(36, 32, 3\)'):
        train_pipeline(str(tmp_path), opt)
    opt['datasets']['train']['on_error'] = 'skip'
    train_pipeline(str(tmp_path), opt)
    meta = read_meta(tmp_path / 'set')
    (tmp_path / 'set/meta.json').write_text(json.dumps({**meta, 'complete': False}))
    with pytest.raises(ConfigError, match=r'\$.datasets.train: .*has not finished; run finpercep-build-preferences'):
        train_pipeline(str(tmp_path), opt)


def test_a_set_of_another_scale_is_refused(stored, tmp_path):
    with open_set(tmp_path / 'set', {}, scale=2) as writer:
        writer.append(make_record(torch.rand(3, 8, 8), torch.rand(2, 3, 16, 16), [1, 2], 1))
    with pytest.raises(ConfigError, match=r'\$.datasets.train: .*built at scale 2, the options say 4'):
        train_pipeline(str(tmp_path), stored(tmp_path / 'set'))


def test_a_dry_run(stored):
    assert 'total' in dry_run(stored())


def test_the_shipped_file_trains(stored, tmp_path):
    opt, mine = yaml.safe_load(SHIPPED.read_text()), stored()
    for phase in ('train', 'val'):
        opt['datasets'][phase] |= {'dataroot': mine['datasets'][phase]['dataroot'], 'num_worker_per_gpu': 0}
    opt['datasets']['train']['batch_size_per_gpu'] = 6
    opt['generator'] = copy.deepcopy(mine['generator'])
    opt['val']['rewards']['finpercep']['rm'] = mine['val']['rewards']['watched']['rm']
    opt['train']['total_iter'], opt['num_gpu'], opt['logger']['use_tb_logger'] = 2, 0, False
    model = train_pipeline(str(tmp_path), opt)
    assert {'psnr', 'ssim', 'finpercep', 'sharpness'} == set(model.metric_results)


@pytest.mark.slow
def test_two_processes_are_one_with_the_doubled_batch(stored, python):
    opt = stored()
    opt['val'], opt['train']['ema_decay'], opt['train']['algorithm']['gap_power'] = None, 0.0, 1.0
    Path('one.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
    python('-m', 'finpercep_plugin.train', '-opt', 'one.yml', timeout=200)
    opt['name'], opt['datasets']['train']['batch_size_per_gpu'] = 'two', 2
    Path('two.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '-m', 'finpercep_plugin.train']
    python(*launch, '-opt', 'two.yml', '--launcher', 'pytorch', timeout=200)
    one, two = state('dpo', 4)['trained'], state('two', 4)['trained']
    apart = max(float((one[k] - two[k]).abs().max()) for k in one)
    print(f'weights {apart:.1e} apart')
    assert apart < 1e-5 and differences(one, state('dpo', 2)['trained'])
