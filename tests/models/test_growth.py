"""Reward models that grow at the switches: on samples of the generator as it is then, once, and the same after a kill."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip('basicsr')
from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM  # noqa: E402
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset, to_tensor  # noqa: E402
from finpercep_plugin.data.fgr_format import read_meta  # noqa: E402
from finpercep_plugin.data.fgr_verify import verify  # noqa: E402
from finpercep_plugin.dry_run import dry_run  # noqa: E402
from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion  # noqa: E402
from finpercep_plugin.models.growth import digest  # noqa: E402
from finpercep_plugin.models.growth_options import GrowthOptions, rm_options  # noqa: E402
from finpercep_plugin.models.rm_model import FinPercepRMModel  # noqa: E402
from finpercep_plugin.rollout import sample_images  # noqa: E402
from finpercep_plugin.train import train_pipeline  # noqa: E402

GROWTH = Path('experiments/refl/growth')


def state(name: str, iteration: int) -> dict:
    return torch.load(f'experiments/{name}/training_states/{iteration}.state', weights_only=True)


def rm(stage: int) -> dict:
    return torch.load(GROWTH / f'stage_{stage}/rm.pth', weights_only=True)['params']


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def at_switch(growing):
    """growing(kind), without validation and monitor."""

    def make(kind: str = 'refl') -> dict:
        opt = growing(kind)
        opt['val'], opt['logger']['save_checkpoint_freq'] = None, 1
        opt['train']['monitor'] = {'every': 0}
        return opt

    return make


@pytest.fixture(scope='module')
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('finished')


@pytest.fixture
def finished(at_switch, store, tmp_path) -> dict:
    """Options of a run that has come to its end in the current folder; made once, and copied."""
    opt = at_switch()
    if not (store / 'experiments').exists():
        train_pipeline(str(tmp_path), opt)
        shutil.copytree('experiments', store / 'experiments')
    elif not Path('experiments').exists():
        shutil.copytree(store / 'experiments', 'experiments')
    return opt


def test_a_run_is_the_offline_one_with_the_reward_models_that_it_grew(finished, tmp_path, tiny_rms):
    opt = finished
    opt['reward']['rms'] = [tiny_rms[0], *(str(GROWTH / f'stage_{k}/rm.pth') for k in (1, 2))]
    opt['train']['ccl'] = {'stages': [1, 1, 2], 'calibration': 6}
    train_pipeline(str(tmp_path), {**opt, 'name': 'offline'})
    grown, given = state('refl', 4), state('offline', 4)
    assert equal(grown['trained'], given['trained']) and grown['ccl'] == given['ccl']
    assert torch.equal(grown['rng'], given['rng'])
    assert grown['grown'] == {k: digest(rm(k)) for k in (1, 2)} and given['grown'] is None
    assert not list(GROWTH.rglob('*.state')) and not list(GROWTH.rglob('net_g_*.pth'))


def test_with_lora_too(at_switch, tmp_path, tiny_rms):
    """The starting policy is then the generator without its adapters."""
    opt = at_switch()
    opt['generator'] |= {'train': 'lora', 'lora_rank': 2, 'lora_alpha': 4}
    opt['train']['total_iter'] = 2
    train_pipeline(str(tmp_path), opt)
    opt['reward']['rms'] = [tiny_rms[0], str(GROWTH / 'stage_1/rm.pth'), tiny_rms[2]]
    opt['train']['ccl'] = {'stages': [1, 1, 2], 'calibration': 6}
    train_pipeline(str(tmp_path), {**opt, 'name': 'offline'})
    grown, given = (state(name, 2)['ccl']['statistics'] for name in ('refl', 'offline'))
    assert all(grown[moment][k] == given[moment][k] for moment in ('mu', 'sd') for k in (0, 1))


def test_the_fresh_samples_are_the_current_generators(finished, generator_file):
    assert verify(GROWTH / 'stage_1/fgr') == [] == verify(GROWTH / 'stage_2/fgr')
    source = read_meta(Path(yaml.safe_load(Path('rm.yml').read_text())['datasets']['train']['dataroot']))
    pictures = {}
    for stage in (1, 2):
        stored = FinPercepFGRDataset({'dataroot': str(GROWTH / f'stage_{stage}/fgr')})
        assert stored.meta['p99'] == source['p99'] and len(stored) == 5
        generator = TinyDiffusion.from_file(generator_file)
        trained = state('refl', stage)['trained']  # after the last step of the stage before
        assert not generator.load_state_dict(trained, strict=False).unexpected_keys
        items = [stored.read(key) for key in stored.keys[:4]]
        lq = torch.stack([to_tensor(item['lq']) for item in items])
        sr = sample_images(generator, lq, range(4), 5, f'growth {stage}', guidance=1.0).clamp(0, 1)
        pictures[stage] = np.stack([item['sr'] for item in items])
        made = (sr * 255).round().byte().permute(0, 2, 3, 1).numpy()
        assert np.array_equal(made, pictures[stage])
    assert not np.array_equal(pictures[1], pictures[2])


def test_the_reward_models_grow_from_each_other_and_train_on_the_mixture(at_switch, tmp_path, tiny_rms, monkeypatch):
    seen, steps = [], FinPercepRMModel.optimize_parameters

    def optimize_parameters(model, iteration):
        if iteration == 1:
            born = {n: v.clone() for n, v in model.net_g.state_dict().items()}
            seen.append((model.net_g.stage, born, [str(p) for p in model.opt['datasets']['train'].values()]))
        steps(model, iteration)

    monkeypatch.setattr(FinPercepRMModel, 'optimize_parameters', optimize_parameters)
    train_pipeline(str(tmp_path), at_switch())
    earlier = torch.load(tiny_rms[0], weights_only=True)['params']
    assert [stage for stage, *_ in seen] == [1, 2]
    for stage, born, options in seen:
        assert equal(earlier, {name: born[name] for name in earlier}), 'starts as the model of the stage before'
        assert str(tmp_path / GROWTH / f'stage_{stage}/fgr') in options and '0.4' in options
        earlier = rm(stage)
        assert not equal(earlier, {name: born[name] for name in earlier}), 'and is trained'


def test_without_fresh_samples_it_is_plain_training(at_switch, tmp_path, tiny_rms):
    opt = at_switch()
    opt['train']['total_iter'] = 2
    opt['train']['ccl']['growth']['fresh'] = 0
    train_pipeline(str(tmp_path), opt)
    plain = yaml.safe_load(Path('rm.yml').read_text())
    plain['network_g']['stage'], plain['path']['pretrain_network_g'] = 1, tiny_rms[0]
    train_pipeline(str(tmp_path), plain)
    alone = torch.load('experiments/rm/models/net_g_latest.pth', weights_only=True)['params']
    assert equal(rm(1), alone) and not (GROWTH / 'stage_1/fgr').exists()


@pytest.mark.parametrize('kept', ['all', 'states of RM_2', 'samples', 'nothing'])
def test_resumed_before_or_after_a_switch_it_is_bit_identical(finished, tmp_path, monkeypatch, kept):
    """Before the second switch, with whatever a kill may have left of it; with all, after it."""
    opt = finished
    whole, models = state('refl', 4), {k: rm(k) for k in (1, 2)}
    second = GROWTH / 'stage_2'
    if kept == 'nothing':
        shutil.rmtree(second)
    elif kept != 'all':
        (second / 'rm.pth').unlink()
    if kept == 'samples':
        (second / 'fgr/meta.json').unlink()
    if kept == 'states of RM_2':  # a run that is stopped in the middle of its training

        def stopped(model, iteration, steps=FinPercepRMModel.optimize_parameters):
            if model.net_g.stage == 2 and iteration == 3:
                raise KeyboardInterrupt
            steps(model, iteration)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(FinPercepRMModel, 'optimize_parameters', stopped)
            train_pipeline(str(tmp_path), {**opt, 'path': {'resume_state': 'experiments/refl/training_states/2.state'}})
        assert (second / 'training_states/2.state').is_file()
    torch.manual_seed(99)
    start = 3 if kept == 'all' else 2
    train_pipeline(str(tmp_path), {**opt, 'path': {'resume_state': f'experiments/refl/training_states/{start}.state'}})
    again = state('refl', 4)
    assert equal(whole['trained'], again['trained']) and torch.equal(whole['rng'], again['rng'])
    assert again['ccl'] == whole['ccl'] and again['grown'] == whole['grown']
    assert equal(rm(1), models[1]) and equal(rm(2), models[2])


def test_what_follows_from_something_else_is_made_anew(finished, tmp_path):
    opt, before = finished, rm(1)
    opt['train']['total_iter'] = 2
    opt['path']['resume_state'] = 'experiments/refl/training_states/1.state'
    opt['train']['ccl']['growth']['fresh'] = 3
    train_pipeline(str(tmp_path), opt)
    assert read_meta(GROWTH / 'stage_1/fgr')['count'] == 3 and not equal(rm(1), before)


def test_resuming_needs_the_reward_models_that_the_run_had(finished, at_switch, tmp_path, tiny_rms):
    opt = finished
    opt['path']['resume_state'] = 'experiments/refl/training_states/3.state'
    train_pipeline(str(tmp_path), {**opt, 'name': 'renamed'})
    assert equal(state('refl', 4)['trained'], state('renamed', 4)['trained'])
    offline = at_switch()
    offline['path'], offline['reward']['rms'] = opt['path'], [tiny_rms[k] for k in range(3)]
    offline['train']['ccl'] = {'stages': [1, 1, 2], 'calibration': 6}
    with pytest.raises(ConfigError, match='reward_update: the run to resume has at_switch, the YAML offline'):
        train_pipeline(str(tmp_path), offline)
    shutil.copyfile(tiny_rms[1], GROWTH / 'stage_1/rm.pth')
    with pytest.raises(ConfigError, match='stage_1/rm.pth is another RM_1 than the run had'):
        train_pipeline(str(tmp_path), opt)
    (GROWTH / 'stage_1/rm.pth').unlink()
    with pytest.raises(ConfigError, match='RM_1 of the run to resume is not at .*stage_1/rm.pth'):
        train_pipeline(str(tmp_path), opt)


@pytest.mark.slow
def test_an_adaptive_curriculum_grows_where_it_switches(growing, tmp_path):
    """Its monitor starts without the reward models to come, and validation shows the map of the last that is there."""
    opt = growing('refl')
    opt['train']['total_iter'] = 7
    opt['train']['monitor'] = {'every': 1, 'samples': 8}
    opt['train']['ccl'] |= {'stages': [9, 9, 9], 'adaptive': {'window': 4, 'min_steps': 4, 'patience': 1}}
    opt['val']['val_freq'], opt['logger'] = 6, {'print_freq': 5, 'save_checkpoint_freq': 1}
    train_pipeline(str(tmp_path), opt)
    whole = state('refl', 7)
    switch = whole['ccl']['starts'][1]
    assert switch < 8 and set(whole['grown']) == {1} and set(whole['monitor']['rewards']) == {0}
    assert set(state('refl', switch - 1)['ccl']['statistics']['mu']) == {0}
    shutil.rmtree(GROWTH)
    opt['path']['resume_state'] = f'experiments/refl/training_states/{switch - 1}.state'
    train_pipeline(str(tmp_path), opt)
    again = state('refl', 7)
    assert equal(whole['trained'], again['trained']) and again['monitor'] == whole['monitor']
    assert again['ccl'] == whole['ccl'] and again['grown'] == whole['grown']


def test_the_first_reward_model_may_be_the_only_file(at_switch, tmp_path, tiny_rms):
    opt = at_switch('rfsr')
    opt['reward'] = {'type': 'FinPercep', 'rm': tiny_rms[1]}
    opt['train'] |= {'total_iter': 2, 'ccl': {**opt['train']['ccl'], 'stages': [0, 1, 1]}}
    del opt['train']['ccl']['growth']['rm_1']
    train_pipeline(str(tmp_path), opt)
    assert set(state('rfsr', 2)['grown']) == {2} and state('rfsr', 2)['ccl']['starts'] == {1: 1, 2: 2}


def test_a_dry_run_has_the_memory_of_every_stage(at_switch, tiny_rms):
    lines = dry_run(at_switch()).splitlines()
    rms = [FinPercepRM.from_file(tiny_rms[0]), *(FinPercepRM.from_file(tiny_rms[k]) for k in (1, 2))]
    count = sum(p.numel() for model in rms for p in model.parameters())
    assert next(line.split()[1] for line in lines if line.startswith('reward')) == f'{count:,}'
    assert not Path('experiments').exists()


class TestOptions:
    def message(self, tmp_path, opt) -> str:
        with pytest.raises(ConfigError) as caught:
            train_pipeline(str(tmp_path), opt)
        assert not (tmp_path / 'experiments').exists()
        return str(caught.value)

    def test_sections_of_the_file_are_checked_with_everything_else(self, at_switch, tmp_path):
        opt = at_switch()
        growth = opt['train']['ccl']['growth']
        growth['rm_1'] |= {'train': {'totl_iter': 3}, 'datasets': {'train': {'dataroot': 'nowhere'}}}
        growth['rm_2'] = 'no.yml'
        text = self.message(tmp_path, opt)
        assert "$.train.ccl.growth.rm_1.train.totl_iter: unknown key; did you mean 'total_iter'?" in text
        assert '$.train.ccl.growth.rm_1.datasets.train.dataroot: data not found at' in text
        assert '$.train.ccl.growth.rm_2.opt: the YAML file not found at' in text

    def test_a_file_that_trains_something_else(self, at_switch, tmp_path):
        opt = at_switch()
        growth = opt['train']['ccl']['growth']
        growth['rm_1']['network_g']['stage'] = 2
        del growth['rm_2']
        text = self.message(tmp_path, opt)
        assert '$.train.ccl.growth.rm_1.network_g.stage: expected 1, got 2' in text
        assert '$.train.ccl.growth.rm_2: expected the YAML file that RM_2 is trained by' in text

    def test_an_architecture_that_cannot_grow_from_the_first(self, at_switch, tmp_path):
        opt = at_switch()
        opt['train']['ccl']['growth']['rm_2'] = {'opt': 'rm.yml', 'network_g': {'score_gate': 'paper'}}
        with pytest.raises(ConfigError, match=r'growth.rm_1 does not fit .*score_gate: residual in the file, paper'):
            train_pipeline(str(tmp_path), opt)
        assert not GROWTH.exists(), 'before any training'

    def test_what_does_not_go_together(self, at_switch, tmp_path, tiny_rms):
        opt = at_switch()
        opt['reward']['rms'] = [tiny_rms[k] for k in range(3)]
        text = self.message(tmp_path, opt)
        assert '$.reward.rms: RM_1 is trained at the switch' in text and 'RM_2 is trained at the switch' in text
        opt['train']['ccl']['reward_update'] = 'offline'
        assert '$.train.ccl.growth: is for reward_update: at_switch' in self.message(tmp_path, opt)
        opt = at_switch()
        opt['train']['ccl']['stages'] = [4, 0, 0]
        assert 'at_switch is for stages to switch between; only [0] has steps' in self.message(tmp_path, opt)
        opt['reward'], opt['train']['ccl']['stages'] = {'type': 'Sharpness'}, None
        assert 'at_switch is for FinPercep, not for Sharpness' in self.message(tmp_path, opt)
        opt['train']['ccl']['growth'] = {'share': 1.0}
        assert '$.train.ccl.growth: expected fresh >= 0 and share in (0, 1), got 256 and 1' in self.message(
            tmp_path, opt
        )
        opt['train']['ccl'] = {'calibration': 1}
        assert '$.train.ccl: calibration: expected 2 outputs or more' in self.message(tmp_path, opt)

    def test_seed_processes_and_folders_are_those_of_the_run(self, growing):
        growing('refl')
        run = {'path': {'experiments_root': '/x/run'}, 'dist': True, 'rank': 1, 'world_size': 2, 'num_gpu': 0}
        growth = GrowthOptions(rm_2={'opt': 'rm.yml', 'train': {'total_iter': 9}, 'manual_seed': 3})
        opt = rm_options(growth, 2, {**run, 'manual_seed': 11})
        assert (opt['manual_seed'], opt['rank'], opt['world_size'], opt['dist']) == (11, 1, 2, True)
        assert opt['path']['models'] == '/x/run/growth/stage_2/models' and opt['path'].get('pretrain_network_g') is None
        assert opt['train']['total_iter'] == 9 and opt['train']['ema_decay'] == 0.9, 'the rest is as in the file'
        assert opt['datasets']['val']['phase'] == 'val' and opt['datasets']['val']['scale'] == 4
