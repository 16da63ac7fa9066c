"""DiT4SR's own: its folder, texts, guidance, training loss. The rest: `test_released_generators.py`."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from safetensors.torch import load_file, save_file  # noqa: E402

from finpercep_plugin.generators.dit4sr import DiT4SR  # noqa: E402
from finpercep_plugin.rollout import rollout, super_resolve  # noqa: E402

NAME = 'DiT4SR'
FILE = 'diffusion_pytorch_model.safetensors'


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_inert_tensors_are_left_out_and_the_folder_may_be_the_transformers(made):
    generator = made.make()
    assert len(made.tensors(made.files['weights'])) - len(generator.network.state_dict()) == 20
    assert _same(
        made.make(Path(made.files['weights']) / 'transformer').network.state_dict(), generator.network.state_dict()
    )


def test_round_trip_of_the_transformers_folder_is_byte_equal(made, tmp_path):
    made.make(Path(made.files['weights']) / 'transformer').save(tmp_path / 'b', 'original')
    for name in (FILE, 'config.json'):
        expected = (Path(made.files['weights']) / 'transformer' / name).read_bytes()
        assert (tmp_path / 'b' / name).read_bytes() == expected


def test_half_precision_in_shards(made, tmp_path):
    folder, out = tmp_path / 'in', tmp_path / 'out'
    shutil.copytree(made.files['weights'], folder)
    tensors = {name: value.half() for name, value in load_file(folder / 'transformer' / FILE).items()}
    (folder / 'transformer' / FILE).unlink()
    names = sorted(tensors)
    shards = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
    for file, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / 'transformer' / file, {'format': 'pt'})
    index = {'metadata': {}, 'weight_map': {name: file for file, members in shards.items() for name in members}}
    (folder / 'transformer' / f'{FILE}.index.json').write_text(json.dumps(index))
    generator = made.make(folder)
    assert all(value.dtype == torch.float32 for value in generator.network.parameters())
    generator.trainable(['*.1.ff.control_conv.weight'])
    made.step(generator)
    generator.save(out, 'original')
    written = {k: v for file in shards for k, v in load_file(out / 'transformer' / file).items()}
    changed = {name for name, value in tensors.items() if written[name].dtype != value.dtype}
    assert written.keys() == tensors.keys() and changed == {'transformer_blocks.1.ff.control_conv.weight'}
    assert all(torch.equal(value, written[name]) for name, value in tensors.items() if name not in changed)


@pytest.mark.parametrize('inside', ['', 'dit4sr_q'])
def test_hub_id_of_a_repository_with_one_or_several_checkpoints(made, tmp_path, monkeypatch, inside):
    shutil.copytree(made.files['weights'], tmp_path / inside, dirs_exist_ok=True)
    asked = []

    def download(repository, allow_patterns, **options):
        asked.append((repository, allow_patterns))
        return tmp_path

    monkeypatch.setattr('huggingface_hub.snapshot_download', download)
    generator = made.make('/'.join(filter(None, ['acceptee/DiT4SR', inside])))
    assert asked == [('acceptee/DiT4SR', ['/'.join(filter(None, [inside, 'transformer/*']))])]
    assert _same(generator.network.state_dict(), made.make().network.state_dict())


def test_every_wrong_key_in_one_error(made, tmp_path):
    shutil.copytree(made.files['weights'], tmp_path / 'bad')
    file = tmp_path / 'bad/transformer' / FILE
    tensors = load_file(file)
    del tensors['proj_out.bias'], tensors['transformer_blocks.2.ff.control_conv.weight']
    tensors['foo'], tensors['norm_out.linear.bias'] = torch.zeros(1), torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(ValueError) as error:
        made.make(tmp_path / 'bad')
    lines = {line.strip() for line in str(error.value).splitlines()[1:]}
    assert lines == {
        'missing: transformer.proj_out.bias',
        'missing: transformer.transformer_blocks.2.ff.control_conv.weight',
        'unexpected: transformer.foo',
        'shape: transformer.norm_out.linear.bias is (3,) in the file, (48,) in the model',
    }


def test_other_bad_files(made, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='DiT4SR: no file .*config.json'):
        made.make(tmp_path / 'empty')
    shutil.copytree(made.files['weights'], tmp_path / 'new')
    config = tmp_path / 'new/transformer/config.json'
    config.write_text(json.dumps({**json.loads(config.read_text()), 'num_layer': 3}))
    with pytest.raises(ValueError, match="does not take: .*num_layer; did you mean 'num_layers'"):
        made.make(tmp_path / 'new')
    made.make(variant='r1').save(tmp_path / 'r1.pth')
    with pytest.raises(ValueError, match="of variant 'r1', this DiT4SR is 'v1'"):
        made.make(tmp_path / 'r1.pth')


def test_bad_options():
    with pytest.raises(ValueError, match="'v1' or 'r1', got 'v2'"):
        DiT4SR('base', variant='v2')
    with pytest.raises(ValueError, match='eta = 0, .* got 1.0 and 64'):
        DiT4SR('base', eta=1.0)
    with pytest.raises(ValueError, match='even tile; got 0.0 and 63'):
        DiT4SR('base', tile=63)


def test_condition(made):
    generator = made.make(prompt='a cat', added_prompt='sharp', negative_prompt='dirty', t5=True)
    cond = generator.condition(lq := made.lq(2))
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


def test_sampler_starts_from_noise_and_ends_clean(made):
    generator = made.make()
    cond = generator.condition(made.lq(1))
    noise = made.noise(generator, cond)
    trajectory = rollout(generator, cond, noise)
    assert trajectory.timesteps[0] == 1000 and torch.equal(trajectory.latents[0], noise)
    before, t = trajectory.latents[-2], float(trajectory.timesteps[-1])
    out = generator.predict(before, t, cond)
    torch.testing.assert_close(trajectory.latents[-1], before - t / 1000 * out)
    assert DiT4SR('base').steps.shape == (40,)


def test_guidance_by_hand(made):
    generator = made.make()
    cond = generator.condition(made.lq(1))
    x, t = made.noise(generator, cond), torch.tensor([700.0])
    outs = [
        generator.network(x, t, cond.tensors[f'{n}text'], cond.tensors[f'{n}pooled'], cond.tensors['latent'], 1.2)
        for n in ('', 'negative_')
    ]
    torch.testing.assert_close(generator.predict(x, 700.0, cond), outs[0])
    expected = outs[1] + 8.0 * (outs[0] - outs[1])
    torch.testing.assert_close(generator.predict(x, 700.0, cond, guidance=8.0), expected, atol=1e-4, rtol=1e-4)


def test_a_sample_does_not_depend_on_its_batch(made):
    generator = made.make(guidance=2.0)
    lq = made.lq(3)
    noise = made.noise(generator, generator.condition(lq))
    whole = super_resolve(generator, lq, noise)
    for i in range(3):
        alone = super_resolve(made.make(guidance=2.0), lq[i : i + 1], noise[i : i + 1])
        torch.testing.assert_close(alone[0], whole[i], atol=1e-5, rtol=1e-5)


def test_pretrain_loss_by_hand_with_the_factor_of_the_training(made):
    generator = made.make(train_control_scale=1.0)
    cond = generator.condition(made.lq(2))
    gt, noise, t = torch.rand_like(cond.lq_up), made.noise(generator, cond), torch.tensor([750.0, 100.0])
    loss = generator.pretrain_loss(gt, cond, noise, t)
    z, sigma = generator.encode(gt, cond), (t / 1000).reshape(2, 1, 1, 1)
    z_t = (1 - sigma) * z + sigma * noise
    tensors = cond.tensors
    out = generator.network(z_t, t, tensors['text'], tensors['pooled'], tensors['latent'], 1.0)
    expected = (out * (-sigma) + z_t - z).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(loss, made.make(train_control_scale=1.2).pretrain_loss(gt, cond, noise, t), rtol=1e-3)


def test_drawn_timesteps_are_logit_normal():
    generator, rng = DiT4SR('base'), torch.Generator().manual_seed(0)
    t = torch.stack([generator.draw_t(rng) for _ in range(4000)])
    assert t.shape == (4000,) and 0 < t.min() and t.max() <= 1000
    sigma = t / 1000
    place = 1 - sigma / (3 - 2 * sigma)  # the shift undone
    normal = torch.logit(place.clamp(1e-4, 1 - 1e-4))
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05


def test_sampling_in_tiles_is_the_closer_the_more_they_see(made):
    generator = made.make(guidance=1.0)
    cond = generator.condition(made.lq(1, 24, 32))  # 12 x 16 cells
    noise, found = made.noise(generator, cond), {}
    for tile in (0, 12, 8):
        generator.tile, generator.tile_overlap = tile, 6
        found[tile] = rollout(generator, cond, noise).latents[-1]
    large, small = ((found[tile] - found[0]).norm() / found[0].norm() for tile in (12, 8))
    assert 0 < large < small < 0.3


def test_a_lora_in_the_trained_layout(made, tmp_path):
    generator = made.make(variant='r1')
    generator.trainable('lora', rank=2, alpha=4.0)
    made.step(generator)
    generator.save(tmp_path / 'trained.pth', 'trained')
    again = made.make(variant='r1')
    again.load(tmp_path / 'trained.pth')
    x = made.noise(generator, cond := generator.condition(made.lq()))
    torch.testing.assert_close(again.predict(x, 500.0, cond), generator.predict(x, 500.0, cond))


def test_texts_on_the_cpu(made):
    generator = made.make(t5=True, text_on_cpu=True)
    assert not any(name.startswith('text.') for name in generator.state_dict())
    expected = made.make(t5=True).condition(made.lq()).tensors['text']
    assert torch.equal(generator.condition(made.lq()).tensors['text'], expected)
