"""`train.precision: bf16`: steps on a CPU, what is held in bfloat16, and that files hold what was not trained exactly."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from finpercep_plugin.train import train_pipeline


def params(file) -> dict:
    return torch.load(Path('experiments') / file, weights_only=True)['params']


def state(name: str, iteration: int) -> dict:
    return torch.load(f'experiments/{name}/training_states/{iteration}.state', weights_only=True)


@pytest.mark.parametrize('kind', ['rm', 'diffusion', 'refl'])
def test_trains_and_resumes_to_the_same_float32_weights(options, tmp_path, kind):
    def run(resume=None):
        opt = options(kind)
        opt['train'] |= {'precision': 'bf16', 'ema_decay': 0.0}
        opt['path']['resume_state'] = resume
        return train_pipeline(str(tmp_path), opt)

    model = run()
    assert model.bf16 and model.bad_steps == 0
    assert {p.dtype for p in model.net_g.parameters()} == {torch.float32}, 'these generators and rewards hold no others'
    earlier, whole = (state(kind, i) for i in (2, 4))
    assert {value.dtype for value in whole['trained'].values()} == {torch.float32}
    moved = [name for name, value in whole['trained'].items() if not torch.equal(value, earlier['trained'][name])]
    assert len(moved) > len(whole['trained']) // 2
    (tmp_path / f'experiments/{kind}/training_states/4.state').unlink()
    run(str(tmp_path / f'experiments/{kind}/training_states/2.state'))
    assert all(torch.equal(value, state(kind, 4)['trained'][name]) for name, value in whole['trained'].items())


def test_is_near_float32_and_differs(options, tmp_path):
    trained = []
    for precision in ('fp32', 'bf16'):
        opt = options('diffusion')
        opt['generator']['weights'] = options('refl')['generator']['weights']
        opt['train'] |= {'precision': precision, 'total_iter': 1, 'optim_g': {'type': 'AdamW', 'lr': 1e-3}}
        opt['logger']['save_checkpoint_freq'] = 1
        model = train_pipeline(str(tmp_path), {**opt, 'name': precision})
        trained.append((model.log_dict['l_total'].item(), model.log_dict['grad_norm'].item()))
    (exact, exact_norm), (rounded, rounded_norm) = trained
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)
    assert rounded_norm != exact_norm and rounded_norm == pytest.approx(exact_norm, rel=0.1)


def test_what_a_small_generator_does_not_train_stays_exact(options, tmp_path):
    opt = options('refl')
    opt['train'] |= {'precision': 'bf16', 'total_iter': 1}
    opt['logger']['save_checkpoint_freq'] = 1
    opt['generator'] |= {'train': 'lora', 'lora_rank': 2}
    train_pipeline(str(tmp_path), opt)
    base = torch.load(opt['generator']['weights'], weights_only=True)['params']
    own = {k.replace('.base_layer', ''): v for k, v in params('refl/models/generator_latest.pth').items()}
    assert all(torch.equal(own[name], value) and own[name].dtype == value.dtype for name, value in base.items())


@pytest.fixture
def released(options, tmp_path_factory):
    """released(**algorithm) -> options that fine-tune a tiny DiffBIR, frozen weights in bfloat16."""
    from finpercep_plugin.cli.tiny_checkpoints import write

    made = write(tmp_path_factory.mktemp('tiny'), ['diffbir'])['diffbir']

    def make(**algorithm) -> dict:
        opt = options('refl')
        opt['generator'] = {'type': 'DiffBIR', **made, 'steps': 2, 'train': 'released'}
        opt['train'] |= {'precision': 'bf16', 'total_iter': 2, 'ema_decay': 0.0, 'scheduler': {'type': 'constant'}}
        opt['train']['algorithm'] |= {'steps': 2, 'k_start': 1, **algorithm}
        opt['train']['ccl'] = {'stages': [0, 1, 1], 'calibration': 2}
        opt['datasets']['train']['batch_size_per_gpu'] = 2
        opt['datasets']['val']['limit'] = 1
        opt['val'] |= {'val_freq': 100, 'rewards': {}, 'panel': 0}
        opt['logger']['save_checkpoint_freq'] = 1
        return opt

    return make


def test_a_released_generator(released, tmp_path):
    opt = released()
    model = train_pipeline(str(tmp_path), opt)
    assert model.bad_steps == 0
    generator, named = model.net_g, dict(model.net_g.named_parameters())
    low = {name for name, value in named.items() if value.dtype == torch.bfloat16}
    trained = {name for name, value in named.items() if value.requires_grad}
    assert trained == {f'network.{name}' for name in generator.part.names} and not low & trained
    assert all(name.partition('.')[2].startswith('controlnet.') for name in trained)
    assert sum(name.startswith('network.unet.') for name in low) > 20 and any(name.startswith('vae.') for name in low)
    encoders = [p for module in model.reward.encoders for p in module.parameters()]
    assert torch.bfloat16 in {p.dtype for p in encoders}
    before, after = state('refl', 1)['trained'], state('refl', 2)['trained']
    assert sum(not torch.equal(value, after[name]) for name, value in before.items()) > len(before) // 2
    assert {value.dtype for value in after.values()} == {torch.float32}

    fresh = type(generator)(**generator.arch)
    fresh.load(opt['generator']['weights'])
    start, own = fresh.network.state_dict(), params('refl/models/generator_latest.pth')
    assert set(own) == set(start)
    for name, value in start.items():
        expected = named[f'network.{name}'] if f'network.{name}' in trained else value
        assert own[name].dtype == torch.float32 and torch.equal(own[name], expected), name
    (original,) = Path('experiments/refl/models').glob('original_latest*')
    again = type(generator)(**generator.arch)
    again.load(original)
    assert all(torch.equal(value, own[name]) for name, value in again.network.state_dict().items())


def test_calibration_sees_parts_of_the_size_that_is_rewarded(released, tmp_path, monkeypatch):
    from finpercep_plugin.rewards.finpercep_reward import FinPercepReward

    sizes, raw = [], FinPercepReward.raw

    def watch(self, sr, stage, prompt=None, **images):
        sizes.append([tuple(image.shape) for image in (sr, *(i for i in images.values() if i is not None))])
        return raw(self, sr, stage, prompt=prompt, **images)

    monkeypatch.setattr(FinPercepReward, 'raw', watch)
    opt = released(decode_size=16)
    opt['train'] |= {'total_iter': 1, 'monitor': {'every': 0}}
    train_pipeline(str(tmp_path), opt)
    part, small = (2, 3, 16, 16), (2, 3, 4, 4)
    assert sizes[:2] == [[part, small, part]] * 2, 'both stages are measured on parts'
    assert len(sizes) == 3 and sizes[2][0] == part, 'and so is what is optimised'


def test_what_has_no_place_in_the_original_layout_ends_no_run(released, tmp_path):
    opt = released()
    opt['train']['total_iter'] = 1
    opt['generator']['train'] = ['unet.conv_out.*']
    train_pipeline(str(tmp_path), opt)
    names = {file.name for file in Path('experiments/refl/models').iterdir()}
    assert 'generator_latest.pth' in names and not [name for name in names if name.startswith('original')]
    (log,) = Path('experiments/refl').glob('train_*.log')
    assert 'was not written: ' in log.read_text()
