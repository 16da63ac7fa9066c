"""DiffBIR as a generator, on a tiny random checkpoint in the released layout: files, condition, training, tiles."""

import numpy as np
import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('spandrel')
from finpercep_plugin.archs.ldm_keys import controlnet_keys  # noqa: E402
from finpercep_plugin.cli.tiny.diffbir import diffbir  # noqa: E402
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.generators.color_fix import wavelet_reconstruction  # noqa: E402
from finpercep_plugin.generators.diffbir import DiffBIR  # noqa: E402
from finpercep_plugin.rollout import rollout, step_x0, super_resolve  # noqa: E402


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return diffbir(tmp_path_factory.mktemp('diffbir'), seed=3)


@pytest.fixture
def make(files):
    """make(weights=..., **options) -> a loaded DiffBIR."""

    def build(weights=None, **options):
        parts = {name: path for name, path in files.items() if name != 'weights'}
        generator = DiffBIR(**{**parts, 'steps': 4, **options})
        generator.load(weights or files['weights'])
        return generator

    return build


def _lq(batch=2, height=12, width=16, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def _noise(generator, cond, seed=1):
    shape = (len(cond), *generator.latent_shape(cond))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _read(file):
    return torch.load(file, weights_only=True)


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


def test_loads_the_released_files(files, make):
    generator, control = make(), _read(files['weights'])
    state = generator.network.state_dict()
    keys = controlnet_keys(generator.network.controlnet.state_dict())
    assert sorted(keys.values()) == sorted(control)
    assert all(torch.equal(state[f'controlnet.{name}'], control[key]) for name, key in keys.items())
    base = _read(files['base'])['state_dict']
    for ours, theirs in {
        'unet.up_blocks.2.resnets.0.conv1.weight': 'model.diffusion_model.output_blocks.4.0.in_layers.2.weight',
        'unet.mid_block.attentions.0.proj_in.bias': 'model.diffusion_model.middle_block.1.proj_in.bias',
    }.items():
        assert torch.equal(state[ours], base[theirs])
    assert torch.equal(
        generator.vae.decoder.mid_block.attentions[0].to_v.weight,
        base['first_stage_model.decoder.mid.attn_1.v.weight'][..., 0, 0],
    )
    assert not any(value.requires_grad for value in generator.parameters()) and not generator.training
    assert generator.train().training is False


def test_round_trip_is_equal(files, make, tmp_path):
    make().save(tmp_path / 'out.pth', 'original')
    before, after = _read(files['weights']), _read(tmp_path / 'out.pth')
    assert list(before) == list(after)
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert np.array_equal(value.numpy().view(np.uint8), after[name].numpy().view(np.uint8)), name


def test_a_file_behind_state_dict_and_module_is_rewritten_in_its_own_layout(files, make, tmp_path):
    wrapped = {f'module.{name}': value for name, value in _read(files['weights']).items()}
    torch.save({'step': 7, 'state_dict': wrapped}, tmp_path / 'in.pt')
    make(tmp_path / 'in.pt').save(tmp_path / 'out.pt', 'original')
    again = _read(tmp_path / 'out.pt')
    assert again['step'] == 7 and again['state_dict'].keys() == wrapped.keys()
    assert all(torch.equal(value, wrapped[name]) for name, value in again['state_dict'].items())


def test_after_one_step_only_the_trained_names_differ(files, make, tmp_path):
    generator = make()
    chosen = generator.trainable()
    assert chosen and all(name.startswith('controlnet.') for name in chosen)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    _step(generator)
    changed = {name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f'network.{name}' for name in chosen}
    generator.save(tmp_path / 'out.pth', 'original')
    old, new = _read(files['weights']), _read(tmp_path / 'out.pth')
    keys = controlnet_keys(generator.network.controlnet.state_dict())
    assert sorted(keys.values()) == sorted(name for name in old if not torch.equal(old[name], new[name]))
    generator.save(tmp_path / 'trained.pth', 'trained')
    generator.save(tmp_path / 'own.pth', 'own')
    again = make()
    again.load(tmp_path / 'trained.pth')
    for other in (again, DiffBIR.from_file(tmp_path / 'own.pth'), make(tmp_path / 'out.pth')):
        own = other.network.state_dict()
        assert all(torch.equal(value, own[name]) for name, value in generator.network.state_dict().items())


def test_a_trained_unet_has_no_place_in_the_original_layout(make, tmp_path):
    generator = make()
    generator.trainable(['unet.conv_out.*'])
    with pytest.raises(ValueError, match="holds the ControlNet alone, and the UNet is trained: save 'own'"):
        generator.save(tmp_path / 'out.pth', 'original')
    assert not (tmp_path / 'out.pth').exists()


def test_every_wrong_key_of_both_files_in_one_error(files, make, tmp_path):
    control, base = _read(files['weights']), _read(files['base'])
    del control['zero_convs.2.0.bias'], base['state_dict']['model.diffusion_model.out.0.bias']
    control['time_embed.0.bias'], control['hint.weight'] = torch.zeros(3), torch.zeros(1)
    text = 'cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias'
    base['state_dict'][text] = torch.zeros(7)
    base['state_dict']['first_stage_model.extra'] = torch.zeros(1)
    del base['state_dict']['first_stage_model.encoder.mid.attn_1.q.weight']
    torch.save(control, tmp_path / 'control.pth')
    torch.save(base, tmp_path / 'base.ckpt')
    with pytest.raises(ValueError) as error:
        make(tmp_path / 'control.pth', base=str(tmp_path / 'base.ckpt'))
    lines = str(error.value).splitlines()
    for line in (
        'missing: zero_convs.2.0.bias',
        'unexpected: hint.weight',
        'missing: model.diffusion_model.out.0.bias',
        'missing: first_stage_model.encoder.mid.attn_1.q.weight',
        'unexpected: first_stage_model.extra',
        f'shape: {text} is (7,) in the file, (48,) in the model',
    ):
        assert f'  {line}' in lines, line
    assert any(line.startswith('  shape: time_embed.0.bias is (3,)') for line in lines)
    assert len(lines) == 9  # these 7 and the two files' names


def test_what_is_not_there_or_does_not_fit(files, make, tmp_path):
    with pytest.raises(FileNotFoundError, match='DiffBIR: no checkpoint .*nowhere'):
        make(tmp_path / 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match="DiffBIR's base: no checkpoint .*nowhere"):
        make(base=str(tmp_path / 'nowhere.ckpt'))
    with pytest.raises(ConfigError, match=r'generator\.cleaner: file or folder not found'):
        DiffBIR.check({**files, 'cleaner': str(tmp_path / 'no.pth')}, 'generator')
    with pytest.raises(RuntimeError, match='DiffBIR has no networks yet: call load'):
        DiffBIR('a').condition(_lq())
    with pytest.raises(ValueError, match=r'swinir\.pth: no tensor zero_convs\.0\.0\.weight in the checkpoint'):
        make(files['cleaner'])
    with pytest.raises(ValueError, match='parameterization must be'):
        DiffBIR('a', parameterization='x0')
    with pytest.raises(ValueError, match="zero_snr needs parameterization 'v'"):
        DiffBIR('a', zero_snr=True)
    with pytest.raises(ValueError, match=r'sampling steps must be 2\.\.1000, got 1'):
        DiffBIR('a', steps=1)


def test_a_controlnet_of_another_unet(files, make, tmp_path):
    control = _read(files['weights'])
    control['input_blocks.0.0.weight'] = control['input_blocks.0.0.weight'][:, :4]
    torch.save(control, tmp_path / 'control.pth')
    with pytest.raises(ValueError, match=r'(?s)does not fit the UNet.*in_channels is 4, the UNet asks for 8'):
        make(tmp_path / 'control.pth')


@pytest.mark.parametrize('steps', [2, 21, 31, 43, 50])
def test_timesteps_round_a_running_sum(steps):
    """guided-diffusion's spacing of one section: ties are decided by the sum's error, not by the exact value."""
    at, expected = 0.0, []
    for _ in range(steps):
        expected.append(round(at))
        at += 999 / (steps - 1)
    assert DiffBIR('a', steps=steps).steps.tolist() == expected[::-1]


def test_schedules():
    plain, zero = DiffBIR('a'), DiffBIR('a', parameterization='v', zero_snr=True)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    root = np.cumprod(1 - betas) ** 0.5
    rescaled = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    np.testing.assert_allclose(plain.schedule.alphas, root**2, rtol=1e-5)
    np.testing.assert_allclose(zero.schedule.alphas, rescaled, rtol=1e-4, atol=1e-9)
    assert float(zero.schedule.alphas[-1]) == 0 and (plain.prediction, zero.prediction) == ('eps', 'v')


def test_condition(make, monkeypatch):
    generator, lq, texts = make(prompt='sharp'), _lq(height=13), []
    monkeypatch.setattr(generator.text, 'tokenize', lambda ts, old=generator.text.tokenize: texts.extend(ts) or old(ts))
    cond = generator.condition(lq, ['a red car', ''])
    assert cond.prompts == ('a red car, sharp', 'sharp') and texts == [*cond.prompts, generator.negative_prompt]
    assert generator.text.tokenize(['a cat, sitting'])[0, :6].tolist() == [49406, 320, 2368, 267, 4919, 49407]
    cleaned = generator.cleaner(cond.lq_up)
    torch.testing.assert_close(cond.tensors['cleaned'], cleaned, atol=1e-5, rtol=1e-4)
    padded = torch.cat([cleaned, cleaned[:, :, -1:].expand(-1, -1, 4, -1)], dim=2)
    assert padded.shape == (2, 3, 56, 64)
    expected = generator.vae.encode(padded * 2 - 1).latent_dist.mode() * 0.18215
    torch.testing.assert_close(cond.tensors['latent'], expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match='2 images need as many prompts, got 1'):
        generator.condition(lq, ['sea'])


def test_condition_is_remembered_and_does_not_depend_on_the_batch(make, monkeypatch):
    generator, lq = make(), _lq(3)
    whole = generator.condition(lq)
    fresh = make().condition(lq[1:2])
    monkeypatch.setattr(generator, 'vae', None)
    again = generator.condition(lq[[2, 1]])
    for name, value in whole.tensors.items():
        assert torch.equal(value[[2, 1]], again.tensors[name]) and torch.equal(value[1:2], fresh.tensors[name])


def test_without_a_cleaner_the_upscaled_lq_is_taken(make):
    cond = make(cleaner=None).condition(_lq())
    assert torch.equal(cond.tensors['cleaned'], cond.lq_up)


@pytest.mark.parametrize('scale', [1, 2, 4])
def test_cleaners_of_any_scale(make, scale):
    """Scale 1 gets the upscaled lq; another gets lq, and its picture is resized where it has another size."""
    generator, lq, seen = make(), _lq(), []

    class Repeat(torch.nn.Module):
        def forward(self, image):
            seen.append(image)
            return image.repeat_interleave(scale, 2).repeat_interleave(scale, 3) * 0.5

    generator.cleaner = Repeat()
    generator.cleaner.scale = scale
    cleaned = generator.cleaned(lq)
    assert torch.equal(seen[0], generator.upscaled(lq) if scale == 1 else lq)
    assert cleaned.shape == (2, 3, 48, 64)
    if scale == 4:
        assert torch.equal(cleaned, lq.repeat_interleave(4, 2).repeat_interleave(4, 3) * 0.5)
    assert abs(cleaned.mean() - lq.mean() * 0.5) < 0.01


def test_colours_come_from_the_cleaned_picture(make):
    generator, lq = make(), _lq()
    cond = generator.condition(lq)
    latent = _noise(generator, cond)
    image = generator.pixels(latent, cond)  # beyond 0..1, as the original gives it to the colour fix
    assert image.max() > 1
    expected = wavelet_reconstruction(image[..., :48, :64], cond.tensors['cleaned']).clamp(0, 1)
    torch.testing.assert_close(generator.decode(latent, cond), expected, atol=1e-5, rtol=1e-4)


def test_start_is_noise(make):
    generator = make()
    cond = generator.condition(_lq())
    noise = _noise(generator, cond)
    assert torch.equal(generator.start(cond, noise), noise)


@pytest.mark.parametrize('options', [{}, {'parameterization': 'v', 'zero_snr': True}], ids=['eps', 'v'])
def test_pretrain_loss_is_the_error_of_the_prediction(make, options):
    generator, lq = make(strength=0.5, **options), _lq(3, 8, 8)
    cond, gt = generator.condition(lq), _lq(3, 32, 32, seed=2)
    noise, t = _noise(generator, cond), torch.tensor([1, 500, 999])
    latent = generator.vae.encode(gt * 2 - 1).latent_dist.mode() * 0.18215
    a = generator.schedule.alphas[t][:, None, None, None]
    x_t = a.sqrt() * latent + (1 - a).sqrt() * noise
    stacked, text = torch.cat([x_t, cond.tensors['latent']], 1), generator.text([''] * 3)
    skips, middle = generator.network.controlnet(stacked, t, text, stacked, return_dict=False)
    added = {
        'down_block_additional_residuals': [0.5 * skip for skip in skips],
        'mid_block_additional_residual': 0.5 * middle,
    }
    out = generator.network.unet(x_t, t, text, **added).sample
    target = a.sqrt() * noise - (1 - a).sqrt() * latent if options else noise
    expected = (out - target).square().mean((1, 2, 3))
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
    assert all(name.startswith('controlnet.') for name in chosen)
    assert choice == 'released' or all('.lora_' in name for name in chosen)
    cond = generator.condition(_lq())
    x_t = _noise(generator, cond)
    with torch.no_grad():
        start = generator.predict(x_t, 500, cond, guidance=3.0)
        torch.enable_grad()(_step)(generator)
        after = generator.predict(x_t, 500, cond, guidance=3.0)
        with generator.reference():
            again = generator.predict(x_t, 500, cond, guidance=3.0)
        torch.testing.assert_close(again, start, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(after, start, atol=1e-3)
        generator.save(tmp_path / 'out.pth', 'original')  # a LoRA is merged
        merged = make(tmp_path / 'out.pth').predict(x_t, 500, cond, guidance=3.0)
    torch.testing.assert_close(merged, after, atol=1e-4, rtol=1e-3)


def test_lora_changes_weights_of_the_controlnet_alone(files, make, tmp_path):
    generator = make()
    generator.trainable('lora', rank=2, alpha=4.0)
    _step(generator)
    generator.save(tmp_path / 'out.pth', 'original')
    before, after = _read(files['weights']), _read(tmp_path / 'out.pth')
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {name for name, value in before.items() if name.endswith('weight') and value.ndim > 1}
    assert 'zero_convs.0.0.weight' in changed and 'input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight' in changed


def test_tiles_agree_with_the_whole(make):
    """Random networks are far less local than trained ones; what is left falls as tiles grow, and is 0 at one tile."""
    generator, lq = make(), torch.nn.functional.interpolate(_lq(1, 8, 8), (64, 64), mode='bilinear')
    cond = generator.condition(lq)
    noise = _noise(generator, cond)
    draws = {k: _noise(generator, cond, seed=k + 10) for k in range(3)}

    def sample(tile, overlap):
        generator.tile, generator.tile_overlap = tile, overlap
        return rollout(generator, cond, noise, steps=3, guidance=2.0, draw=draws.__getitem__).latents[-1]

    whole = sample(0, 0)
    errors = [((sample(*tile) - whole).std() / whole.std()).item() for tile in [(8, 4), (16, 8), (24, 12)]]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.1
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


def test_zero_terminal_snr_is_sampled(make):
    generator, lq = make(parameterization='v', zero_snr=True), _lq(1, 8, 8)
    noise = _noise(generator, generator.condition(lq))
    sr = super_resolve(generator, lq, noise, draw=lambda k: torch.zeros_like(noise))
    assert sr.shape == (1, 3, 32, 32) and bool(sr.isfinite().all()) and sr.std() > 0.01
