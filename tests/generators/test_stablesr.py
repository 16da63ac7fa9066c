"""StableSR as a generator, on a tiny random checkpoint in the released layout: condition, CFW, training, tiles."""

import pytest
import torch

pytest.importorskip('diffusers')
from finpercep_plugin.cli.tiny.stablesr import stablesr  # noqa: E402
from finpercep_plugin.generators.color_fix import adain  # noqa: E402
from finpercep_plugin.generators.stablesr import StableSR  # noqa: E402
from finpercep_plugin.models.precision import cast_frozen  # noqa: E402
from finpercep_plugin.rollout import rollout, step_x0, super_resolve  # noqa: E402


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
    """One optimiser step on the picture of step 1's clean latent; returns the gradients."""
    cond = generator.condition(_lq())
    sr = generator.decode(step_x0(generator, _noise(generator, cond), 1, cond), cond)
    parameters = {name: value for name, value in generator.network.named_parameters() if value.requires_grad}
    optimiser = torch.optim.Adam(parameters.values(), lr=lr)
    (sr * torch.linspace(0, 1, sr.shape[-1])).sum().backward()
    optimiser.step()
    return {name: value.grad for name, value in parameters.items()}


def test_default_steps_are_respaced_over_the_whole_schedule():
    steps = StableSR().steps
    assert len(steps) == 200 and steps[[0, 1, 100, -2, -1]].tolist() == [999, 994, 497, 5, 0]


def test_condition(make, monkeypatch):
    generator, lq, texts = make(cfw=True, prompt='a red car', negative_prompt='blur'), _lq(height=13), []
    monkeypatch.setattr(generator.text, 'tokenize', lambda ts, old=generator.text.tokenize: texts.extend(ts) or old(ts))
    cond = generator.condition(lq)
    assert generator.prompts(cond) == ('a red car',) * 2 and texts == ['a red car', 'blur']
    image = cond.tensors['image']
    assert image.shape == (2, 3, 56, 64) and torch.equal(image[:, :, :52], cond.lq_up)
    assert torch.equal(image[:, :, 52:], cond.lq_up[:, :, -1:].expand(-1, -1, 4, -1))
    expected = generator.vae.encode(image * 2 - 1).latent_dist.mean * 0.18215
    torch.testing.assert_close(cond.tensors['latent'], expected, atol=1e-5, rtol=1e-4)
    assert generator.condition(lq, ['', 'sea']).prompts == ('', 'sea')
    assert 'image' not in make().condition(lq).tensors
    with pytest.raises(ValueError, match='2 images need as many prompts, got 1'):
        generator.condition(lq, ['sea'])


def test_text_is_tokenized_as_open_clip_does(make):
    from transformers import CLIPTextModel

    generator = make()
    assert isinstance(generator.text.model, CLIPTextModel)
    ids = generator.text.tokenize(['a red car'])
    assert ids.shape == (1, 77) and ids[0, :6].tolist() == [49406, 320, 736, 1615, 49407, 0]
    expected = generator.text.model(generator.text.tokenize([''])).last_hidden_state
    torch.testing.assert_close(generator.condition(_lq(1)).tensors['text'], expected)


def test_condition_is_remembered_and_does_not_depend_on_the_batch(make, monkeypatch):
    generator, lq = make(cfw=True), _lq(3)
    whole = generator.condition(lq)
    fresh = make(cfw=True).condition(lq[1:2])
    monkeypatch.setattr(generator, 'posterior', None)
    again = generator.condition(lq[[2, 1]], ['x', 'y'])
    for name in ('latent', 'image'):
        assert torch.equal(whole.tensors[name][[2, 1]], again.tensors[name])
        assert torch.equal(whole.tensors[name][1:2], fresh.tensors[name])


