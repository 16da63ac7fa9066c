"""DiT4SR as a generator, on a tiny random checkpoint in the released layout: files, condition, training, tiles."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from safetensors.torch import load_file, save_file  # noqa: E402

from finpercep_plugin.archs.dit4sr_arch import is_inert  # noqa: E402
from finpercep_plugin.cli.tiny.dit4sr import dit4sr  # noqa: E402
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.generators.dit4sr import DiT4SR  # noqa: E402
from finpercep_plugin.models.precision import cast_frozen  # noqa: E402
from finpercep_plugin.rollout import rollout, step_x0, super_resolve  # noqa: E402

FILE = 'diffusion_pytorch_model.safetensors'


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return dit4sr(tmp_path_factory.mktemp('dit4sr'), seed=3)


@pytest.fixture
def make(files):
    """make(weights=..., **options) -> a loaded DiT4SR."""

    def build(weights=None, **options):
        generator = DiT4SR(base=files['base'], **{'steps': 4, 't5': False, **options})
        generator.load(weights or files['weights'])
        return generator

    return build


def _lq(batch=2, height=12, width=16, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def _noise(generator, cond, seed=1):
    shape = (len(cond), *generator.latent_shape(cond))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _tensors(folder, inert=True):
    tensors = load_file(Path(folder) / 'transformer' / FILE)
    return {f'transformer.{name}': value for name, value in tensors.items() if inert or not is_inert(name)}


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _gradients(generator, guidance=2.0):
    """Of the picture of step 2's clean latent, for every trained parameter."""
    cond = generator.condition(_lq())
    sr = generator.decode(step_x0(generator, _noise(generator, cond), 2, cond, guidance=guidance), cond)
    named = {name: value for name, value in generator.network.named_parameters() if value.requires_grad}
    (sr * torch.linspace(0, 1, sr.shape[-1])).sum().backward()
    return {name: value.grad for name, value in named.items()}


def _step(generator, lr=1e-2):
    gradients = _gradients(generator)
    torch.optim.Adam([generator.network.get_parameter(name) for name in gradients], lr=lr).step()
    return gradients


def test_loads_the_released_folder_less_what_is_inert(files, make):
    generator = make()
    assert _same(generator.network.state_dict(), _tensors(files['weights'], inert=False))
    assert len(_tensors(files['weights'])) - len(generator.network.state_dict()) == 20
    assert not any(value.requires_grad for value in generator.parameters()) and not generator.training
    assert _same(make(Path(files['weights']) / 'transformer').network.state_dict(), generator.network.state_dict())


def test_round_trip_is_byte_equal(files, make, tmp_path):
    make().save(tmp_path / 'a', 'original')
    make(Path(files['weights']) / 'transformer').save(tmp_path / 'b', 'original')
    for name in (FILE, 'config.json'):
        expected = (Path(files['weights']) / 'transformer' / name).read_bytes()
        assert (tmp_path / 'a/transformer' / name).read_bytes() == expected
        assert (tmp_path / 'b' / name).read_bytes() == expected


def test_half_precision_in_shards(files, make, tmp_path):
    folder, out = tmp_path / 'in', tmp_path / 'out'
    shutil.copytree(files['weights'], folder)
    tensors = {name: value.half() for name, value in load_file(folder / 'transformer' / FILE).items()}
    (folder / 'transformer' / FILE).unlink()
    names = sorted(tensors)
    shards = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
    for file, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / 'transformer' / file, {'format': 'pt'})
    index = {'metadata': {}, 'weight_map': {name: file for file, members in shards.items() for name in members}}
    (folder / 'transformer' / f'{FILE}.index.json').write_text(json.dumps(index))
    generator = make(folder)
    assert all(value.dtype == torch.float32 for value in generator.network.parameters())
    generator.trainable(['*.1.ff.control_conv.weight'])
    _step(generator)
    generator.save(out, 'original')
    written = {k: v for file in shards for k, v in load_file(out / 'transformer' / file).items()}
    changed = {name for name, value in tensors.items() if written[name].dtype != value.dtype}
    assert written.keys() == tensors.keys() and changed == {'transformer_blocks.1.ff.control_conv.weight'}
    assert all(torch.equal(value, written[name]) for name, value in tensors.items() if name not in changed)


