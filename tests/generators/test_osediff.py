"""OSEDiff's own: prompts, start, the one step, the trained encoder, training loss. The rest: `test_released_generators.py`."""

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
pytest.importorskip('transformers')
pytest.importorskip('timm')
from finpercep_plugin.algorithms.refl import ReFL  # noqa: E402
from finpercep_plugin.diffusion.prediction import to_x0  # noqa: E402
from finpercep_plugin.rewards.psnr_reward import PSNRReward  # noqa: E402
from finpercep_plugin.rollout import rollout, step_x0, super_resolve  # noqa: E402

NAME = 'OSEDiff'
RAM = dict.fromkeys(('ram', 'dape', 'tags', 'thresholds'), True)


def nudge(parameters):
    with torch.no_grad():
        for value in parameters.values():
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3)))


# ---------------------------------------------------------------- prompts


def test_prompt_of_tags_and_words(made):
    generator = made.make(**RAM, prompt='')
    lq, _ = made.pictures()
    tags, _ = generator.tagger(generator.upscaled(lq))
    assert tags[0] and tags[0] != tags[1]
    cond = generator.condition(lq)
    assert generator.prompts(cond) == tuple(tags)
    assert torch.equal(cond.tensors['text'], generator.text([f'{tag}, ,' for tag in tags]))
    named = generator.condition(lq, prompt=['sharp', ''])
    assert generator.prompts(named) == (f'{tags[0]}, sharp', tags[1])
    assert torch.equal(named.tensors['text'][0], generator.text([f'{tags[0]}, sharp,'])[0])


def test_without_ram_the_prompt_is_the_users(made):
    generator = made.make()
    lq, _ = made.pictures()
    cond = generator.condition(lq)
    assert generator.prompts(cond) == ('a sea', 'a sea') and generator.tagger is None
    assert torch.equal(cond.tensors['text'][1], generator.text(['a sea'])[0])


def test_tags_are_looked_up_once_and_the_encoder_is_not_remembered(made, monkeypatch):
    generator = made.make(**RAM)
    lq, _ = made.pictures()
    calls = []
    forward = generator.tagger.forward
    monkeypatch.setattr(generator.tagger, 'forward', lambda image: calls.append(len(image)) or forward(image))
    before = generator.condition(lq).tensors['latent']
    nudge(generator.trainable('released'))
    after = generator.condition(lq).tensors['latent']
    assert calls == [1, 1] and not torch.equal(before, after)


# ---------------------------------------------------------------- maths


def test_start_is_a_draw_from_the_posterior(made):
    generator = made.make()
    lq, _ = made.pictures()
    cond = generator.condition(lq)
    with torch.no_grad():
        mean, std = generator.network('encode', generator.upscaled(lq) * 2 - 1)
    assert torch.equal(cond.tensors['latent'], mean * 0.18215) and torch.equal(cond.tensors['std'], std * 0.18215)
    noise = made.noise(generator, cond)
    torch.testing.assert_close(generator.start(cond, noise), 0.18215 * (mean + std * noise))
    assert generator.steps.tolist() == [999] and generator.timesteps(1).tolist() == [999]
    assert generator.draw_t(torch.Generator()) == 999