def test_sampling_starts_from_the_noise_and_tells_both_networks_the_original_timestep(make, monkeypatch):
    generator, seen = make(), []
    cond = generator.condition(_lq())
    noise = _noise(generator, cond)
    assert torch.equal(generator.start(cond, noise), noise)
    for part in (generator.network.unet, generator.network.structure):
        part.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].tolist()))
    rollout(generator, cond, noise, draw=lambda k: noise)
    assert seen == [[t, t] for t in (999, 666, 333, 0) for _ in range(2)]


@pytest.mark.parametrize('parameterization', ['eps', 'v'])
def test_pretrain_loss_is_the_error_of_the_prediction(make, parameterization):
    generator, lq, gt = make(parameterization=parameterization), _lq(3, 8, 8), _lq(3, 32, 32, seed=2)
    cond = generator.condition(lq)
    noise, t = _noise(generator, cond), torch.tensor([1, 500, 999])
    latent = generator.vae.encode(gt * 2 - 1).latent_dist.mean * 0.18215
    a = generator.schedule.alphas[t][:, None, None, None]
    x_t = a.sqrt() * latent + (1 - a).sqrt() * noise
    out = generator.network(x_t, t, cond.tensors['text'], cond.tensors['latent'])
    wanted = noise if parameterization == 'eps' else a.sqrt() * noise - (1 - a).sqrt() * latent
    expected = (out - wanted).square().mean((1, 2, 3))
    torch.testing.assert_close(generator.pretrain_loss(gt, cond, noise, t), expected, atol=1e-5, rtol=1e-4)


