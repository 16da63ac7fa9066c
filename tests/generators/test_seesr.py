"""SeeSR's own: layouts of its folder, tags and texts, start, training loss. The rest: `test_released_generators.py`."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip('diffusers')
from safetensors.torch import load_file, save_file  # noqa: E402

from finpercep_plugin.generators.seesr import SeeSR, drops_text  # noqa: E402

NAME = 'SeeSR'
FILE = 'diffusion_pytorch_model.safetensors'
PARTS = ('unet', 'controlnet')


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize('layout', ['bin', 'sharded'])
def test_loads_other_layouts_of_the_folder_and_rewrites_them(made, tmp_path, layout):
    folder, out = tmp_path / 'in', tmp_path / 'out'
    for part in PARTS:
        tensors, place = load_file(Path(made.files['weights']) / part / FILE), folder / part
        place.mkdir(parents=True)
        shutil.copy(Path(made.files['weights']) / part / 'config.json', place)
        if layout == 'bin':
            torch.save(tensors, place / 'diffusion_pytorch_model.bin')
            continue
        names = sorted(tensors)
        shards = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
        for file, members in shards.items():
            save_file({name: tensors[name] for name in members}, place / file, {'format': 'pt'})
        index = {'metadata': {}, 'weight_map': {name: file for file, members in shards.items() for name in members}}
        (place / f'{FILE}.index.json').write_text(json.dumps(index))
    generator = made.make(folder)
    assert _same(generator.network.state_dict(), made.tensors(made.files['weights']))
    generator.save(out, 'original')
    written, there = (sorted(file.relative_to(top) for file in top.rglob('*.*')) for top in (out, folder))
    assert written == there
    assert _same(made.make(out).network.state_dict(), made.tensors(made.files['weights']))


def test_every_wrong_key_in_one_error(made, tmp_path):
    shutil.copytree(made.files['weights'], tmp_path / 'bad')
    for part, gone, extra in [('unet', 'conv_in.bias', 'foo'), ('controlnet', 'controlnet_mid_block.weight', 'bar')]:
        tensors = load_file(tmp_path / 'bad' / part / FILE)
        del tensors[gone]
        tensors[extra], tensors['time_embedding.linear_1.bias'] = torch.zeros(1), torch.zeros(3)
        save_file(tensors, tmp_path / 'bad' / part / FILE)
    with pytest.raises(ValueError) as error:
        made.make(tmp_path / 'bad')
    lines = [
        'missing: unet.conv_in.bias',
        'missing: controlnet.controlnet_mid_block.weight',
        'unexpected: unet.foo',
        'unexpected: controlnet.bar',
        'unet.time_embedding.linear_1.bias is (3,)',
        'controlnet.time_embedding.linear_1.bias is (3,)',
    ]
    assert [line for line in lines if line not in str(error.value)] == []


def test_what_is_not_there(made, tmp_path):
    (tmp_path / 'unet').mkdir()
    with pytest.raises(FileNotFoundError, match='lacks controlnet'):
        made.make(tmp_path)
    with pytest.raises(ValueError, match='null_text is a chance, 0..1, got 2'):
        SeeSR('a', 'b', 'c', 'd', 'e', null_text=2)


def test_condition(made, monkeypatch):
    generator, lq, texts = made.make(prompt='a red car'), made.lq(2, 13, 20), []
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


def test_start_is_the_lq_with_noise_of_the_last_timestep(made):
    generator = made.make()
    cond = generator.condition(made.lq())
    noise = made.noise(generator, cond)
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


def test_pretrain_loss_is_the_error_of_eps_with_and_without_text(made):
    generator, lq = made.make(), made.lq(6, 8, 8)
    cond, gt = generator.condition(lq), made.lq(6, 32, 32, seed=2)
    noise, t = made.noise(generator, cond), torch.tensor([1, 100, 300, 500, 700, 999])
    lost = drops_text(noise, 0.5)
    assert 0 < lost.sum() < 6
    text = generator.text(['' if gone else tags for gone, tags in zip(lost, generator.tagger(lq)[0])])
    latent = generator.vae.encode(gt * 2 - 1).latent_dist.mean * 0.18215
    a = generator.schedule.alphas[t][:, None, None, None]
    x_t = a.sqrt() * latent + (1 - a).sqrt() * noise
    eps = generator.network(x_t, t, text, cond.tensors['tokens'], cond.tensors['image'])
    expected = (eps - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(generator.pretrain_loss(gt, cond, noise, t), expected, atol=1e-5, rtol=1e-4)
