"""What all released generators share, each on a tiny random checkpoint in its released layout: files, training."""

from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
pytest.importorskip('transformers')
pytest.importorskip('timm')
pytest.importorskip('spandrel')
from finpercep_plugin.archs.dit4sr_arch import is_inert  # noqa: E402
from finpercep_plugin.generators.latent_generator import LatentGenerator  # noqa: E402
from finpercep_plugin.models.precision import cast_frozen  # noqa: E402
from finpercep_plugin.registry import GENERATORS  # noqa: E402
from finpercep_plugin.rollout import super_resolve  # noqa: E402

NAMES = [name for name in GENERATORS.names() if issubclass(GENERATORS.get(name), LatentGenerator)]
RAM = dict.fromkeys(('ram', 'dape', 'tags', 'thresholds'), True)
CFW = {'cfw': True}
TILES = {'tile': 4, 'tile_overlap': 2, 'vae_tile': 4, 'vae_tile_overlap': 2}
RELEASED = {  # what 'released' trains, by shell patterns
    'SeeSR': ['controlnet.*', '*.image_attentions.*'],
    'StableSR': ['structure.*', '*.spade.*'],
    'DiffBIR': ['controlnet.*'],
    'DiT4SR': ['*control*'],
    'OSEDiff': ['*.lora_*', 'unet.conv_in.*'],
}
POLICY = {
    'OSEDiff': (999, 1.0),
    'DiT4SR': (500.0, 3.0),
}  # a timestep and a guidance of `predict`; of the others (500, 3.0)


def fits(name, patterns):
    return any(fnmatch(name, pattern) for pattern in patterns)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def same_content(one, other):
    """Equal bits of tensors, equal order of keys, and all the rest equal."""
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same_content(value, other[key]) for key, value in one.items())
    return one == other


def same_checkpoint(one, other):
    one, other = Path(one), Path(other)
    if one.is_file():
        return same_content(*(torch.load(path, weights_only=True) for path in (one, other)))
    contents = [{p.relative_to(top): p.read_bytes() for p in top.rglob('*') if p.is_file()} for top in (one, other)]
    return contents[0] == contents[1]


def predicted(made, generator, cond):
    t, guidance = POLICY.get(made.name, (500, 3.0))
    return generator.predict(made.noise(generator, cond), t, cond, guidance=guidance)


def sampled(made, generator):
    cond = generator.condition(made.lq(1, 8, 8))
    noise = made.noise(generator, cond)
    return super_resolve(generator, cond.lq, noise, draw=lambda k: noise)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize('name', NAMES)
def test_loads_the_released_checkpoint(tiny, name):
    made = tiny(name)
    generator = made.make()
    state, held = generator.network.state_dict(), made.tensors(made.files['weights'])
    unread = {key for key in held if is_inert(key.removeprefix('transformer.'))} if name == 'DiT4SR' else set()
    assert all(torch.equal(value, state[key]) for key, value in held.items() if key not in unread)
    of_base = {key for key in state if not fits(key, RELEASED[name])} if name in ('DiffBIR', 'OSEDiff') else set()
    assert state.keys() - of_base == held.keys() - unread
    assert not any(value.requires_grad for value in generator.parameters()) and not generator.training
    assert generator.train().training is False


