"""StableSR's files, on a tiny random checkpoint in the released layout: loading, errors, and writing them back."""

import shutil

import pytest
import torch

pytest.importorskip('diffusers')
from finpercep_plugin.cli.tiny.stablesr import stablesr  # noqa: E402
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.generators.stablesr import StableSR  # noqa: E402
from finpercep_plugin.generators.stablesr_files import network_keys, read_checkpoint  # noqa: E402
from finpercep_plugin.models.precision import cast_frozen  # noqa: E402
from finpercep_plugin.rollout import step_x0  # noqa: E402


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return stablesr(tmp_path_factory.mktemp('stablesr'), seed=3)


@pytest.fixture
def make(files):
    """make(weights=..., cfw=True, **options) -> a loaded StableSR, with the CFW decoder or the plain one."""

    def build(weights=None, cfw=False, **options):
        generator = StableSR(**{'cfw': files['cfw'] if cfw is True else cfw or None, 'steps': 4, **options})
        generator.load(weights or files['weights'])
        return generator

    return build


def _lq(batch=2, height=12, width=16, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def _noise(generator, cond, seed=1):
    shape = (len(cond), *generator.latent_shape(cond))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _step(generator, lr=1e-2):
    """One optimiser step on the picture of step 1's clean latent."""
    cond = generator.condition(_lq())
    sr = generator.decode(step_x0(generator, _noise(generator, cond), 1, cond), cond)
    parameters = {name: value for name, value in generator.network.named_parameters() if value.requires_grad}
    optimiser = torch.optim.Adam(parameters.values(), lr=lr)
    (sr * torch.linspace(0, 1, sr.shape[-1])).sum().backward()
    optimiser.step()


def _read(file):
    return torch.load(file, weights_only=True)


def _tensors(file):
    """The networks' tensors in a released file, under our names."""
    state = _read(file)['state_dict']
    return {name: state[key] for name, key in network_keys(read_checkpoint(file).state).items()}


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_loads_the_released_file(files, make):
    generator = make()
    assert _same(generator.network.state_dict(), _tensors(files['weights']))
    assert not any(value.requires_grad for value in generator.parameters()) and not generator.training
    assert generator.train().training is False


def test_loads_a_flat_state_dict(files, make, tmp_path):
    torch.save(_read(files['weights'])['state_dict'], tmp_path / 'flat.ckpt')
    generator = make(tmp_path / 'flat.ckpt')
    assert _same(generator.network.state_dict(), _tensors(files['weights']))
    generator.save(tmp_path / 'out.ckpt', 'original')
    assert _same(_read(tmp_path / 'out.ckpt'), _read(files['weights'])['state_dict'])


@pytest.mark.parametrize('low', [False, True])
def test_round_trip_is_byte_equal(files, make, tmp_path, low):
    generator = make()
    assert not low or cast_frozen(generator) > 0
    generator.save(tmp_path / 'out.ckpt', 'original')
    before, after = _read(files['weights']), _read(tmp_path / 'out.ckpt')
    one, other = before.pop('state_dict'), after.pop('state_dict')
    assert before == after and list(one) == list(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype and value.shape == other[name].shape
        assert value.numpy().tobytes() == other[name].numpy().tobytes(), name


def test_after_one_step_only_the_trained_names_differ(files, make, tmp_path):
    generator = make(cfw=True)
    chosen = generator.trainable()
    assert chosen and all(name.startswith('structure.') or '.spade.' in name for name in chosen)
    _step(generator)
    generator.save(tmp_path / 'out.ckpt', 'original')
    before, after = _read(files['weights'])['state_dict'], _read(tmp_path / 'out.ckpt')['state_dict']
    keys = network_keys(generator.network.state_dict())
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert before.keys() == after.keys() and changed == {keys[name] for name in chosen}
    generator.save(tmp_path / 'trained.pth', 'trained')
    generator.save(tmp_path / 'own.pth', 'own')
    again = make()
    again.load(tmp_path / 'trained.pth')
    for other in (again, StableSR.from_file(tmp_path / 'own.pth'), make(tmp_path / 'out.ckpt')):
        assert _same(other.network.state_dict(), generator.network.state_dict())


def test_own_file_whose_checkpoint_has_moved(files, make, tmp_path):
    shutil.copy(files['weights'], tmp_path / 'first.ckpt')
    make(tmp_path / 'first.ckpt').save(tmp_path / 'own.pth')
    (tmp_path / 'first.ckpt').unlink()
    with pytest.raises(FileNotFoundError, match='first stage and text: no checkpoint .*first.ckpt'):
        StableSR.from_file(tmp_path / 'own.pth')
    generator = StableSR(base=files['weights'])
    generator.load(tmp_path / 'own.pth')
    assert _same(generator.vae.state_dict(), make().vae.state_dict())


def test_every_wrong_key_in_one_error(files, make, tmp_path):
    data, state = _read(files['weights']), _read(files['weights'])['state_dict']
    lines = []
    for prefix, gone in [
        ('model.diffusion_model.', 'out.0.bias'), ('model.diffusion_model.', 'input_blocks.1.0.spade.mlp_beta.bias'),
        ('structcond_stage_model.', 'middle_block.1.norm.bias'), ('first_stage_model.', 'decoder.norm_out.bias'),
        ('cond_stage_model.model.', 'ln_final.bias'),
    ]:  # fmt: skip
        state[f'{prefix}{gone}_'] = state.pop(prefix + gone)
        lines += [f'missing: {prefix}{gone}\n', f'unexpected: {prefix}{gone}_\n']
    state['structcond_stage_model.time_embed.2.bias'] = torch.zeros(3)
    lines.append('structcond_stage_model.time_embed.2.bias is (3,) in the file, (128,) in the model')
    torch.save({**data, 'state_dict': state}, tmp_path / 'bad.ckpt')
    with pytest.raises(ValueError) as error:
        make(tmp_path / 'bad.ckpt')
    assert not [line for line in lines if line not in f'{error.value}\n']


def test_wrong_keys_of_cfw(files, make, tmp_path):
    state = _read(files['cfw'])['state_dict']
    state['extra'] = state.pop('decoder.fusion_layer_2.encode_enc_3.norm1.bias')
    state['loss.discriminator.main.0.weight'] = torch.zeros(1)
    torch.save(state, tmp_path / 'bad.ckpt')
    with pytest.raises(ValueError, match='fusion_layer_2.encode_enc_3.norm1.bias\n  unexpected: extra$'):
        make(cfw=str(tmp_path / 'bad.ckpt'))


def test_what_is_not_there_or_is_something_else(files, make, tmp_path):
    with pytest.raises(FileNotFoundError, match='StableSR: no checkpoint .*nowhere'):
        make(tmp_path / 'nowhere')
    with pytest.raises(
        ValueError, match=r'vqgan_cfw\.ckpt: no structure encoder of StableSR|vqgan_cfw\.ckpt: no tensor'
    ):
        make(files['cfw'])
    with pytest.raises(ConfigError, match=r'generator\.cfw: .*no\.ckpt'):
        StableSR.check({'cfw': str(tmp_path / 'no.ckpt')}, 'generator')
    with pytest.raises(RuntimeError, match='StableSR has no networks yet: call load'):
        StableSR().condition(_lq())
    with pytest.raises(ValueError, match="parameterization must be 'eps' or 'v', got 'x0'"):
        StableSR(parameterization='x0')
    for steps in (1, 1001):
        with pytest.raises(ValueError, match=f'2..1000, got {steps}'):
            StableSR(steps=steps)


def test_lora_is_on_the_released_modules_alone(files, make, tmp_path):
    generator = make()
    generator.trainable('lora', rank=2, alpha=4.0)
    _step(generator)
    generator.save(tmp_path / 'out.ckpt', 'original')
    before, after = _tensors(files['weights']), _tensors(tmp_path / 'out.ckpt')
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    released = set(make().trainable())
    weights = {name for name in released if name.endswith('weight') and before[name].ndim in (2, 4)}
    assert changed == weights and any('.spade.' in name for name in changed)
    assert any(name.startswith('structure.') for name in changed)
