"""StableSR's own: condition, timesteps, training loss, CFW, guidance. The rest: `test_released_generators.py`."""

import pytest
import torch

pytest.importorskip('diffusers')
from finpercep_plugin.generators.color_fix import adain  # noqa: E402
from finpercep_plugin.generators.stablesr import StableSR  # noqa: E402
from finpercep_plugin.rollout import rollout  # noqa: E402

NAME = 'StableSR'


def test_default_steps_are_respaced_over_the_whole_schedule():
    steps = StableSR().steps
    assert len(steps) == 200 and steps[[0, 1, 100, -2, -1]].tolist() == [999, 994, 497, 5, 0]


def test_condition(made, monkeypatch):
    generator, lq, texts = made.make(cfw=True, prompt='a red car', negative_prompt='blur'), made.lq(height=13), []
    monkeypatch.setattr(generator.text, 'tokenize', lambda ts, old=generator.text.tokenize: texts.extend(ts) or old(ts))
    cond = generator.condition(lq)
    assert generator.prompts(cond) == ('a red car',) * 2 and texts == ['a red car', 'blur']
    image = cond.tensors['image']
    assert image.shape == (2, 3, 56, 64) and torch.equal(image[:, :, :52], cond.lq_up)
    assert torch.equal(image[:, :, 52:], cond.lq_up[:, :, -1:].expand(-1, -1, 4, -1))
    expected = generator.vae.encode(image * 2 - 1).latent_dist.mean * 0.18215
    torch.testing.assert_close(cond.tensors['latent'], expected, atol=1e-5, rtol=1e-4)
    assert generator.condition(lq, ['', 'sea']).prompts == ('', 'sea')
    assert 'image' not in made.make().condition(lq).tensors


def test_text_is_tokenized_as_open_clip_does(made):
    from transformers import CLIPTextModel

    generator = made.make()
    assert isinstance(generator.text.model, CLIPTextModel)
    ids = generator.text.tokenize(['a red car'])
    assert ids.shape == (1, 77) and ids[0, :6].tolist() == [49406, 320, 736, 1615, 49407, 0]
    expected = generator.text.model(generator.text.tokenize([''])).last_hidden_state
    torch.testing.assert_close(generator.condition(made.lq(1)).tensors['text'], expected)


def test_sampling_starts_from_the_noise_and_tells_both_networks_the_original_timestep(made, monkeypatch):
    generator, seen = made.make(), []
    cond = generator.condition(made.lq())
    noise = made.noise(generator, cond)
    assert torch.equal(generator.start(cond, noise), noise)
    for part in (generator.network.unet, generator.network.structure):
        part.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].tolist()))
    rollout(generator, cond, noise, draw=lambda k: noise)
    assert seen == [[t, t] for t in (999, 666, 333, 0) for _ in range(2)]


@pytest.mark.parametrize('parameterization', ['eps', 'v'])
def test_pretrain_loss_is_the_error_of_the_prediction(made, parameterization):
    generator, lq, gt = made.make(parameterization=parameterization), made.lq(3, 8, 8), made.lq(3, 32, 32, seed=2)
    cond = generator.condition(lq)
    noise, t = made.noise(generator, cond), torch.tensor([1, 500, 999])
    latent = generator.vae.encode(gt * 2 - 1).latent_dist.mean * 0.18215
    a = generator.schedule.alphas[t][:, None, None, None]
    x_t = a.sqrt() * latent + (1 - a).sqrt() * noise
    out = generator.network(x_t, t, cond.tensors['text'], cond.tensors['latent'])
    wanted = noise if parameterization == 'eps' else a.sqrt() * noise - (1 - a).sqrt() * latent
    expected = (out - wanted).square().mean((1, 2, 3))
    torch.testing.assert_close(generator.pretrain_loss(gt, cond, noise, t), expected, atol=1e-5, rtol=1e-4)


def test_cfw_decode(made):
    """The tiny CFW file is the first stage with fusion layers, so at weight 0 it is the plain decoder."""
    plain, lq = made.make(color_fix='none'), made.lq(height=13)
    latent = made.noise(plain, plain.condition(lq))
    pictures = []
    for weight in (0.0, 0.5, 1.0):
        generator = made.make(cfw=True, dec_w=weight, color_fix='none')
        pictures.append(generator.decode(latent, generator.condition(lq)))
    torch.testing.assert_close(pictures[0], plain.decode(latent, plain.condition(lq)), atol=1e-5, rtol=1e-5)
    assert (pictures[1] - pictures[0]).std() > 1e-3 and (pictures[2] - pictures[1]).std() > 1e-3
    image = plain.padded(plain.upscaled(lq)) * 2 - 1
    expected = generator.cfw.decode_with(latent / 0.18215, generator.cfw.features(image), 1.0) / 2 + 0.5
    torch.testing.assert_close(pictures[2], expected[:, :, :52].clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_colours_come_from_the_upscaled_lq(made):
    generator, lq = made.make(), made.lq()
    cond = generator.condition(lq)
    latent = made.noise(generator, cond)
    image = generator.pixels(latent, cond)[..., :48, :64]  # beyond 0..1, as the original gives it to the colour fix
    assert image.max() > 1
    torch.testing.assert_close(generator.decode(latent, cond), adain(image, cond.lq_up).clamp(0, 1))


def test_cfw_sees_the_region_that_is_decoded(made):
    """A part of the picture is what its latents and its part of lq give, wherever the rest is."""
    generator, lq = made.make(cfw=True, color_fix='none'), made.lq(1, 12, 16)
    latent, cond = made.noise(generator, generator.condition(lq)), generator.condition(lq)
    part = generator.decode(latent, cond, region=(16, 24, 24, 32))
    image = cond.lq_up[:, :, 16:40, 24:56] * 2 - 1
    z = latent[:, :, 2:5, 3:7] / 0.18215
    expected = generator.cfw.decode_with(z, generator.cfw.features(image), 0.5) / 2 + 0.5
    torch.testing.assert_close(part, expected.clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_guidance_mixes_two_texts(made):
    generator = made.make(prompt='a red car')
    cond = generator.condition(made.lq())
    x_t = made.noise(generator, cond)
    with torch.no_grad():
        with_text = generator.predict(x_t, 500, cond)
        without = generator.predict(x_t, 500, generator.condition(made.lq(), ['', '']))
        found = generator.predict(x_t, 500, cond, guidance=3.0)
    assert (with_text - without).abs().max() > 1e-4
    torch.testing.assert_close(found, without + 3 * (with_text - without), atol=1e-5, rtol=1e-4)