@pytest.mark.parametrize('variant', ['v1', 'r1'])
def test_after_one_step_only_the_trained_names_differ(files, make, tmp_path, variant):
    generator = make(variant=variant)
    chosen = generator.trainable()
    assert set(chosen) == {name for name, _ in generator.network.named_parameters() if 'control' in name}
    gradients = _step(generator)
    assert {n for n, g in gradients.items() if g is None} == {n for n in chosen if 'to_k_' in n and variant == 'v1'}
    generator.save(tmp_path / 'out', 'original')
    before, after = _tensors(files['weights']), _tensors(tmp_path / 'out')
    assert before.keys() == after.keys() and all(value.dtype == torch.float32 for value in after.values())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, value in gradients.items() if value is not None}
    generator.save(tmp_path / 'trained.pth', 'trained')
    generator.save(tmp_path / 'own.pth', 'own')
    again = make(variant=variant)
    again.load(tmp_path / 'trained.pth')
    for other in (again, DiT4SR.from_file(tmp_path / 'own.pth'), make(tmp_path / 'out', variant=variant)):
        assert _same(other.network.state_dict(), generator.network.state_dict())


@pytest.mark.parametrize('inside', ['', 'dit4sr_q'])
def test_hub_id_of_a_repository_with_one_or_several_checkpoints(files, make, tmp_path, monkeypatch, inside):
    shutil.copytree(files['weights'], tmp_path / inside, dirs_exist_ok=True)
    asked = []

    def download(repository, allow_patterns, **options):
        asked.append((repository, allow_patterns))
        return tmp_path

    monkeypatch.setattr('huggingface_hub.snapshot_download', download)
    generator = make('/'.join(filter(None, ['acceptee/DiT4SR', inside])))
    assert asked == [('acceptee/DiT4SR', ['/'.join(filter(None, [inside, 'transformer/*']))])]
    assert _same(generator.network.state_dict(), _tensors(files['weights'], inert=False))


def test_every_wrong_key_in_one_error(files, make, tmp_path):
    shutil.copytree(files['weights'], tmp_path / 'bad')
    file = tmp_path / 'bad/transformer' / FILE
    tensors = load_file(file)
    del tensors['proj_out.bias'], tensors['transformer_blocks.2.ff.control_conv.weight']
    tensors['foo'], tensors['norm_out.linear.bias'] = torch.zeros(1), torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(ValueError) as error:
        make(tmp_path / 'bad')
    lines = {line.strip() for line in str(error.value).splitlines()[1:]}
    assert lines == {
        'missing: transformer.proj_out.bias',
        'missing: transformer.transformer_blocks.2.ff.control_conv.weight',
        'unexpected: transformer.foo',
        'shape: transformer.norm_out.linear.bias is (3,) in the file, (48,) in the model',
    }


def test_other_bad_files(files, make, tmp_path):
    with pytest.raises(FileNotFoundError, match='DiT4SR: no folder .*nowhere'):
        make(tmp_path / 'nowhere')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='DiT4SR: no file .*config.json'):
        make(tmp_path / 'empty')
    shutil.copytree(files['weights'], tmp_path / 'new')
    config = tmp_path / 'new/transformer/config.json'
    config.write_text(json.dumps({**json.loads(config.read_text()), 'num_layer': 3}))
    with pytest.raises(ValueError, match="does not take: .*num_layer; did you mean 'num_layers'"):
        make(tmp_path / 'new')
    make(variant='r1').save(tmp_path / 'r1.pth')
    with pytest.raises(ValueError, match="of variant 'r1', this DiT4SR is 'v1'"):
        make(tmp_path / 'r1.pth')


def test_bad_options(files):
    with pytest.raises(ValueError, match="'v1' or 'r1', got 'v2'"):
        DiT4SR('base', variant='v2')
    with pytest.raises(ValueError, match='eta = 0, .* got 1.0 and 64'):
        DiT4SR('base', eta=1.0)
    with pytest.raises(ValueError, match='even tile; got 0.0 and 63'):
        DiT4SR('base', tile=63)
    with pytest.raises(RuntimeError, match='call load'):
        DiT4SR(files['base']).condition(_lq())
    DiT4SR.check({'base': files['base']}, '$.generator')
    with pytest.raises(ConfigError, match=r'\$.generator.base'):
        DiT4SR.check({'base': './nowhere'}, '$.generator')