@pytest.mark.parametrize('low', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_round_trip_is_byte_equal(tiny, tmp_path, name, low):
    generator = tiny(name).make()
    assert not low or cast_frozen(generator) > 0
    generator.save(tmp_path / 'out', 'original')
    assert same_checkpoint(tiny(name).files['weights'], tmp_path / 'out')


@pytest.mark.parametrize(
    'name, options, choice',
    [
        ('SeeSR', {}, 'released'),
        ('StableSR', CFW, 'released'),
        ('DiffBIR', {}, 'released'),
        ('DiT4SR', {'variant': 'v1'}, 'released'),
        ('DiT4SR', {'variant': 'r1'}, 'released'),
        ('OSEDiff', RAM, 'released'),
        ('OSEDiff', RAM, 'lora'),
        ('OSEDiff', RAM, ['vae.*lora*']),
        ('OSEDiff', RAM, ['unet.conv_in.base_layer.*']),
    ],
)
def test_after_one_step_only_the_trained_names_differ(tiny, tmp_path, name, options, choice):
    made, out = tiny(name), tmp_path / 'out'
    generator = made.make(**options)
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    chosen = generator.trainable(choice)
    if choice == 'released':
        assert {*chosen} == {key for key, _ in generator.network.named_parameters() if fits(key, RELEASED[name])}
    gradients = made.step(generator)
    moved = {key for key, gradient in gradients.items() if gradient is not None and gradient.any()}
    assert {*chosen} - moved == {key for key in chosen if 'to_k_' in key and options.get('variant') == 'v1'}
    assert all(gradients[key] is None for key in {*chosen} - moved)
    after = generator.state_dict()
    assert {key for key in after if not torch.equal(after[key], before[key])} == {f'network.{key}' for key in moved}
    generator.save(out, 'original')
    old, new = made.tensors(made.files['weights']), made.tensors(out)
    assert old.keys() == new.keys() and all(value.dtype == torch.float32 for value in new.values())
    assert {key for key in old if not torch.equal(old[key], new[key])} == moved
    assert same(made.make(out, **options).state_dict(), after)


@pytest.mark.parametrize('name', NAMES)
def test_own_and_trained_layouts(tiny, tmp_path, name):
    made = tiny(name)
    generator = made.make(steps=1 if name == 'OSEDiff' else 2, color_fix='none')
    chosen = generator.trainable()
    with torch.no_grad():
        for value in chosen.values():
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3)))
    for layout in ('own', 'trained', 'original'):
        generator.save(tmp_path / layout, layout)
    params = torch.load(tmp_path / 'trained', weights_only=True)['params']
    assert same(params, {key: value.detach() for key, value in chosen.items()})
    whole, laid = made.kind.from_file(tmp_path / 'own'), made.make(**generator.arch)
    laid.load(tmp_path / 'trained')
    assert whole.arch == generator.arch
    expected = sampled(made, generator)
    for again in (whole, laid):
        assert same(again.state_dict(), generator.state_dict())
        again.trainable()  # torch takes other kernels where a gradient is wanted
        assert torch.equal(sampled(made, again), expected)
    laid.save(tmp_path / 'laid', 'original')
    assert same_checkpoint(tmp_path / 'laid', tmp_path / 'original')


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(
    'name, options, choice',
    [
        ('SeeSR', {}, 'released'),
        ('StableSR', CFW, 'released'),
        ('StableSR', {**CFW, **TILES}, 'released'),
        ('DiffBIR', {}, 'released'),
        ('DiT4SR', {'variant': 'r1'}, 'released'),
        ('DiT4SR', {'variant': 'r1'}, 'lora'),
        ('OSEDiff', {}, 'released'),
    ],
)
def test_gradients_with_and_without_checkpointing(tiny, name, options, choice):
    made, found = tiny(name), []
    for checkpointing in (False, True):
        generator = made.make(checkpointing=checkpointing, **options)
        for value in generator.trainable(choice, rank=2).values():
            if choice == 'lora':
                torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(0))
        if name == 'StableSR':
            parts = generator.network.structure.checkpointing, generator.cfw.decoder.gradient_checkpointing
        else:
            parts = [part.is_gradient_checkpointing for part in generator.network.children() if hasattr(part, 'config')]
        assert parts and all(part is checkpointing for part in parts)
        found.append(made.gradients(generator))
    assert found[0].keys() == found[1].keys() and found[0]
    for key, plain in found[0].items():
        assert plain.abs().max() > 0, key
        assert (found[1][key] - plain).abs().max() <= 1e-5 * plain.abs().max(), key


