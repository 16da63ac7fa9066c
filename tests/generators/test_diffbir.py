"""DiffBIR's own: its two files, schedules, the cleaner, training loss. The rest: `test_released_generators.py`."""

import numpy as np
import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('spandrel')
from finpercep_plugin.archs.ldm_keys import controlnet_keys  # noqa: E402
from finpercep_plugin.generators.color_fix import wavelet_reconstruction  # noqa: E402
from finpercep_plugin.generators.diffbir import DiffBIR  # noqa: E402
from finpercep_plugin.rollout import super_resolve  # noqa: E402

NAME = 'DiffBIR'


def _read(file):
    return torch.load(file, weights_only=True)


def test_loads_the_released_files(made):
    generator, control = made.make(), _read(made.files['weights'])
    state = generator.network.state_dict()
    assert sorted(controlnet_keys(generator.network.controlnet.state_dict()).values()) == sorted(control)
    base = _read(made.files['base'])['state_dict']
    for ours, theirs in {
        'unet.up_blocks.2.resnets.0.conv1.weight': 'model.diffusion_model.output_blocks.4.0.in_layers.2.weight',
        'unet.mid_block.attentions.0.proj_in.bias': 'model.diffusion_model.middle_block.1.proj_in.bias',
    }.items():
        assert torch.equal(state[ours], base[theirs])
    assert torch.equal(
        generator.vae.decoder.mid_block.attentions[0].to_v.weight,
        base['first_stage_model.decoder.mid.attn_1.v.weight'][..., 0, 0],
    )


def test_a_file_behind_state_dict_and_module_is_rewritten_in_its_own_layout(made, tmp_path):
    wrapped = {f'module.{name}': value for name, value in _read(made.files['weights']).items()}
    torch.save({'step': 7, 'state_dict': wrapped}, tmp_path / 'in.pt')
    made.make(tmp_path / 'in.pt').save(tmp_path / 'out.pt', 'original')
    again = _read(tmp_path / 'out.pt')
    assert again['step'] == 7 and again['state_dict'].keys() == wrapped.keys()
    assert all(torch.equal(value, wrapped[name]) for name, value in again['state_dict'].items())


def test_a_trained_unet_has_no_place_in_the_original_layout(made, tmp_path):
    generator = made.make()
    generator.trainable(['unet.conv_out.*'])
    with pytest.raises(ValueError, match="holds the ControlNet alone, and the UNet is trained: save 'own'"):
        generator.save(tmp_path / 'out.pth', 'original')
    assert not (tmp_path / 'out.pth').exists()


def test_every_wrong_key_of_both_files_in_one_error(made, tmp_path):
    control, base = _read(made.files['weights']), _read(made.files['base'])
    del control['zero_convs.2.0.bias'], base['state_dict']['model.diffusion_model.out.0.bias']
    control['time_embed.0.bias'], control['hint.weight'] = torch.zeros(3), torch.zeros(1)
    text = 'cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias'
    base['state_dict'][text] = torch.zeros(7)
    base['state_dict']['first_stage_model.extra'] = torch.zeros(1)
    del base['state_dict']['first_stage_model.encoder.mid.attn_1.q.weight']
    torch.save(control, tmp_path / 'control.pth')
    torch.save(base, tmp_path / 'base.ckpt')
    with pytest.raises(ValueError) as error:
        made.make(tmp_path / 'control.pth', base=str(tmp_path / 'base.ckpt'))
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


def test_what_is_not_there_or_does_not_fit(made, tmp_path):
    with pytest.raises(FileNotFoundError, match="DiffBIR's base: no checkpoint .*nowhere"):
        made.make(base=str(tmp_path / 'nowhere.ckpt'))
    with pytest.raises(ValueError, match=r'swinir\.pth: no tensor zero_convs\.0\.0\.weight in the checkpoint'):
        made.make(made.files['cleaner'])
    with pytest.raises(ValueError, match='parameterization must be'):
        DiffBIR('a', parameterization='x0')
    with pytest.raises(ValueError, match="zero_snr needs parameterization 'v'"):
        DiffBIR('a', zero_snr=True)
    with pytest.raises(ValueError, match=r'sampling steps must be 2\.\.1000, got 1'):
        DiffBIR('a', steps=1)


def test_a_controlnet_of_another_unet(made, tmp_path):
    control = _read(made.files['weights'])
    control['input_blocks.0.0.weight'] = control['input_blocks.0.0.weight'][:, :4]
    torch.save(control, tmp_path / 'control.pth')
    with pytest.raises(ValueError, match=r'(?s)does not fit the UNet.*in_channels is 4, the UNet asks for 8'):
        made.make(tmp_path / 'control.pth')


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


def test_condition(made, monkeypatch):
    generator, lq, texts = made.make(prompt='sharp'), made.lq(height=13), []
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


def test_without_a_cleaner_the_upscaled_lq_is_taken(made):
    cond = made.make(cleaner=None).condition(made.lq())
    assert torch.equal(cond.tensors['cleaned'], cond.lq_up)


@pytest.mark.parametrize('scale', [1, 2, 4])
def test_cleaners_of_any_scale(made, scale):
    """Scale 1 gets the upscaled lq; another gets lq, and its picture is resized where it has another size."""
    generator, lq, seen = made.make(), made.lq(), []

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


def test_colours_come_from_the_cleaned_picture(made):
    generator, lq = made.make(), made.lq()
    cond = generator.condition(lq)
    latent = made.noise(generator, cond)
    image = generator.pixels(latent, cond)  # beyond 0..1, as the original gives it to the colour fix
    assert image.max() > 1
    expected = wavelet_reconstruction(image[..., :48, :64], cond.tensors['cleaned']).clamp(0, 1)
    torch.testing.assert_close(generator.decode(latent, cond), expected, atol=1e-5, rtol=1e-4)


def test_start_is_noise(made):
    generator = made.make()
    cond = generator.condition(made.lq())
    noise = made.noise(generator, cond)
    assert torch.equal(generator.start(cond, noise), noise)


@pytest.mark.parametrize('options', [{}, {'parameterization': 'v', 'zero_snr': True}], ids=['eps', 'v'])
def test_pretrain_loss_is_the_error_of_the_prediction(made, options):
    generator, lq = made.make(strength=0.5, **options), made.lq(3, 8, 8)
    cond, gt = generator.condition(lq), made.lq(3, 32, 32, seed=2)
    noise, t = made.noise(generator, cond), torch.tensor([1, 500, 999])
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


def test_zero_terminal_snr_is_sampled(made):
    generator, lq = made.make(parameterization='v', zero_snr=True), made.lq(1, 8, 8)
    noise = made.noise(generator, generator.condition(lq))
    sr = super_resolve(generator, lq, noise, draw=lambda k: torch.zeros_like(noise))
    assert sr.shape == (1, 3, 32, 32) and bool(sr.isfinite().all()) and sr.std() > 0.01