def test_condition(make):
    generator = make(prompt='a cat', added_prompt='sharp', negative_prompt='dirty', t5=True)
    cond = generator.condition(lq := _lq(2))
    assert generator.prompts(cond) == ('a cat', 'a cat') and torch.equal(cond.lq_up, generator.upscaled(lq))
    for name, text in [('', 'a cat sharp'), ('negative_', 'dirty')]:
        tokens, pooled = generator.text([text, text])
        assert torch.equal(cond.tensors[f'{name}text'], tokens) and torch.equal(cond.tensors[f'{name}pooled'], pooled)
    moments = generator.vae.encode(generator.padded(cond.lq_up) * 2 - 1).latent_dist
    config = generator.vae.config
    expected = (moments.mean - config.shift_factor) * config.scaling_factor
    torch.testing.assert_close(cond.tensors['latent'], expected)
    other = generator.condition(lq, ['one', ''])
    assert generator.prompts(other) == ('one', '') and torch.equal(other.tensors['latent'], cond.tensors['latent'])
    assert torch.equal(other.tensors['text'], generator.text(['one sharp', 'sharp'])[0])
    with pytest.raises(ValueError, match='2 images need as many prompts, got 1'):
        generator.condition(lq, ['one'])


@pytest.mark.parametrize('height, width', [(12, 16), (9, 13), (3, 30)])
def test_sr_is_four_times_lq(make, height, width):
    generator = make(guidance=2.0)
    cond = generator.condition(lq := _lq(1, height, width))
    assert all(side % 2 == 0 for side in generator.latent_shape(cond)[1:])
    sr = super_resolve(generator, lq, _noise(generator, cond))
    assert sr.shape == (1, 3, 4 * height, 4 * width) and 0 <= sr.min() and sr.max() <= 1


def test_sampler_starts_from_noise_and_ends_clean(make):
    generator = make()
    cond = generator.condition(_lq(1))
    noise = _noise(generator, cond)
    trajectory = rollout(generator, cond, noise)
    assert trajectory.timesteps[0] == 1000 and torch.equal(trajectory.latents[0], noise)
    before, t = trajectory.latents[-2], float(trajectory.timesteps[-1])
    out = generator.predict(before, t, cond)
    torch.testing.assert_close(trajectory.latents[-1], before - t / 1000 * out)
    assert DiT4SR('base').steps.shape == (40,)


def test_guidance_by_hand(make):
    generator = make()
    cond = generator.condition(_lq(1))
    x, t = _noise(generator, cond), torch.tensor([700.0])
    outs = [
        generator.network(x, t, cond.tensors[f'{n}text'], cond.tensors[f'{n}pooled'], cond.tensors['latent'], 1.2)
        for n in ('', 'negative_')
    ]
    torch.testing.assert_close(generator.predict(x, 700.0, cond), outs[0])
    expected = outs[1] + 8.0 * (outs[0] - outs[1])
    torch.testing.assert_close(generator.predict(x, 700.0, cond, guidance=8.0), expected, atol=1e-4, rtol=1e-4)


def test_a_sample_does_not_depend_on_its_batch(make):
    generator = make(guidance=2.0)
    lq = _lq(3)
    noise = _noise(generator, generator.condition(lq))
    whole = super_resolve(generator, lq, noise)
    for i in range(3):
        alone = super_resolve(make(guidance=2.0), lq[i : i + 1], noise[i : i + 1])
        torch.testing.assert_close(alone[0], whole[i], atol=1e-5, rtol=1e-5)


def test_pretrain_loss_by_hand_with_the_factor_of_the_training(make):
    generator = make(train_control_scale=1.0)
    cond = generator.condition(_lq(2))
    gt, noise, t = torch.rand_like(cond.lq_up), _noise(generator, cond), torch.tensor([750.0, 100.0])
    loss = generator.pretrain_loss(gt, cond, noise, t)
    z, sigma = generator.encode(gt, cond), (t / 1000).reshape(2, 1, 1, 1)
    z_t = (1 - sigma) * z + sigma * noise
    tensors = cond.tensors
    out = generator.network(z_t, t, tensors['text'], tensors['pooled'], tensors['latent'], 1.0)
    expected = (out * (-sigma) + z_t - z).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(loss, make(train_control_scale=1.2).pretrain_loss(gt, cond, noise, t), rtol=1e-3)


def test_drawn_timesteps_are_logit_normal():
    generator, rng = DiT4SR('base'), torch.Generator().manual_seed(0)
    t = torch.stack([generator.draw_t(rng) for _ in range(4000)])
    assert t.shape == (4000,) and 0 < t.min() and t.max() <= 1000
    sigma = t / 1000
    place = 1 - sigma / (3 - 2 * sigma)  # the shift undone
    normal = torch.logit(place.clamp(1e-4, 1 - 1e-4))
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05