def test_one_step_by_hand(made):
    generator = made.make(color_fix='none')
    lq, _ = made.pictures()
    cond = generator.condition(lq)
    noise = made.noise(generator, cond)
    with torch.no_grad():
        x_t = generator.start(cond, noise)
        eps = generator.network.unet(x_t, 999, encoder_hidden_states=cond.tensors['text']).sample
        a = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[999]
        x0 = (x_t - (1 - a).sqrt() * eps) / a.sqrt()
        image = (generator.vae.decode(x0 / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(rollout(generator, cond, noise).latents[-1], x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(super_resolve(generator, lq, noise), image[..., :40, :48], atol=1e-4, rtol=1e-4)


def test_noise_at_one_timestep_denoised_from_another(made):
    generator = made.make(noise_t=250, denoise_t=100)
    cond = generator.condition(made.pictures()[0])
    noise = made.noise(generator, cond)
    a = generator.schedule.alphas[250]
    x_t = generator.start(cond, noise)
    torch.testing.assert_close(x_t, a.sqrt() * cond.tensors['latent'] + (1 - a).sqrt() * noise)
    assert generator.steps.tolist() == [100] and generator.draw_t(torch.Generator()) == 100
    eps = generator.predict(x_t, 100, cond)
    expected = to_x0(x_t, eps, generator.schedule.alphas[100], 'eps')
    torch.testing.assert_close(step_x0(generator, x_t, 0, cond), expected)


def test_a_sample_does_not_depend_on_its_batch(made):
    generator = made.make(**RAM)
    lq, gt = made.pictures(3)
    cond = generator.condition(lq)
    noise, t = made.noise(generator, cond), torch.full((3,), 999)
    with torch.no_grad():
        whole, loss = super_resolve(generator, lq, noise), generator.pretrain_loss(gt, cond, noise, t)
        for row in (0, 2):
            part = slice(row, row + 1)
            single = super_resolve(generator, lq[part], noise[part])
            torch.testing.assert_close(single, whole[part], atol=1e-4, rtol=1e-4)
            one = generator.pretrain_loss(gt[part], generator.condition(lq[part]), noise[part], t[part])
            torch.testing.assert_close(one, loss[part], atol=1e-5, rtol=1e-4)


def test_refl_reaches_the_encoder(made):
    generator = made.make(**RAM)
    chosen = generator.trainable('lora')
    lq, gt = made.pictures()
    cond = generator.condition(lq)
    reward = PSNRReward()
    loss, seen = ReFL(weight=1.0, margin=1e3, pretrain_weight=0.0).loss(generator, cond, gt, reward, 0, 1, [0, 1])
    loss.backward()
    assert seen['k'] == 0
    for name, value in chosen.items():
        assert value.grad is not None and value.grad.any(), name


def test_reference_is_the_start_also_for_the_encoder(made):
    generator = made.make(**RAM)
    lq, _ = made.pictures()
    start = generator.condition(lq)
    noise = made.noise(generator, start)
    x_t = generator.start(start, noise)
    eps = generator.predict(x_t, 999, start).detach()
    nudge(generator.trainable('released'))
    now = generator.condition(lq)
    assert (now.tensors['latent'] - start.tensors['latent']).abs().max() > 1e-3
    assert (generator.predict(x_t, 999, start) - eps).abs().max() > 1e-3
    with generator.reference():
        again = generator.condition(lq)
        for name, value in start.tensors.items():
            assert torch.equal(again.tensors[name], value), name
        assert torch.equal(generator.predict(x_t, 999, start), eps)
    assert not torch.equal(generator.predict(x_t, 999, start), eps)


# ---------------------------------------------------------------- training loss


def test_pretrain_loss_by_hand(made):
    generator = made.make(color_fix='adain')  # which is no part of training
    lq, gt = made.pictures()
    cond = generator.condition(lq)
    noise, t = made.noise(generator, cond), torch.full((2,), 999)
    loss = generator.pretrain_loss(gt, cond, noise, t)
    with torch.no_grad():
        x0 = rollout(generator, cond, noise).latents[-1]
        image = generator.vae.decode(x0 / 0.18215).sample.clamp(-1, 1)[..., :40, :48]
    torch.testing.assert_close(loss, (image - (2 * gt - 1)).square().mean(dim=(1, 2, 3)), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r'gt of shape \(2, 3, 40, 44\) does not fit lq .*\(2, 3, 40, 48\)'):
        generator.pretrain_loss(gt[..., :44], cond, noise, t)


def test_lpips_is_added_with_its_weight(made, monkeypatch):
    class Stub(PSNRReward):
        def __init__(self, metric):
            super().__init__()
            assert metric == 'lpips-vgg'

    lq, gt = made.pictures()
    plain = made.make()
    cond = plain.condition(lq)
    noise, t = made.noise(plain, cond), torch.full((2,), 999)
    monkeypatch.setattr('finpercep_plugin.generators.osediff.PyIQAReward', Stub)
    added = made.make(lpips_weight=2.0).pretrain_loss(gt, cond, noise, t) - plain.pretrain_loss(gt, cond, noise, t)
    with torch.no_grad():
        image = plain.pixels(rollout(plain, cond, noise).latents[-1], cond)[..., :40, :48].clamp(0, 1)
    torch.testing.assert_close(added, 2 * PSNRReward()(image, gt=gt).score, atol=1e-3, rtol=1e-4)


def test_missing_lpips_weights_are_named(made, monkeypatch):
    pyiqa = pytest.importorskip('pyiqa')

    def fail(*args, **options):
        raise OSError('no network')

    monkeypatch.setattr(pyiqa, 'create_metric', fail)
    with pytest.raises(FileNotFoundError, match='pyiqa lpips-vgg: its weights cannot be read .*no network'):
        made.make(lpips_weight=1.0)


# ---------------------------------------------------------------- tiles


@torch.no_grad()
def test_tiles_agree_better_the_more_they_see(made):
    """The random UNet looks at all of its input; with tiles of 2/3 of the side, 0.16 was measured."""
    generator = made.make()
    cond = generator.condition(made.lq(1, 96, 96))
    x_t = generator.start(cond, made.noise(generator, cond))
    whole, errors = generator.predict(x_t, 999, cond), {}
    for tile, overlap in ((16, 8), (32, 24), (48, 0)):
        generator.tile, generator.tile_overlap = tile, overlap
        errors[tile] = (generator.predict(x_t, 999, cond) - whole).std() / whole.std()
    assert errors[48] == 0 < errors[32] < 0.3 < errors[16]


@torch.no_grad()
def test_the_encoder_in_tiles(made):
    generator = made.make(vae_tile=16, vae_tile_overlap=12)
    lq = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    tiled, whole = generator.condition(lq).tensors, made.make().condition(lq).tensors
    for name in ('latent', 'std'):
        error = (tiled[name] - whole[name]).std() / whole[name].std()
        assert 0 < error < 0.3


def test_guidance_is_refused(made):
    generator = made.make()
    cond = generator.condition(made.pictures()[0])
    with pytest.raises(ValueError, match='guidance must be 1, got 7.5'):
        generator.predict(made.noise(generator, cond), 999, cond, guidance=7.5)