def test_cfw_decode(make):
    """The tiny CFW file is the first stage with fusion layers, so at weight 0 it is the plain decoder."""
    plain, lq = make(color_fix='none'), _lq(height=13)
    latent = _noise(plain, plain.condition(lq))
    pictures = []
    for weight in (0.0, 0.5, 1.0):
        generator = make(cfw=True, dec_w=weight, color_fix='none')
        pictures.append(generator.decode(latent, generator.condition(lq)))
    torch.testing.assert_close(pictures[0], plain.decode(latent, plain.condition(lq)), atol=1e-5, rtol=1e-5)
    assert (pictures[1] - pictures[0]).std() > 1e-3 and (pictures[2] - pictures[1]).std() > 1e-3
    image = plain.padded(plain.upscaled(lq)) * 2 - 1
    expected = generator.cfw.decode_with(latent / 0.18215, generator.cfw.features(image), 1.0) / 2 + 0.5
    torch.testing.assert_close(pictures[2], expected[:, :, :52].clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_colours_come_from_the_upscaled_lq(make):
    generator, lq = make(), _lq()
    cond = generator.condition(lq)
    latent = _noise(generator, cond)
    image = generator.pixels(latent, cond)[..., :48, :64]  # beyond 0..1, as the original gives it to the colour fix
    assert image.max() > 1
    torch.testing.assert_close(generator.decode(latent, cond), adain(image, cond.lq_up).clamp(0, 1))


def test_cfw_sees_the_region_that_is_decoded(make):
    """A part of the picture is what its latents and its part of lq give, wherever the rest is."""
    generator, lq = make(cfw=True, color_fix='none'), _lq(1, 12, 16)
    latent, cond = _noise(generator, generator.condition(lq)), generator.condition(lq)
    part = generator.decode(latent, cond, region=(16, 24, 24, 32))
    image = cond.lq_up[:, :, 16:40, 24:56] * 2 - 1
    z = latent[:, :, 2:5, 3:7] / 0.18215
    expected = generator.cfw.decode_with(z, generator.cfw.features(image), 0.5) / 2 + 0.5
    torch.testing.assert_close(part, expected.clamp(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('tiles', [{}, {'tile': 4, 'tile_overlap': 2, 'vae_tile': 4, 'vae_tile_overlap': 2}])
def test_gradient_through_decode_with_and_without_checkpointing(make, tiles):
    grads = []
    for checkpointing in (False, True):
        generator = make(cfw=True, checkpointing=checkpointing, **tiles)
        assert (
            generator.network.structure.checkpointing is generator.cfw.decoder.gradient_checkpointing is checkpointing
        )
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
        generator.save(tmp_path / 'out.ckpt', 'original')  # a LoRA is merged
        merged = make(tmp_path / 'out.ckpt').predict(x_t, 500, cond, guidance=3.0)
    torch.testing.assert_close(merged, after, atol=1e-4, rtol=1e-3)


def test_guidance_mixes_two_texts(make):
    generator = make(prompt='a red car')
    cond = generator.condition(_lq())
    x_t = _noise(generator, cond)
    with torch.no_grad():
        with_text = generator.predict(x_t, 500, cond)
        without = generator.predict(x_t, 500, generator.condition(_lq(), ['', '']))
        found = generator.predict(x_t, 500, cond, guidance=3.0)
    assert (with_text - without).abs().max() > 1e-4
    torch.testing.assert_close(found, without + 3 * (with_text - without), atol=1e-5, rtol=1e-4)


def test_tiles_agree_with_the_whole_as_far_as_they_overlap(make):
    """Without what looks at a whole tile, attention and the statistics of norms, which rule random networks."""
    generator = make()
    with torch.no_grad():
        for name, parameter in generator.network.named_parameters():
            if '.proj_out.' in name:
                parameter.zero_()
    for module in generator.network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x, weight=module.weight: x * weight.view(-1, *[1] * (x.ndim - 2))
    cond = generator.condition(_lq(1, 48, 64))
    noise = _noise(generator, cond)
    draws = {k: _noise(generator, cond, seed=k + 10) for k in range(3)}

    def sample(tile, overlap):
        generator.tile, generator.tile_overlap = tile, overlap
        return rollout(generator, cond, noise, steps=2, draw=draws.__getitem__).latents[-1]

    whole = sample(0, 0)
    errors = [((sample(*tile) - whole).std() / whole.std()).item() for tile in [(8, 4), (12, 8), (22, 20)]]
    assert errors == sorted(errors, reverse=True) and errors[0] > 5 * errors[-1] and errors[-1] < 0.03, errors
    assert torch.equal(sample(32, 4), whole)


def test_super_resolve_any_size_and_under_autocast(make):
    generator, lq = make(cfw=True), _lq(1, 11, 17)
    noise = _noise(generator, generator.condition(lq))
    draws = {k: _noise(generator, generator.condition(lq), seed=k) for k in range(4)}
    sr = super_resolve(generator, lq, noise, draw=draws.__getitem__)
    assert sr.shape == (1, 3, 44, 68) and sr.min() >= 0 and sr.max() <= 1 and sr.std() > 0.05
    with torch.autocast('cpu', torch.bfloat16):
        cond = make(cfw=True).condition(lq)
        out, picture = generator.predict(noise, 500, cond), generator.decode(noise, cond)
    assert out.dtype == picture.dtype == torch.float32
    expected = generator.predict(noise, 500, generator.condition(lq))
    assert (out - expected).std() < 0.1 * expected.std()


@pytest.mark.parametrize('choice', ['released', 'lora'])
def test_training_in_bfloat16(make, choice):
    """Frozen weights in bfloat16, the trained ones in float32, under autocast: gradients like those in float32."""
    grads = []
    for low in (False, True):
        generator = make(cfw=True)
        generator.trainable(choice, rank=2, alpha=4.0)
        if low:
            assert cast_frozen(generator) > 0
        with torch.autocast('cpu', torch.bfloat16, enabled=low):
            cond = generator.condition(_lq())
            loss = generator.decode(step_x0(generator, _noise(generator, cond), 2, cond), cond)
        (loss * torch.linspace(0, 1, loss.shape[-1])).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in generator.network.parameters() if p.requires_grad]))
    assert all(grad.dtype == torch.float32 for grad in grads) and torch.isfinite(grads[1]).all()
    assert torch.cosine_similarity(*grads, dim=0) > 0.9
