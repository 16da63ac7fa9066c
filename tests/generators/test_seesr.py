"""SeeSR as a generator, on a tiny random checkpoint in the released layout: files, condition, training, tiles."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip('diffusers')
from safetensors.torch import load_file, save_file  # noqa: E402

from finpercep_plugin.cli.tiny.seesr import seesr  # noqa: E402
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.generators.seesr import SeeSR, drops_text  # noqa: E402
from finpercep_plugin.rollout import rollout, step_x0, super_resolve  # noqa: E402

FILE = 'diffusion_pytorch_model.safetensors'
PARTS = ('unet', 'controlnet')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return seesr(tmp_path_factory.mktemp('seesr'), seed=3)


@pytest.fixture
def make(files):
    """make(weights=..., **options) -> a loaded SeeSR."""

    def build(weights=None, **options):
        parts = {name: path for name, path in files.items() if name != 'weights'}
        generator = SeeSR(**parts, **{'steps': 4, **options})
        generator.load(weights or files['weights'])
        return generator

    return build


def _lq(batch=2, height=12, width=20, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def _noise(generator, cond, seed=1):
    shape = (len(cond), *generator.latent_shape(cond))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _tensors(folder):
    return {f'{part}.{k}': v for part in PARTS for k, v in load_file(Path(folder) / part / FILE).items()}


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _step(generator, lr=1e-2):
    """One optimiser step on the picture of step 2's clean latent; returns the gradients."""
    cond = generator.condition(_lq())
    x_t = _noise(generator, cond)
    sr = generator.decode(step_x0(generator, x_t, 2, cond, guidance=2.0), cond)
    parameters = {name: value for name, value in generator.network.named_parameters() if value.requires_grad}
    optimiser = torch.optim.Adam(parameters.values(), lr=lr)
    (sr * torch.linspace(0, 1, sr.shape[-1])).sum().backward()
    optimiser.step()
    return {name: value.grad for name, value in parameters.items()}


def test_loads_the_released_folder(files, make):
    generator = make()
    assert _same(generator.network.state_dict(), _tensors(files['weights']))
    assert not any(value.requires_grad for value in generator.parameters()) and not generator.training
    assert generator.train().training is False


@pytest.mark.parametrize('layout', ['bin', 'sharded'])
def test_loads_other_layouts_of_the_folder_and_rewrites_them(files, make, tmp_path, layout):
    folder, out = tmp_path / 'in', tmp_path / 'out'
    for part in PARTS:
        tensors, place = load_file(Path(files['weights']) / part / FILE), folder / part
        place.mkdir(parents=True)
        shutil.copy(Path(files['weights']) / part / 'config.json', place)
        if layout == 'bin':
            torch.save(tensors, place / 'diffusion_pytorch_model.bin')
            continue
        names = sorted(tensors)
        shards = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
        for file, members in shards.items():
            save_file({name: tensors[name] for name in members}, place / file, {'format': 'pt'})
        index = {'metadata': {}, 'weight_map': {name: file for file, members in shards.items() for name in members}}
        (place / f'{FILE}.index.json').write_text(json.dumps(index))
    generator = make(folder)
    assert _same(generator.network.state_dict(), _tensors(files['weights']))
    generator.save(out, 'original')
    written, there = (sorted(file.relative_to(top) for file in top.rglob('*.*')) for top in (out, folder))
    assert written == there
    assert _same(make(out).network.state_dict(), _tensors(files['weights']))


def test_round_trip_is_byte_equal(files, make, tmp_path):
    make().save(tmp_path, 'original')
    for part in PARTS:
        for file in (FILE, 'config.json'):
            assert (tmp_path / part / file).read_bytes() == (Path(files['weights']) / part / file).read_bytes()


def test_after_one_step_only_the_trained_names_differ(files, make, tmp_path):
    generator = make()
    chosen = generator.trainable()
    assert chosen and all(n.startswith('controlnet.') or '.image_attentions.' in n for n in chosen)
    _step(generator)
    generator.save(tmp_path / 'out', 'original')
    before, after = _tensors(files['weights']), _tensors(tmp_path / 'out')
    assert before.keys() == after.keys() and all(value.dtype == torch.float32 for value in after.values())
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(chosen)
    generator.save(tmp_path / 'trained.pth', 'trained')
    generator.save(tmp_path / 'own.pth', 'own')
    again = make()
    again.load(tmp_path / 'trained.pth')
    for other in (again, SeeSR.from_file(tmp_path / 'own.pth'), make(tmp_path / 'out')):
        assert _same(other.network.state_dict(), after)


