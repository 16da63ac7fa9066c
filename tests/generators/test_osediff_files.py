"""OSEDiff's files: the released one, strictly, written back as it was; the project's own; what each choice trains; options."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('diffusers')
pytest.importorskip('peft')
pytest.importorskip('transformers')
pytest.importorskip('timm')
from finpercep_plugin.cli.tiny.osediff import osediff  # noqa: E402
from finpercep_plugin.config import ConfigError, build  # noqa: E402
from finpercep_plugin.generators.osediff import OSEDiff  # noqa: E402
from finpercep_plugin.models.precision import cast_frozen  # noqa: E402
from finpercep_plugin.registry import GENERATORS  # noqa: E402
from finpercep_plugin.rollout import step_x0, super_resolve  # noqa: E402


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return osediff(tmp_path_factory.mktemp('osediff'), seed=1)


@pytest.fixture
def make(files):
    """make(**options) -> a loaded generator, by default without RAM and without checkpointing."""

    def made(ram=False, weights=None, **options):
        parts = {name: files[name] for name in ('ram', 'dape', 'tags', 'thresholds')} if ram else {}
        generator = OSEDiff(files['base'], **{**parts, 'prompt': 'a sea', 'checkpointing': False, **options})
        generator.load(weights or files['weights'])
        return generator

    return made


def pictures(batch=2, height=10, width=12):
    """lq and gt."""
    rng = torch.Generator().manual_seed(5)
    gt = torch.rand(batch, 3, 4 * height, 4 * width, generator=rng)
    return F.avg_pool2d(gt, 4), gt


def noise_for(generator, cond):
    return torch.randn(len(cond), *generator.latent_shape(cond), generator=torch.Generator().manual_seed(6))


def policy_step(generator, lq, gt):
    """A loss through encoder, UNet and decode, and the training loss."""
    cond = generator.condition(lq)
    noise = noise_for(generator, cond)
    sr = generator.decode(step_x0(generator, generator.start(cond, noise), 0, cond), cond)
    t = torch.stack([generator.draw_t(torch.Generator())] * len(lq))
    return (sr - gt).square().mean() + generator.pretrain_loss(gt, cond, noise, t).mean()


def nudge(parameters):
    with torch.no_grad():
        for value in parameters.values():
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3)))


def read(file):
    return torch.load(file, weights_only=True)


def flat(data):
    """The tensors of an osediff.pkl by our names."""
    return {f'{part}.{name}': v for part in ('unet', 'vae') for name, v in data[f'state_dict_{part}'].items()}


def test_saved_as_it_was_loaded(make, files, tmp_path):
    generator = make()
    generator.trainable('released')
    generator.save(tmp_path / 'again.pkl', 'original')
    before, after = read(files['weights']), read(tmp_path / 'again.pkl')
    assert list(before) == list(after)
    plain = [name for name in before if not name.startswith('state_dict')]
    assert {name: before[name] for name in plain} == {name: after[name] for name in plain}
    assert after['vae_lora_encoder_modules'].count('quant_conv') == 10
    ours, released = flat(after), flat(before)
    assert list(ours) == list(released)
    assert all(ours[name].dtype == v.dtype and torch.equal(ours[name], v) for name, v in released.items())


@pytest.mark.parametrize('choice', ['released', 'lora', ['vae.*lora*'], ['unet.conv_in.base_layer.*']])
def test_after_a_step_only_the_trained_names_differ(make, files, tmp_path, choice):
    generator = make(ram=True)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    chosen = generator.trainable(choice)
    optimizer = torch.optim.SGD(chosen.values(), lr=0.1)
    policy_step(
        generator, *pictures(1, 20, 24)
    ).backward()  # 2 x 2 cells in the UNet's middle, so its attention matters
    assert all(value.grad is not None and value.grad.any() for value in chosen.values())
    optimizer.step()
    after = generator.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {f'network.{n}' for n in chosen}
    generator.save(tmp_path / 'tuned.pkl', 'original')
    ours, released = flat(read(tmp_path / 'tuned.pkl')), flat(read(files['weights']))
    assert {name for name in ours if not torch.equal(ours[name], released[name])} == set(chosen)
    again = make(ram=True, weights=tmp_path / 'tuned.pkl').state_dict()
    assert all(torch.equal(again[name], value) for name, value in after.items())


def test_what_the_choices_train(make, files):
    generator = make()
    released, lora = generator.trainable('released'), generator.trainable('lora', rank=99, alpha=1.0)
    assert set(released) == set(flat(read(files['weights'])))
    assert set(released) - set(lora) == {'unet.conv_in.base_layer.weight', 'unet.conv_in.base_layer.bias'}
    assert {name.split('.')[0] for name in lora} == {'unet', 'vae'}
    assert [value for value in generator.parameters() if value.requires_grad] == list(lora.values())


def test_trained_tensors_of_base_have_no_place_in_the_original_layout(make, tmp_path):
    generator = make()
    generator.trainable(['unet.time_embedding.*', '*lora*'])
    with pytest.raises(ValueError, match=r'4 other tensors were trained, such as unet.time_embedding.linear_1.weight'):
        generator.save(tmp_path / 'g.pkl', 'original')
    generator.save(tmp_path / 'g.pth', 'own')


def test_own_and_trained_layouts(make, files, tmp_path):
    generator = make(ram=True)
    nudge(generator.trainable('released'))
    lq, _ = pictures()
    expected = super_resolve(generator, lq, noise_for(generator, generator.condition(lq)))
    generator.save(tmp_path / 'own.pth', 'own')
    generator.save(tmp_path / 'trained.pth', 'trained')
    assert set(read(tmp_path / 'trained.pth')['params']) == set(generator.trainable('released'))
    whole, laid = OSEDiff.from_file(tmp_path / 'own.pth'), make(ram=True)
    laid.load(tmp_path / 'trained.pth')
    assert whole.arch == generator.arch
    for again in (whole, laid):
        again.trainable('released')  # torch takes other kernels where a gradient is wanted
        assert torch.equal(super_resolve(again, lq, noise_for(again, again.condition(lq))), expected)
    laid.save(tmp_path / 'laid.pkl', 'original')
    own = generator.network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in flat(read(tmp_path / 'laid.pkl')).items())


def test_frozen_weights_in_bfloat16_are_saved_exactly(make, files, tmp_path):
    generator = make()
    chosen = generator.trainable('lora')
    assert cast_frozen(generator) > 0
    with torch.autocast('cpu', torch.bfloat16):
        loss = policy_step(generator, *pictures())
    loss.backward()
    assert all(value.dtype == torch.float32 and value.grad.isfinite().all() for value in chosen.values())
    generator.save(tmp_path / 'same.pkl', 'original')
    ours = flat(read(tmp_path / 'same.pkl'))
    assert all(torch.equal(ours[name], value) for name, value in flat(read(files['weights'])).items())


def test_every_wrong_key_in_one_error(make, files, tmp_path):
    data = read(files['weights'])
    data['state_dict_unet'].pop('conv_in.base_layer.weight')  # must not be taken from base
    data['state_dict_vae'].pop('quant_conv.lora_A.default_encoder.weight')
    data['state_dict_unet']['conv_out.lora_B.default_decoder.weight'] = torch.zeros(4, 3, 1, 1)
    data['state_dict_unet']['conv_out.lora_C.default_decoder.weight'] = torch.zeros(1)
    data['state_dict_vae']['decoder.conv_in.lora_A.default_encoder.weight'] = torch.zeros(1)
    data['unet_lora_others_modules'] = [*data['unet_lora_others_modules'], 'mid_block.resnets.7.conv1']
    data['state_dict_unet']['mid_block.resnets.7.conv1.lora_A.default_others.weight'] = torch.zeros(1)
    torch.save(data, tmp_path / 'bad.pkl')
    with pytest.raises(ValueError) as error:
        make(weights=tmp_path / 'bad.pkl')
    for line in (
        'bad.pkl does not fit the model',
        'missing: unet.conv_in.base_layer.weight',
        'missing: vae.quant_conv.lora_A.default_encoder.weight',
        'unexpected: unet.conv_out.lora_C.default_decoder.weight',
        'unexpected: vae.decoder.conv_in.lora_A.default_encoder.weight',
        'unexpected: unet.mid_block.resnets.7.conv1.lora_A.default_others.weight',
        'shape: unet.conv_out.lora_B.default_decoder.weight is (4, 3, 1, 1) in the file, (4, 4, 1, 1) in the model',
    ):
        assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 7


def test_files_that_are_not_osediff(make, files, tmp_path):
    data = read(files['weights'])
    del data['rank_vae'], data['state_dict_vae']
    torch.save({**data, 'rank_unet': 'four'}, tmp_path / 'bad.pkl')
    with pytest.raises(ValueError, match='(?s)no osediff.pkl.*rank_unet: str, expected int.*rank_vae: missing.*_vae'):
        make(weights=tmp_path / 'bad.pkl')
    with pytest.raises(FileNotFoundError, match='OSEDiff: no file .*nosediff.pkl'):
        make(weights=tmp_path / 'nosediff.pkl')
    with pytest.raises(FileNotFoundError, match='OSEDiff: base: no folder .*sd3'):
        OSEDiff(str(tmp_path / 'sd3')).load(files['weights'])
    with pytest.raises(RuntimeError, match='call load'):
        OSEDiff(files['base']).condition(torch.rand(1, 3, 8, 8))


def test_a_rank_other_than_four(make, files, tmp_path):
    data = read(files['weights'])
    for part in ('unet', 'vae'):
        state = data[f'state_dict_{part}']
        state.update({n: v[:2] if '.lora_A.' in n else v[:, :2] for n, v in state.items() if '.lora_' in n})
    torch.save({**data, 'rank_unet': 2, 'rank_vae': 2}, tmp_path / 'two.pkl')
    network = make(weights=tmp_path / 'two.pkl').network
    assert network.unet.conv_out.scaling == {'default_decoder': 4.0}  # 8 / 2


# ---------------------------------------------------------------- options


def test_wrong_options_are_listed(files):
    options = {'eta': 0.5, 'guidance': 5.5, 'noise_t': 1000, 'ram': 'ram.pth', 'lpips_weight': -1.0}
    with pytest.raises(
        ValueError, match='(?s)guidance must be 1.*eta must be 0.*noise_t.*lpips_weight.*ram needs tags'
    ):
        OSEDiff(files['base'], **options)
    with pytest.raises(ValueError, match='dape, tags without ram'):
        OSEDiff(files['base'], dape='d', tags='t')
    with pytest.raises(ValueError, match='one step, got steps = 4'):
        OSEDiff(files['base'], steps=4)
    with pytest.raises(ConfigError, match="noise: unknown key; did you mean 'noise_t'"):
        build(GENERATORS, {'type': 'OSEDiff', 'base': files['base'], 'noise': 1}, '$.generator')
    with pytest.raises(ConfigError, match=r'\$.generator.dape: .*/none.pth'):
        OSEDiff.check({'base': files['base'], 'dape': '/none.pth'}, '$.generator')
