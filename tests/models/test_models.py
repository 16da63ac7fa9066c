"""The models through the training entry: what they write, that they resume exactly, and that bad steps do no harm."""

import shutil

import pytest
import torch

from finpercep_plugin.config import ConfigError
from finpercep_plugin.models.steps import cosine_rate
from finpercep_plugin.train import train_pipeline

KINDS = ('rm', 'diffusion', 'refl', 'dpo', 'grpo', 'rfsr')


def state(name: str, iteration: int) -> dict:
    return torch.load(f'experiments/{name}/training_states/{iteration}.state', weights_only=True)


def differences(a, b, path: str = '') -> list[str]:
    """Paths at which two states differ."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for k in a for d in differences(a[k], b[k], f'{path}.{k}')]
    if isinstance(a, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f'{path}[{i}]')]
    equal = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if equal else [path]


@pytest.mark.parametrize('kind', KINDS)
def test_a_resumed_run_is_bit_identical_and_everything_is_saved(options, tmp_path, kind):
    opt = options(kind)
    model = train_pipeline(str(tmp_path), opt)
    root = tmp_path / 'experiments' / kind
    assert {'net_g_2.pth', 'net_g_4.pth', 'net_g_latest.pth'} <= {f.name for f in (root / 'models').iterdir()}
    assert not list(root.rglob('*.tmp'))
    assert list((root / 'visualization').rglob('*panel_4.png'))
    assert all(torch.isfinite(torch.tensor(v)) for v in model.metric_results.values()) and model.metric_results
    whole, earlier = state(kind, 4), state(kind, 2)
    assert differences(whole['trained'], earlier['trained'])
    assert differences(whole['trained'], whole['ema'])

    opt = options(kind)
    (root / 'training_states/4.state').unlink()
    torch.manual_seed(123)
    opt['path']['resume_state'] = str(root / 'training_states/2.state')
    train_pipeline(str(tmp_path), opt)
    assert differences(state(kind, 4), whole) == []


@pytest.mark.parametrize('kind', KINDS)
def test_pictures_as_they_are_stored_train_to_the_same_state(options, tmp_path, kind):
    """8 bits, and only the fields that are needed: scales of rewards, monitor and weights stay what they were."""
    states = []
    for section in (
        {},
        {'fields': ['sr', 'gt', 'syn', 'map', 'mask'] if kind == 'rm' else ['lq', 'gt'], 'dtype': 'uint8'},
    ):
        opt = options(kind)
        if kind == 'diffusion':  # of a new generator, whose scale is measured
            opt['generator'].pop('residual_sd', None)
        if kind not in ('rm', 'diffusion'):
            opt['train']['monitor'] = {'every': 2, 'samples': 4}
        opt['datasets']['train'] |= section
        train_pipeline(str(tmp_path), opt)
        states.append(state(kind, 4))
        shutil.rmtree('experiments')
    assert differences(*states) == []


@pytest.mark.parametrize('kind', KINDS)
def test_every_trained_tensor_moves_and_no_other(options, tmp_path, kind):
    opt = options(kind)
    if kind == 'diffusion':  # a new generator's last layer is zero, so nothing before it moves at first
        opt['generator']['weights'] = options('refl')['generator']['weights']
    opt['train']['total_iter'] = 1
    opt['logger']['save_checkpoint_freq'] = 1
    frozen, before = {}, {}

    def remember(model):
        before.update({n: p.detach().clone() for n, p in model.net_g.named_parameters() if p.requires_grad})
        frozen.update({n: p.detach().clone() for n, p in model.net_g.named_parameters() if not p.requires_grad})

    import basicsr.models

    original = basicsr.models.build_model

    def build(*args):
        model = original(*args)
        remember(model)
        return model

    basicsr.models.build_model = build
    try:
        model = train_pipeline(str(tmp_path), opt)
    finally:
        basicsr.models.build_model = original
    after = dict(model.net_g.named_parameters())
    still = [n for n, p in before.items() if torch.equal(p, after[n])]
    # The first layers of a branch that was born with a zero last layer move from the second step on.
    young = ('decoder_full.', 'encoder.adapters.')
    assert [n for n in still if not n.startswith(young)] == []
    assert all(torch.equal(p, after[n]) for n, p in frozen.items())


def test_refl_logs_every_term_with_its_spread_and_walks_the_stages(options, tmp_path):
    import basicsr.utils

    seen = []
    logger = basicsr.utils.MessageLogger.__call__
    basicsr.utils.MessageLogger.__call__ = lambda self, values: seen.append(dict(values))
    try:
        train_pipeline(str(tmp_path), options('refl'))
    finally:
        basicsr.utils.MessageLogger.__call__ = logger
    assert [v['stage'] for v in seen] == [0, 1, 2, 2]
    assert {'l_reward', 'l_pretrain', 'reward', 'reward_std', 'reward_raw', 'reward_raw_std', 'grad_norm', 'k'} <= set(
        seen[0]
    )
    assert {'reward_map_max', 'reward_map_max_std', 'reward_score'} <= set(seen[2])
    ccl = state('refl', 4)['ccl']
    assert set(ccl['statistics']['mu']) == {0, 1, 2} and ccl['stage'] == 2


@pytest.mark.parametrize('kind', ['dpo', 'grpo', 'rfsr'])
def test_every_algorithm_trains_through_the_stages(options, tmp_path, kind):
    opt = options(kind)
    opt['train']['optim_g']['lr'] = 1e-3
    train_pipeline(str(tmp_path), opt)
    first, last = state(kind, 2), state(kind, 4)
    assert last['ccl']['stage'] == 2 and last['bad_steps'] == 0
    assert any(not torch.equal(value, last['trained'][name]) for name, value in first['trained'].items())


def test_a_model_trains_by_its_own_algorithm(options, tmp_path):
    opt = options('dpo')
    opt['train']['algorithm'] = {'type': 'ReFL'}
    with pytest.raises(ConfigError, match=r"algorithm.type: this model trains by DPO, got 'ReFL'"):
        train_pipeline(str(tmp_path), opt)


def test_rewards_without_a_gradient_are_for_algorithms_without(options, tmp_path, monkeypatch):
    from finpercep_plugin.rewards.sharpness_reward import SharpnessReward

    monkeypatch.setattr(SharpnessReward, 'differentiable', False)
    for kind, ends in (('refl', False), ('rfsr', False), ('dpo', True), ('grpo', True)):
        opt = options(kind)
        opt['reward'] = {'type': 'Sharpness'}
        opt['train']['ccl'] = {'calibration': 6}
        if ends:
            train_pipeline(str(tmp_path), opt)
            continue
        with pytest.raises(ConfigError, match='needs a gradient, and Sharpness has none; .* or use DPO or FlowGRPO'):
            train_pipeline(str(tmp_path), opt)


def test_lora_trains_alone_and_is_exported(options, tmp_path):
    opt = options('refl')
    opt['generator'] |= {'train': 'lora', 'lora_rank': 2, 'lora_alpha': 4}
    train_pipeline(str(tmp_path), opt)
    saved = torch.load('experiments/refl/models/net_g_latest.pth', weights_only=True)
    assert saved['subset'] and {name for name in saved['params'] if '.lora_' not in name} <= {'residual_sd'}
    from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion

    assert TinyDiffusion.from_file('experiments/refl/models/generator_latest.pth')


def test_a_file_of_another_gate_or_head_is_refused(options, tmp_path):
    for key, value in (('score_gate', 'paper'), ('score_head', 'paper'), ('decoder_width', 24)):
        opt = options('rm')
        opt['network_g'][key] = value
        with pytest.raises(ValueError, match=f'does not fit .*{key}: .* in the file, {value}'):
            train_pipeline(str(tmp_path), opt)


def test_validation_without_gt_measures_what_it_can(options, tmp_path):
    from PIL import Image

    (tmp_path / 'lq').mkdir()
    Image.effect_noise((8, 8), 50).convert('RGB').save(tmp_path / 'lq/a.png')
    opt = options('refl')
    opt['datasets']['val'] = {
        'type': 'SingleImageDataset',
        'name': 'val',
        'dataroot_lq': 'lq',
        'io_backend': {'type': 'disk'},
    }
    opt['val']['rewards']['psnr_rgb'] = {'type': 'PSNR', 'y_channel': False}
    opt['val']['metrics']['niqe'] = {'type': 'calculate_niqe', 'crop_border': 4}
    model = train_pipeline(str(tmp_path), opt)
    assert set(model.metric_results) == {'watched', 'sharpness'}


def test_a_spread_that_is_given_is_kept_and_else_measured(options, tmp_path):
    opt = options('diffusion')
    measured = train_pipeline(str(tmp_path), opt).net_g.residual_sd.item()
    opt['generator']['residual_sd'] = 0.5
    assert train_pipeline(str(tmp_path), {**opt, 'name': 'given'}).net_g.residual_sd.item() == 0.5 != measured


class TestBadSteps:
    @staticmethod
    def poison(monkeypatch, iterations):
        """Make the loss of these iterations NaN."""
        from finpercep_plugin.models.rm_model import FinPercepRMModel

        original = FinPercepRMModel.losses

        def losses(self, current_iter):
            total, terms = original(self, current_iter)
            return (total * float('nan') if current_iter in iterations else total), terms

        monkeypatch.setattr(FinPercepRMModel, 'losses', losses)

    def test_a_nan_step_is_skipped_and_counted(self, options, tmp_path, monkeypatch):
        self.poison(monkeypatch, {3})
        model = train_pipeline(str(tmp_path), options('rm'))
        assert model.bad_steps == 1
        assert all(torch.isfinite(p).all() for p in model.net_g.parameters())
        assert state('rm', 4)['bad_steps'] == 1

    def test_too_many_stop_the_run_with_its_state_saved(self, options, tmp_path, monkeypatch):
        self.poison(monkeypatch, {2, 3})
        opt = options('rm')
        opt['train']['max_bad_steps'] = 2
        opt['logger']['save_checkpoint_freq'] = 100
        with pytest.raises(FloatingPointError, match='iter 3 is saved'):
            train_pipeline(str(tmp_path), opt)
        assert state('rm', 3)['bad_steps'] == 2


class TestOptions:
    """One error before anything is loaded, with YAML path, expectation and nearest name."""

    def message(self, tmp_path, opt) -> str:
        with pytest.raises(ConfigError) as caught:
            train_pipeline(str(tmp_path), opt)
        assert not (tmp_path / 'experiments').exists()
        return str(caught.value)

    def test_rm(self, options, tmp_path):
        opt = options('rm')
        opt['network_g']['score_gat'] = 'paper'
        opt['train']['optim_g']['lr'] = 'fast'
        opt['train']['map_opt']['dice_wait'] = 1
        opt['path']['pretrain_network_g'] = 'rm_7.pth'
        text = self.message(tmp_path, opt)
        assert "$.network_g.score_gat: unknown key; did you mean 'score_gate'?" in text
        assert "$.train.optim_g.lr: expected float, got str 'fast'" in text
        assert "$.train.map_opt.dice_wait: unknown key; did you mean 'dice_weight'?" in text
        assert '$.path.pretrain_network_g' in text and 'rm_7.pth' in text
        opt = options('rm')
        for key in ('map_opt', 'rank_opt', 'align_opt'):
            del opt['train'][key]
        assert '$.train: no loss; expected rank_opt, map_opt or align_opt' in self.message(tmp_path, opt)

    def test_diffusion(self, options, tmp_path):
        opt = options('diffusion')
        opt['generator']['network']['chanels'] = [8]
        opt['train']['totl_iter'] = 4
        opt['val']['rewards'] = {'x': {'type': 'Sharpnes'}}
        text = self.message(tmp_path, opt)
        assert "did you mean 'channels'?" in text
        assert "$.train.totl_iter: unknown key; did you mean 'total_iter'?" in text
        assert "$.val.rewards.x.type: no reward named 'Sharpnes'; did you mean 'Sharpness'?" in text

    def test_refl(self, options, tmp_path):
        opt = options('refl')
        opt['generator']['weights'] = 'nowhere.pth'
        opt['train']['ccl']['stages'] = [1, 2]
        opt['reward']['topp'] = 0.1
        opt['train']['algorithm']['k_end'] = 'late'
        text = self.message(tmp_path, opt)
        assert '$.generator.weights: generator weights not found at' in text
        assert '$.train.ccl.stages: expected 3 values, got 2' in text
        assert "$.reward.topp: unknown key; did you mean 'top'?" in text
        assert '$.train.algorithm.k_end: expected' in text
        opt = options('refl')
        opt['train']['algorithm']['k_end'] = 50
        assert '$.train.algorithm: ReFL: k_end = 50, but the sampler has 3 steps' in self.message(tmp_path, opt)

    def test_reward_files_of_another_stage(self, options, tmp_path):
        opt = options('refl')
        opt['reward']['rms'][1:] = opt['reward']['rms'][:0:-1]
        text = self.message(tmp_path, opt)
        assert '$.reward.rms[1]: ' in text and '$.reward.rms[2]: ' in text

    def test_a_reward_without_stages_takes_no_stages(self, options, tmp_path):
        opt = options('refl')
        opt['reward'] = {'type': 'Sharpness'}
        assert '$.train.ccl.stages: Sharpness has no stages' in self.message(tmp_path, opt)


def test_any_differentiable_reward_can_be_optimised(options, tmp_path):
    opt = options('refl')
    opt['reward'], opt['train']['ccl'] = {'type': 'PSNR'}, {'calibration': 6}
    train_pipeline(str(tmp_path), opt)
    statistics = state('refl', 4)['ccl']['statistics']
    assert set(statistics['mu']) == {0} and statistics['sd'][0] > 0


def test_cosine_rate_by_hand():
    """Half a cosine over 5 steps from 1 to 0.2: 0.2 + 0.8 (1 + cos(pi / 4)) / 2 at step 2."""
    assert cosine_rate(1, 5, 0.2) == 1
    assert cosine_rate(2, 5, 0.2) == pytest.approx(0.2 + 0.4 * (1 + 0.5**0.5))
    assert cosine_rate(3, 5, 0.2) == pytest.approx(0.6)
    assert cosine_rate(5, 5, 0.2) == cosine_rate(9, 5, 0.2) == pytest.approx(0.2)


@pytest.mark.parametrize('kind', KINDS)
def test_a_trained_file_is_validated_by_the_test_entry(options, tmp_path, tiny_rms, generator_file, kind):
    from finpercep_plugin.test import test_pipeline

    opt = options(kind)
    opt['datasets'] = {'test_1': opt['datasets']['val']}
    del opt['train'], opt['logger']
    opt['val'] = {k: v for k, v in opt['val'].items() if k != 'val_freq'}
    if kind == 'rm':
        opt['path']['pretrain_network_g'] = tiny_rms[2]
    else:
        opt['generator']['weights'] = generator_file
    model = test_pipeline(str(tmp_path), opt)
    assert model.metric_results and list((tmp_path / 'results' / kind).rglob('*.png'))