def test_every_wrong_key_in_one_error(files, make, tmp_path):
    shutil.copytree(files['weights'], tmp_path / 'bad')
    for part, gone, extra in [('unet', 'conv_in.bias', 'foo'), ('controlnet', 'controlnet_mid_block.weight', 'bar')]:
        tensors = load_file(tmp_path / 'bad' / part / FILE)
        del tensors[gone]
        tensors[extra], tensors['time_embedding.linear_1.bias'] = torch.zeros(1), torch.zeros(3)
        save_file(tensors, tmp_path / 'bad' / part / FILE)
    with pytest.raises(ValueError) as error:
        make(tmp_path / 'bad')
    lines = [
        'missing: unet.conv_in.bias',
        'missing: controlnet.controlnet_mid_block.weight',
        'unexpected: unet.foo',
        'unexpected: controlnet.bar',
        'unet.time_embedding.linear_1.bias is (3,)',
        'controlnet.time_embedding.linear_1.bias is (3,)',
    ]
    assert [line for line in lines if line not in str(error.value)] == []


def test_what_is_not_there(files, make, tmp_path):
    with pytest.raises(FileNotFoundError, match='SeeSR: no folder .*nowhere'):
        make(tmp_path / 'nowhere')
    (tmp_path / 'unet').mkdir()
    with pytest.raises(FileNotFoundError, match='lacks controlnet'):
        make(tmp_path)
    with pytest.raises(ConfigError, match=r'generator\.dape: .*no\.pth'):
        SeeSR.check({**files, 'dape': str(tmp_path / 'no.pth')}, 'generator')
    with pytest.raises(RuntimeError, match=r'SeeSR has no networks yet: call load'):
        SeeSR('a', 'b', 'c', 'd', 'e').condition(_lq())
    with pytest.raises(ValueError, match='null_text is a chance, 0..1, got 2'):
        SeeSR('a', 'b', 'c', 'd', 'e', null_text=2)


def test_condition(make, monkeypatch):
    generator, lq, texts = make(prompt='a red car'), _lq(height=13), []
    monkeypatch.setattr(generator.text, 'tokenize', lambda ts, old=generator.text.tokenize: texts.extend(ts) or old(ts))
    cond = generator.condition(lq)
    tags, tokens = generator.tagger(lq)
    assert tags[0] and generator.prompts(cond) == tuple(f'{tag}, a red car' for tag in tags)
    assert texts == [f'{tag}, a red car,clean, high-resolution, 8k' for tag in tags] + [generator.negative_prompt]
    torch.testing.assert_close(cond.tensors['tokens'], tokens, atol=1e-5, rtol=1e-5)
    image = cond.tensors['image']
    assert image.shape == (2, 3, 56, 80) and torch.equal(image[:, :, :52], cond.lq_up)
    assert torch.equal(image[:, :, 52:], cond.lq_up[:, :, -1:].expand(-1, -1, 4, -1))
    expected = generator.vae.encode(image * 2 - 1).latent_dist.mean * 0.18215
    torch.testing.assert_close(cond.tensors['latent'], expected, atol=1e-5, rtol=1e-4)
    texts.clear()
    other = generator.condition(lq, ['', 'sea'])
    assert texts[0] == f'{tags[0]}, ,clean, high-resolution, 8k' and other.prompts == (tags[0], f'{tags[1]}, sea')
    with pytest.raises(ValueError, match='2 images need as many prompts, got 1'):
        generator.condition(lq, ['sea'])


def test_condition_is_remembered_and_does_not_depend_on_the_batch(make, monkeypatch):
    generator, lq = make(), _lq(3)
    whole = generator.condition(lq)
    fresh = make().condition(lq[1:2])
    monkeypatch.setattr(generator, 'tagger', None)
    again = generator.condition(lq[[2, 1]])
    for name, value in whole.tensors.items():
        assert torch.equal(value[[2, 1]], again.tensors[name]) and torch.equal(value[1:2], fresh.tensors[name])


def test_start_is_the_lq_with_noise_of_the_last_timestep(make):
    generator = make()
    cond = generator.condition(_lq())
    noise = _noise(generator, cond)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    level = float((1 - betas).prod())
    expected = level**0.5 * cond.tensors['latent'] + (1 - level) ** 0.5 * noise
    torch.testing.assert_close(generator.start(cond, noise), expected, atol=1e-5, rtol=1e-4)
    assert generator.timesteps(50)[[0, 1, -1]].tolist() == [981, 961, 1]


