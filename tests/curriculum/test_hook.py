"""The curriculum around a BasicSR model: stages, logs, checkpoints, bad steps."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from finpercep_plugin.curriculum import hook
from finpercep_plugin.curriculum.hook import attach


def options(folder, rms, **reward):
    """What BasicSR's option parser makes of a YAML for a tiny EDSR with an L1 and a reward loss."""
    return {
        'name': 'tiny',
        'model_type': 'SRModel',
        'num_gpu': 0,
        'dist': False,
        'rank': 0,
        'world_size': 1,
        'is_train': True,
        'scale': 2,
        'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2},
        'path': {
            'models': str(folder / 'models'),
            'training_states': str(folder / 'training_states'),
            'pretrain_network_g': None,
            'resume_state': None,
        },
        'train': {
            'optim_g': {'type': 'Adam', 'lr': 1e-3},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [100]},
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0},
            'perceptual_opt': {
                'type': 'FinPercepRewardLoss',
                'rm': list(rms.values()),
                'loss_weight': 0.1,
                'stages': [2, 2, 2],
                'calibration': 8,
                **reward,
            },
        },
    }


@pytest.fixture
def build(tmp_path, tiny_rms):
    """Builds a real SRModel on the CPU with the curriculum attached."""
    from finpercep_plugin.integrations.basicsr import require

    try:
        require()
    except ImportError as error:
        pytest.skip(str(error))
    from basicsr.models import build_model

    def make(resume=None, **reward):
        opt = options(tmp_path, tiny_rms, **reward)
        torch.manual_seed(0)
        if resume:
            opt['path']['resume_state'] = str(tmp_path / 'training_states' / f'{resume}.state')
            opt['path']['pretrain_network_g'] = str(tmp_path / 'models' / f'net_g_{resume}.pth')
        for name in ('models', 'training_states'):
            (tmp_path / name).mkdir(exist_ok=True)
        model = build_model(opt)
        attach(model, opt)
        if resume:
            model.resume_training(torch.load(opt['path']['resume_state'], weights_only=False))
        return model

    return make


def step(model, iteration, **call):
    draw = torch.Generator().manual_seed(iteration)
    lq, gt = torch.rand(4, 3, 12, 12, generator=draw), torch.rand(4, 3, 24, 24, generator=draw)
    model.update_learning_rate(iteration)
    model.feed_data({'lq': lq, 'gt': gt})
    model.optimize_parameters(**call) if call else model.optimize_parameters(iteration)
    return model.get_current_log()


def test_the_stage_follows_the_iteration_and_is_logged(build):
    model = build()
    logs = [step(model, i) for i in range(1, 7)]
    assert [log['stage'] for log in logs] == [0, 0, 1, 1, 2, 2]
    assert {'l_pix', 'l_percep', 'r_reward', 'r_reward_std', 'r_raw', 'r_score', 'bad_steps'} <= set(logs[0])
    assert 'r_map_max' not in logs[1] and {'r_map_max', 'r_map_mean_std'} <= set(logs[2])
    assert all(isinstance(value, float) for log in logs for value in log.values())
    assert logs[5]['l_percep'] > 0 and model.cri_perceptual.schedule.statistics.ready([0, 1, 2])


def test_the_iteration_may_be_a_keyword_and_attaching_twice_is_once(build):
    model = build()
    attach(model, model.opt)
    assert step(model, 5, current_iter=5)['stage'] == 2
    assert model.finpercep_curriculum.optimize.__func__ is type(model).optimize_parameters


@pytest.mark.parametrize('killed', [1, 2, 3])
def test_resume_goes_on_bit_identically(build, killed):
    """Killed inside the calibration, at its end, and in stage 1."""
    whole = build()
    for i in range(1, 7):
        step(whole, i)
        if i == killed:
            whole.save(0, i)
    again = build(resume=killed)
    for i in range(killed + 1, 7):
        step(again, i)
    for a, b in zip(whole.net_g.parameters(), again.net_g.parameters()):
        assert torch.equal(a, b)
    assert again.cri_perceptual.schedule.state_dict() == whole.cri_perceptual.schedule.state_dict()