@pytest.mark.parametrize('choice', ['released', 'lora'])
@pytest.mark.parametrize('name', NAMES)
def test_reference_is_the_starting_policy(tiny, tmp_path, name, choice):
    made, out = tiny(name), tmp_path / 'out'
    options = {'variant': 'r1'} if name == 'DiT4SR' else {}
    generator = made.make(**options)
    cond = generator.condition(made.lq())
    with torch.no_grad():
        start = predicted(made, generator, cond)
        chosen = generator.trainable(choice, rank=2, alpha=4.0)
        torch.testing.assert_close(predicted(made, generator, cond), start)
        torch.enable_grad()(made.step)(generator)
        after = predicted(made, generator, cond)
        with generator.reference():
            again = predicted(made, generator, cond)
        torch.testing.assert_close(again, start, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(after, start, atol=1e-3)
        generator.save(out, 'original')  # a LoRA is merged, where the released file has none
        torch.testing.assert_close(predicted(made, made.make(out, **options), cond), after, atol=1e-4, rtol=1e-4)
        if choice == 'lora':
            _check_lora(made, chosen, out)


def _check_lora(made, chosen, out):
    """It is on the modules that 'released' trains, and only their weights have changed."""
    assert chosen and all('.lora_' in key and fits(key, RELEASED[made.name]) for key in chosen)
    if made.name == 'OSEDiff':  # has its own
        return
    old, new = made.tensors(made.files['weights']), made.tensors(out)
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    weights = {f'{key.partition(".lora_")[0]}.weight' for key in chosen}
    wanted = {k for k, v in old.items() if fits(k, RELEASED[made.name]) and k.endswith('weight') and v.ndim in (2, 4)}
    assert (
        changed == weights == wanted if made.name != 'DiT4SR' else changed == weights <= wanted
    )  # but for grouped ones


@pytest.mark.parametrize(
    'name, options, choice',
    [
        ('StableSR', CFW, 'released'),
        ('StableSR', CFW, 'lora'),
        ('DiT4SR', {'variant': 'r1'}, 'released'),
        ('OSEDiff', {}, 'lora'),
    ],
)
def test_training_in_bfloat16(tiny, tmp_path, name, options, choice):
    """Frozen weights in bfloat16, the trained ones in float32, under autocast: gradients like those in float32."""
    made, found, outs = tiny(name), [], []
    for low in (False, True):
        generator = made.make(**options)
        generator.trainable(choice, rank=2, alpha=4.0)
        cond = generator.condition(made.lq())
        assert not low or cast_frozen(generator) > 0
        with torch.autocast('cpu', torch.bfloat16, enabled=low):
            with torch.no_grad():
                outs.append(predicted(made, generator, cond))
            found.append(made.gradients(generator))
    flat = [torch.cat([value.flatten() for value in gradients.values()]) for gradients in found]
    assert all(value.dtype == torch.float32 for value in found[1].values()) and flat[1].isfinite().all()
    assert torch.cosine_similarity(*flat, dim=0) > 0.9
    assert outs[1].dtype == torch.float32 and (outs[1] - outs[0]).abs().max() < 0.1 * outs[0].abs().max()
    generator.save(tmp_path / 'out', 'original')
    assert same_checkpoint(tmp_path / 'out', made.files['weights'])


@pytest.mark.parametrize('name', NAMES)
def test_encoders_kept_off_the_gpu_are_not_moved_and_give_the_same(tiny, name):
    """`double` goes where `to` goes: over what the module holds."""
    made = tiny(name)
    options = RAM if name == 'OSEDiff' else {}
    kept = made.make(text_on_cpu=True, **options)
    expected = made.make(**options).condition(made.lq()).tensors
    found = kept.condition(made.lq()).tensors
    names = {key for key in expected if 'text' in key or key == 'tokens'}
    assert names and same({key: found[key] for key in names}, {key: expected[key] for key in names})
    kept.double()
    encoders = [kept.text, *([kept.tagger] if name in ('OSEDiff', 'SeeSR') else [])]
    assert {p.dtype for p in kept.network.parameters()} == {torch.float64}
    kinds = {
        p.dtype
        for encoder in encoders
        for module in [getattr(encoder, 'encoders', encoder)]
        for p in module.parameters()
    }
    assert kinds == {torch.float32}