def test_text_is_dropped_for_half_of_the_samples():
    noise = torch.randn(4000, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for chance in (0.0, 0.5, 1.0):
        assert abs(drops_text(noise, chance).float().mean() - chance) <= 0.03
    lost = drops_text(noise, 0.5)
    assert noise[lost].mean().abs() < 4 / (256 * 2000) ** 0.5  # 4 standard errors
    assert torch.equal(drops_text(noise[10:12], 0.5), lost[10:12])


def test_pretrain_loss_is_the_error_of_eps_with_and_without_text(make):
    generator, lq = make(), _lq(6, 8, 8)
    cond, gt = generator.condition(lq), _lq(6, 32, 32, seed=2)
    noise, t = _noise(generator, cond), torch.tensor([1, 100, 300, 500, 700, 999])
    lost = drops_text(noise, 0.5)
    assert 0 < lost.sum() < 6
    text = generator.text(['' if gone else tags for gone, tags in zip(lost, generator.tagger(lq)[0])])
    latent = generator.vae.encode(gt * 2 - 1).latent_dist.mean * 0.18215
    a = generator.schedule.alphas[t][:, None, None, None]
    x_t = a.sqrt() * latent + (1 - a).sqrt() * noise
    eps = generator.network(x_t, t, text, cond.tensors['tokens'], cond.tensors['image'])
    expected = (eps - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(generator.pretrain_loss(gt, cond, noise, t), expected, atol=1e-5, rtol=1e-4)


def test_gradient_through_decode_with_and_without_checkpointing(make):
    grads = []
    for checkpointing in (False, True):
        generator = make(checkpointing=checkpointing)
        generator.trainable()
        grads.append(_step(generator))
    assert grads[0].keys() == grads[1].keys()
    for name, plain in grads[0].items():
        assert plain.abs().max() > 0, name
        assert (grads[1][name] - plain).abs().max() <= 1e-5 * plain.abs().max(), name


@pytest.mark.parametrize('choice', ['released', 'lora'])
def test_reference_is_the_starting_policy(make, tmp_path, choice):
    generator = make()
    chosen = generator.trainable(choice, rank=2, alpha=4.0)
    assert choice == 'released' or all('.lora_' in name for name in chosen)
    cond = generator.condition(_lq())
    x_t = _noise(generator, cond)
    with torch.no_grad():
        start = generator.predict(x_t, 500, cond, guidance=3.0)
        torch.enable_grad()(_step)(generator)
        after = generator.predict(x_t, 500, cond, guidance=3.0)
        with generator.reference():
            again = generator.predict(x_t, 500, cond, guidance=3.0)
        torch.testing.assert_close(again, start, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(after, start, atol=1e-3)
        generator.save(tmp_path / 'out', 'original')  # a LoRA is merged
        merged = make(tmp_path / 'out').predict(x_t, 500, cond, guidance=3.0)
    torch.testing.assert_close(merged, after, atol=1e-4, rtol=1e-3)


def test_lora_is_on_the_released_modules_alone(files, make, tmp_path):
    generator = make()
    generator.trainable('lora', rank=2, alpha=4.0)
    _step(generator)
    generator.save(tmp_path / 'out', 'original')
    before, after = _tensors(files['weights']), _tensors(tmp_path / 'out')
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    released = set(make().trainable())
    assert changed == {name for name in released if name.endswith('weight') and before[name].ndim > 1}


def test_tiles_agree_with_the_whole(make):
    """Random networks are far less local than trained ones; what is left falls as tiles grow, and is 0 at one tile."""
    generator, lq = make(color_fix='none'), torch.nn.functional.interpolate(_lq(1, 8, 8), (64, 64), mode='bilinear')
    cond = generator.condition(lq)
    noise = _noise(generator, cond)
    draws = {k: _noise(generator, cond, seed=k + 10) for k in range(2)}

    def sample(tile, overlap):
        generator.tile, generator.tile_overlap = tile, overlap
        latent = rollout(generator, cond, noise, steps=2, draw=draws.__getitem__).latents[-1]
        return generator.decode(latent, cond)

    whole = sample(0, 0)
    errors = [((sample(*tile) - whole).std() / whole.std()).item() for tile in [(16, 8), (24, 12)]]
    assert errors[0] > errors[1] and errors[1] < 0.1
    assert torch.equal(sample(32, 4), whole)


def test_super_resolve_any_size_and_under_autocast(make):
    generator, lq = make(), _lq(1, 11, 17)
    noise = _noise(generator, generator.condition(lq))
    draws = {k: _noise(generator, generator.condition(lq), seed=k) for k in range(4)}
    sr = super_resolve(generator, lq, noise, draw=draws.__getitem__)
    assert sr.shape == (1, 3, 44, 68) and sr.min() >= 0 and sr.max() <= 1 and sr.std() > 0.05
    with torch.autocast('cpu', torch.bfloat16):
        cond = make().condition(lq)
        out = generator.predict(noise, 500, cond)
    assert out.dtype == torch.float32
    expected = generator.predict(noise, 500, generator.condition(lq))
    assert (out - expected).std() < 0.1 * expected.std()