@pytest.mark.parametrize('choice', ['released', 'lora'])
def test_gradients_with_and_without_checkpointing(make, choice):
    found = {}
    for checkpointing in (True, False):
        generator = make(variant='r1', checkpointing=checkpointing)
        for value in generator.trainable(choice, rank=2).values():
            if choice == 'lora':
                torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(0))
        assert generator.network.transformer.is_gradient_checkpointing == checkpointing
        found[checkpointing] = _gradients(generator)
    assert found[True].keys() == found[False].keys() and found[True]
    for name, value in found[False].items():
        assert value.any(), name
        assert (found[True][name] - value).abs().max() <= 1e-5 * value.abs().max(), name


def test_lora_adapts_what_control_trains_and_is_merged(files, make, tmp_path):
    generator = make(variant='r1')
    cond = generator.condition(_lq())
    x = _noise(generator, cond)
    before = generator.predict(x, 500.0, cond)
    chosen = generator.trainable('lora', rank=2, alpha=4.0)
    assert chosen and all('_control.lora_' in name for name in chosen)
    torch.testing.assert_close(generator.predict(x, 500.0, cond), before)
    _step(generator)
    after = generator.predict(x, 500.0, cond).detach()
    assert (after - before).abs().max() > 1e-3
    with generator.reference():
        torch.testing.assert_close(generator.predict(x, 500.0, cond), before)
    generator.save(tmp_path / 'merged', 'original')
    torch.testing.assert_close(
        make(tmp_path / 'merged', variant='r1').predict(x, 500.0, cond), after, atol=1e-4, rtol=1e-4
    )
    old, new = _tensors(files['weights']), _tensors(tmp_path / 'merged')
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {name.partition('.lora_')[0] + '.weight' for name in chosen}
    generator.save(tmp_path / 'trained.pth', 'trained')
    again = make(variant='r1')
    again.load(tmp_path / 'trained.pth')
    torch.testing.assert_close(again.predict(x, 500.0, cond), after)


def test_reference_is_the_start(make):
    generator = make(variant='r1')
    cond = generator.condition(_lq())
    x = _noise(generator, cond)
    start = generator.predict(x, 500.0, cond)
    generator.trainable()
    _step(generator)
    assert (generator.predict(x, 500.0, cond) - start).abs().max() > 1e-3
    with generator.reference():
        torch.testing.assert_close(generator.predict(x, 500.0, cond), start)


def test_frozen_weights_in_bfloat16(files, make, tmp_path):
    generator = make(variant='r1')
    generator.trainable()
    expected = generator.predict(_noise(generator, cond := generator.condition(_lq())), 500.0, cond).detach()
    cast_frozen(generator)
    with torch.autocast('cpu', torch.bfloat16):
        out = generator.predict(_noise(generator, cond), 500.0, cond)
        assert out.dtype == torch.float32 and (out - expected).abs().max() < 0.1 * expected.abs().max()
        gradients = _gradients(generator)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in gradients.values())
    generator.save(tmp_path / 'out', 'original')
    assert _same(_tensors(tmp_path / 'out'), _tensors(files['weights']))


def test_tiles_of_a_pointwise_network_change_nothing(make, monkeypatch):
    generator = make(tile=8, tile_overlap=4)
    cond = generator.condition(_lq(1, 22, 30))
    x, seen = _noise(generator, cond), []

    def run(x_t, t, part):
        seen.append(tuple(x_t.shape[-2:]))
        return x_t * 2 + part.tensors['latent'] + part.tensors['pooled'].mean()

    monkeypatch.setattr(generator, 'run', run)
    tiled = generator.predict(x, 500.0, cond, guidance=3.0)
    assert set(seen) == {(8, 8)}
    generator.tile = 0
    torch.testing.assert_close(tiled, generator.predict(x, 500.0, cond, guidance=3.0), atol=1e-4, rtol=1e-4)
    assert seen[-1] == generator.latent_shape(cond)[1:]


def test_sampling_in_tiles_is_the_closer_the_more_they_see(make):
    generator = make(guidance=1.0)
    cond = generator.condition(_lq(1, 24, 32))  # 12 x 16 cells
    noise, found = _noise(generator, cond), {}
    for tile in (0, 12, 8):
        generator.tile, generator.tile_overlap = tile, 6
        found[tile] = rollout(generator, cond, noise).latents[-1]
    large, small = ((found[tile] - found[0]).norm() / found[0].norm() for tile in (12, 8))
    assert 0 < large < small < 0.3


def test_texts_on_the_cpu(make):
    generator = make(t5=True, text_on_cpu=True)
    assert not any(name.startswith('text.') for name in generator.state_dict())
    expected = make(t5=True).condition(_lq()).tensors['text']
    assert torch.equal(generator.condition(_lq()).tensors['text'], expected)
