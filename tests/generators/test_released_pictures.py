"""What all released generators share, each on a tiny random checkpoint in its released layout: conditions, pictures, tiles."""

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
pytest.importorskip('transformers')
pytest.importorskip('timm')
pytest.importorskip('spandrel')
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.generators.latent_generator import LatentGenerator  # noqa: E402
from finpercep_plugin.generators.memory import Memory  # noqa: E402
from finpercep_plugin.generators.pixels import upscale  # noqa: E402
from finpercep_plugin.registry import GENERATORS  # noqa: E402
from finpercep_plugin.rollout import rollout, super_resolve  # noqa: E402

NAMES = [name for name in GENERATORS.names() if issubclass(GENERATORS.get(name), LatentGenerator)]
RAM = dict.fromkeys(('ram', 'dape', 'tags', 'thresholds'), True)
CFW = {'cfw': True}


@pytest.mark.parametrize('name', NAMES)
def test_what_is_not_there(tiny, tmp_path, name):
    made = tiny(name)
    kind = {'SeeSR': 'folder', 'DiT4SR': 'folder', 'OSEDiff': 'file'}.get(name, 'checkpoint')
    with pytest.raises(FileNotFoundError, match=f'^{name}: no {kind} .*nowhere'):
        made.make(tmp_path / 'nowhere')
    with pytest.raises(RuntimeError, match=f'{name} has no networks yet: call load'):
        made.make(load=False).condition(made.lq())
    options = {key: made.files[key] for key in made.kind.files if key in made.files}
    made.kind.check(options, '$.generator')
    for key in made.kind.files:
        with pytest.raises(ConfigError, match=rf'^\$\.generator\.{key}: file or folder not found at {tmp_path}/none'):
            made.kind.check({**options, key: f'{tmp_path}/none'}, '$.generator')


@pytest.mark.parametrize('name', NAMES)
def test_lq_is_enlarged_as_the_authors_do(name):
    """See `test_pixels.py` for Pillow itself."""
    kind, lq = GENERATORS.get(name), torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    kernel = 'torch' if name in ('StableSR', 'DiffBIR') else 'pillow'
    assert torch.equal(kind.upscaled(kind, lq), upscale(lq, 4, kernel))


@pytest.mark.parametrize(
    'name, options, of_lq',
    [
        ('SeeSR', {}, 'tagger'),
        ('StableSR', CFW, 'posterior'),
        ('DiffBIR', {}, 'vae'),
        ('DiT4SR', {}, 'posterior'),
    ],
)
def test_condition_is_remembered_and_does_not_depend_on_the_batch(tiny, monkeypatch, name, options, of_lq):
    made = tiny(name)
    generator, lq = made.make(**options), made.lq(3)
    whole, fresh = generator.condition(lq), made.make(**options).condition(lq[1:2])
    monkeypatch.setattr(generator, of_lq, None)
    again, other = generator.condition(lq[[2, 1]]), generator.condition(lq[[2, 1]], ['x', 'y'])
    for key, value in whole.tensors.items():
        assert torch.equal(value[[2, 1]], again.tensors[key]) and torch.equal(value[1:2], fresh.tensors[key])
        assert key in ('text', 'pooled') or torch.equal(value[[2, 1]], other.tensors[key])


@pytest.mark.parametrize('name', NAMES)
def test_as_many_prompts_as_images(tiny, name):
    made = tiny(name)
    with pytest.raises(ValueError, match='2 images need as many prompts, got 1'):
        made.make().condition(made.lq(), ['sea'])


@pytest.mark.parametrize(
    'name, options, height, width',
    [
        ('SeeSR', {}, 11, 17),
        ('StableSR', CFW, 11, 17),
        ('DiffBIR', {}, 11, 17),
        ('DiT4SR', {'guidance': 2.0}, 12, 16),
        ('DiT4SR', {'guidance': 2.0}, 9, 13),
        ('DiT4SR', {'guidance': 2.0}, 3, 30),
        ('OSEDiff', RAM, 10, 12),
        ('OSEDiff', RAM, 9, 11),
    ],
)
def test_super_resolve_any_size(tiny, name, options, height, width):
    made = tiny(name)
    generator, lq = made.make(**options), made.lq(1, height, width)
    cond = generator.condition(lq)
    assert name != 'DiT4SR' or all(side % 2 == 0 for side in generator.latent_shape(cond)[1:])
    noise = made.noise(generator, cond)
    sr = super_resolve(generator, lq, noise, draw=lambda k: made.noise(generator, cond, seed=k))
    assert sr.shape == (1, 3, 4 * height, 4 * width) and sr.min() >= 0 and sr.max() <= 1 and sr.std() > 0.05