def test_the_sidecar_is_whole_and_there_before_the_state(build, tmp_path):
    model, order = build(), []
    step(model, 1)
    curriculum = model.finpercep_curriculum
    original = curriculum.save_state

    def save_state(epoch, current_iter):
        order.extend(p.name for p in tmp_path.rglob('*.ccl'))
        original(epoch, current_iter)

    curriculum.save_state = save_state
    model.save(0, 1)
    assert order == ['1.ccl']
    model.save(-1, -1)
    assert sorted(p.name for p in (tmp_path / 'training_states').glob('*.ccl')) == ['1.ccl']
    state = torch.load(tmp_path / 'training_states' / '1.ccl', weights_only=True)
    assert state['losses']['cri_perceptual']['schedule']['step'] == 1


def test_resume_without_the_sidecar_is_an_error(build, tmp_path):
    model = build()
    step(model, 1)
    model.save(0, 1)
    (tmp_path / 'training_states' / '1.ccl').unlink()
    with pytest.raises(
        FileNotFoundError, match='1.ccl is not there; it holds the CCL stage and the reward scales of iteration 1'
    ):
        build(resume=1)


def test_resume_with_other_stages_is_an_error(build):
    model = build()
    step(model, 1)
    model.save(0, 1)
    with pytest.raises(ValueError, match='set the stages as they were'):
        build(resume=1, stages=[3, 3, 3])


def test_a_step_that_is_not_finite_changes_nothing_and_too_many_stop(build, tmp_path):
    model = build(max_bad_steps=2)
    step(model, 1)
    before = [p.clone() for p in model.net_g.parameters()]
    good = model.net_g.forward
    model.net_g.forward = lambda lq: good(lq) * float('nan')
    log = step(model, 2)
    assert log['bad_steps'] == 1 and all(torch.equal(a, b) for a, b in zip(before, model.net_g.parameters()))
    with pytest.raises(
        FloatingPointError, match=r'2 steps had rewards that are not finite .* the state of iter 3 is saved'
    ):
        step(model, 3)
    assert (tmp_path / 'training_states' / '3.state').is_file()
    again = build(resume=3, max_bad_steps=9)
    assert again.finpercep_curriculum.bad_steps == 2


def test_no_rank_stops_before_the_state_is_saved(build, monkeypatch):
    model, order = build(max_bad_steps=1), []
    good = model.net_g.forward
    model.net_g.forward = lambda lq: good(lq) * float('nan')
    model.save = lambda *_: order.append('saved')
    monkeypatch.setattr(hook.dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(hook.dist, 'barrier', lambda: order.append('barrier'))
    monkeypatch.setattr('finpercep_plugin.losses.reward_loss._gather', lambda rows: rows)
    with pytest.raises(FloatingPointError, match='max_bad_steps'):
        step(model, 1)
    assert order == ['saved', 'barrier']


class Plain:
    """A model that is not BasicSR's: other names, no iteration."""

    def __init__(self, loss=None):
        self.opt, self.cri_reward, self.calls = {'rank': 0, 'path': {}}, loss, []

    def optimize_parameters(self):
        self.calls.append(self.cri_reward.stage if self.cri_reward else None)

    def reduce_loss_dict(self, terms):
        return OrderedDict(terms)

    save_training_state = resume_training = optimize_parameters


def test_a_model_without_a_reward_loss_is_left_alone():
    model = Plain(nn.L1Loss())
    attach(model, model.opt)
    assert 'optimize_parameters' not in vars(model) and not hasattr(model, 'finpercep_curriculum')


def test_a_model_that_takes_no_iteration_has_its_calls_counted(tiny_rms):
    from finpercep_plugin.losses.reward_loss import FinPercepRewardLoss

    model = Plain(FinPercepRewardLoss(list(tiny_rms.values()), stages=(2, 1, 1)))
    attach(model, model.opt)
    for _ in range(5):
        model.optimize_parameters()
    assert model.calls == [0, 0, 1, 2, 2]