@torch.no_grad()
@pytest.mark.parametrize('name', NAMES)
def test_under_autocast(tiny, name):
    made = tiny(name)
    generator, lq = made.make(cfw=True) if name == 'StableSR' else made.make(), made.lq(1, 11, 17)
    noise = made.noise(generator, cond := generator.condition(lq))
    expected = generator.predict(noise, 500, cond)
    generator.memory, generator.text.memory = Memory(8), Memory(8)
    with torch.autocast('cpu', torch.bfloat16):
        cond = generator.condition(lq)
        out, picture = generator.predict(noise, 500, cond), generator.decode(noise, cond)
    assert out.dtype == picture.dtype == torch.float32
    assert 0 < (out - expected).std() < 0.1 * expected.std()


@pytest.mark.parametrize('name', NAMES)
def test_tiles_of_a_pointwise_network_change_nothing(tiny, monkeypatch, name):
    made = tiny(name)
    generator, seen = made.make(tile=4, tile_overlap=2), []
    cond = generator.condition(made.lq(2, 12, 20))
    x, t = made.noise(generator, cond), torch.tensor([2.0, 999.0])
    guidance = 1.0 if name == 'OSEDiff' else 3.0

    def run(x_t, t, part):
        seen.append(tuple(x_t.shape[-2:]))
        return 3 * x_t + part.tensors['latent'] + part.tensors['text'].mean() - t.view(-1, 1, 1, 1)

    monkeypatch.setattr(generator, 'run', run)
    found = generator.predict(x, t, cond, guidance=guidance)
    assert {*seen} == {(4, 4)}
    generator.tile = 0
    torch.testing.assert_close(found, generator.predict(x, t, cond, guidance=guidance), atol=1e-4, rtol=1e-4)
    assert seen[-1] == generator.latent_shape(cond)[1:]
    if guidance == 1.0:
        expected = 3 * x + cond.tensors['latent'] + cond.tensors['text'].mean() - t.view(2, 1, 1, 1)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def without_what_sees_all(generator):
    """Attention and the statistics of norms rule random networks."""
    with torch.no_grad():
        for name, parameter in generator.network.named_parameters():
            if '.proj_out.' in name:
                parameter.zero_()
    for module in generator.network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x, weight=module.weight: x * weight.view(-1, *[1] * (x.ndim - 2))


@pytest.mark.parametrize(
    'name, steps, guidance, tiles, most',
    [
        ('SeeSR', 2, 1.0, [(16, 8), (24, 12)], 0.1),
        ('StableSR', 2, 1.0, [(8, 4), (12, 8), (22, 20)], 0.03),
        ('DiffBIR', 3, 2.0, [(8, 4), (16, 8), (24, 12)], 0.1),
    ],
)
def test_tiles_agree_the_better_the_more_they_see(tiny, name, steps, guidance, tiles, most):
    """Random networks are far less local than trained ones; what is left falls as tiles grow, and is 0 at one tile."""
    made = tiny(name)
    generator = made.make(color_fix='none')
    lq = torch.nn.functional.interpolate(made.lq(1, 8, 8), (64, 64), mode='bilinear')
    if name == 'StableSR':
        without_what_sees_all(generator)
        lq = made.lq(1, 48, 64)
    cond = generator.condition(lq)
    noise = made.noise(generator, cond)

    def sample(tile, overlap):
        generator.tile, generator.tile_overlap = tile, overlap
        draws = [made.noise(generator, cond, seed=k + 10) for k in range(steps)]
        latent = rollout(generator, cond, noise, steps=steps, guidance=guidance, draw=draws.__getitem__).latents[-1]
        return generator.decode(latent, cond) if name == 'SeeSR' else latent

    whole = sample(0, 0)
    errors = [((sample(*tile) - whole).std() / whole.std()).item() for tile in tiles]
    assert errors == sorted(errors, reverse=True) and len({*errors}) == len(errors) and errors[-1] < most, errors
    assert name != 'StableSR' or errors[0] > 5 * errors[-1]
    assert torch.equal(sample(32, 4), whole)
