"""StableSR against its own code: structure encoder, SPADE UNet, sampler, canvas, released names."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('diffusers')
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402

from finpercep_plugin.archs.ldm_config import unet_config, vae_config  # noqa: E402
from finpercep_plugin.archs.ldm_keys import fit, unet_keys, vae_keys  # noqa: E402
from finpercep_plugin.archs.stablesr_arch import StableSRNetwork, StructureEncoder, add_spade  # noqa: E402
from finpercep_plugin.diffusion.steps import step  # noqa: E402
from finpercep_plugin.generators.choice import TrainedPart  # noqa: E402
from finpercep_plugin.generators.condition import Condition  # noqa: E402
from finpercep_plugin.generators.ldm_files import TEXT, UNET, VAE, StateFile, below  # noqa: E402
from finpercep_plugin.generators.stablesr import StableSR  # noqa: E402
from finpercep_plugin.generators.stablesr_files import (  # noqa: E402
    STRUCTURE,
    build_network,
    check_checkpoint,
    network_config,
    network_keys,
)  # fmt: skip
from finpercep_plugin.generators.tiling import gaussian_window  # noqa: E402
from finpercep_plugin.rollout import rollout  # noqa: E402

pytestmark = pytest.mark.parity

_STRUCTURE = (
    'in_channels', 'model_channels', 'out_channels', 'num_res_blocks', 'attention_resolutions', 'channel_mult',
    'num_heads',
)  # fmt: skip


def loaded(module, state, keys):
    """The module with the file's tensors, all of which have a place; {name in the file: ours}."""
    own = module.state_dict()
    names = keys(own)
    assert sorted(names.values()) == sorted(state)
    module.load_state_dict({name: fit(state[key], own[name].shape) for name, key in names.items()}, strict=True)
    return {key: name for name, key in names.items()}


def same(names):
    return {name: name for name in names}


def structure_encoder(parity):
    fixture = parity('stablesr_struct_encoder')
    encoder = StructureEncoder(**{name: fixture.config[name] for name in _STRUCTURE})
    loaded(encoder, fixture.weights(), same)
    return encoder


def spade_unet(parity):
    fixture = parity('stablesr_unet_spade')
    state, config = fixture.weights(), fixture.config
    unet = UNet2DConditionModel(**unet_config(state, config['num_head_channels']))
    names = loaded(add_spade(unet, config['semb_channels']), state, unet_keys)
    return unet.eval(), names


def features(tensors):
    found = {k: v for k, v in tensors.items() if k.startswith('struct_cond_')}
    assert found
    return {tuple(v.shape[-2:]): v for v in found.values()}


def with_gradient(tensors):
    return {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in tensors.items()}


def one(loss, like):
    return loss.reshape(like.shape)


def shaped(gradient, like):
    """A gradient in the file's shape; None stays."""
    return None if gradient is None else fit(gradient, like.shape)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_structure_encoder(parity, close, checkpointing):
    fixture, encoder = parity('stablesr_struct_encoder'), structure_encoder(parity)
    encoder.checkpointing = checkpointing
    inputs = with_gradient(fixture.inputs)
    found = encoder(inputs['z_lq'], inputs['timesteps'])
    assert len(found) == len(features(fixture.outputs))
    for (_, width), value in found.items():
        close(value, fixture.outputs[f'struct_cond_{width}'], f'feature of width {width}')
    loss = sum(F.mse_loss(value, inputs[f'target_{width}']) for (_, width), value in found.items())
    close(one(loss, fixture.outputs['loss']), fixture.outputs['loss'], 'loss')
    loss.backward()
    assert fixture.grads()
    for name, expected in fixture.grads().items():
        ours = inputs[name] if name in inputs else encoder.get_parameter(name)
        close(ours.grad, expected, f'gradient of {name}')


@pytest.mark.parametrize('checkpointing', [False, True])
def test_unet(parity, close, checkpointing):
    fixture, (unet, names) = parity('stablesr_unet_spade'), spade_unet(parity)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    inputs = with_gradient(fixture.inputs)
    text = inputs['ctx'] = inputs.pop('context')
    eps = unet(inputs['x'], inputs['timesteps'], text, timestep_cond=features(inputs)).sample
    loss = F.mse_loss(eps, inputs['target'])
    loss.backward()
    close(eps, fixture.outputs['eps'], 'eps')
    close(one(loss, fixture.outputs['loss']), fixture.outputs['loss'], 'loss')
    assert fixture.grads()
    for name, expected in fixture.grads().items():
        ours = inputs[name] if name in inputs else unet.get_parameter(names[name])
        close(shaped(ours.grad, expected), expected, f'gradient of {name}')


def generator(parity, **options):
    """A StableSR on the networks of the fixtures, and where the tensors of a released file are in it."""
    unet, _ = spade_unet(parity)
    network = StableSRNetwork(unet, structure_encoder(parity)).eval()
    model = StableSR(**{'tile': 0, **options})
    model.network, model.part = network, TrainedPart(network, model.released_names)
    return model, {key: name for name, key in network_keys(network.state_dict()).items()}


def condition(inputs):
    blank = torch.zeros(len(inputs['z_lq']), 3, 1, 1)
    tensors = {'latent': inputs['z_lq'], 'text': inputs['context']}
    if 'context_neg' in inputs:
        tensors['negative_text'] = inputs['context_neg']
    return Condition(blank, blank, None, tensors)


def draws(inputs):
    return lambda index: inputs[f'draw{index}']


@pytest.fixture
def diffusion(parity, with_betas):
    """diffusion(name, options) -> (fixture, `generator` with its steps, schedule and parameterization)."""

    def make(name, **options):
        fixture = parity(name)
        config, steps = fixture.config, len(fixture.outputs['ori_timesteps'])
        model, names = generator(parity, parameterization=config['parameterization'], steps=steps, **options)
        if 'linear_start' in config:
            with_betas(model, steps, config.get('timesteps', 1000), config['linear_start'], config['linear_end'])
        return fixture, model, names

    return make


@pytest.mark.parametrize('name', ['stablesr_diffusion_eps', 'stablesr_diffusion_v'])
class TestDiffusion:
    def test_sampler(self, diffusion, close, name):
        fixture, model, _ = diffusion(name)
        outputs, steps = fixture.outputs, fixture.meta['steps']
        close(model.schedule.alphas, outputs['alphas_cumprod_1000'], 'alphas_cumprod')
        assert model.steps.flip(0).tolist() == outputs['ori_timesteps'].tolist()
        found = rollout(model, condition(fixture.inputs), fixture.inputs['x_T'], draw=draws(fixture.inputs))
        latents = {steps - 1 - i: latent for i, latent in enumerate(found.latents[1:])}
        assert sorted(f'latents_i{i}' for i in latents) == sorted(k for k in outputs if k.startswith('latents_i'))
        for i, latent in latents.items():
            close(latent, outputs[f'latents_i{i}'], f'latents_i{i}')
        close(found.latents[-1], outputs['samples'], 'samples')

    def test_variances_of_the_steps(self, diffusion, close, name):
        fixture, model, _ = diffusion(name)
        x = torch.zeros(len(model.steps), 1)
        level = model.schedule.level(model.steps.flip(0), x)
        level_prev = torch.cat([torch.full_like(level[:1], model.schedule.clean), level[:-1]])
        close((1 - level / level_prev).flatten(), fixture.outputs['respaced_betas'], 'respaced_betas')
        _, std = step(x, x, level, level_prev, model.prediction, eta=model.eta)
        close(std.square().flatten(), fixture.outputs['posterior_variance'], 'posterior_variance')

    def test_guidance(self, diffusion, close, name):
        fixture, model, _ = diffusion(name)
        inputs, keys = fixture.inputs, [k for k in fixture.outputs if k.startswith('cfg')]
        assert keys
        for key in keys:  # of one step, i from the end, from x_T
            guidance, _, i = key[len('cfg') :].partition('_step_i')
            steps = model.steps[-1 - int(i) :]
            found = rollout(model, condition(inputs), inputs['x_T'], 1, steps, float(guidance), draw=draws(inputs))
            close(found.latents[-1], fixture.outputs[key], key)

    @pytest.mark.parametrize('checkpointing', [False, True])
    def test_training_loss_and_gradients(self, diffusion, close, name, checkpointing, monkeypatch):
        fixture, model, names = diffusion(name)
        inputs, outputs = fixture.inputs, fixture.outputs
        if checkpointing:
            model.network.enable_gradient_checkpointing()
        monkeypatch.setattr(model, 'encode', lambda image, cond: image)
        loss = model.pretrain_loss(inputs['z_gt'], condition(inputs), inputs['noise'], inputs['timesteps']).mean()
        close(one(loss, outputs['train_loss']), outputs['train_loss'], 'train_loss')
        loss.backward()
        assert fixture.grads()
        for key, expected in fixture.grads().items():
            gradient = model.network.get_parameter(names[key]).grad
            close(shaped(gradient, expected), expected, f'gradient of {key}')

    def test_names_of_the_checkpoint_of_the_run(self, parity, name):
        shapes = json.loads((parity(name).folder / 'full_ckpt_keys.json').read_text())
        tensors = {key: torch.empty(shape, device='meta') for key, shape in shapes.items()}
        with torch.device('meta'):
            network = build_network(network_config(tensors)).state_dict()
            vae = AutoencoderKL(**vae_config(below(tensors, VAE))).state_dict()
        ours = {key: network[name] for name, key in network_keys(network).items()}
        ours.update({VAE + key: vae[name] for name, key in vae_keys(vae).items()})
        assert {key for key in tensors if '.' in key} == set(ours)
        assert not [key for key, value in ours.items() if fit(tensors[key], value.shape).shape != value.shape]


def test_canvas(parity, diffusion, close):
    config = parity('stablesr_canvas').config
    fixture, model, _ = diffusion('stablesr_canvas', tile=config['tile_size'], tile_overlap=config['tile_overlap'])
    outputs = fixture.outputs
    assert len(model.steps) == config['steps']
    weights = outputs['tile_weights']
    close(gaussian_window(*weights.shape[-2:]).expand(weights.shape), weights, 'tile_weights')
    assert model.steps.flip(0).tolist() == outputs['ori_timesteps'].tolist()
    found = rollout(model, condition(fixture.inputs), fixture.inputs['x_T'], draw=draws(fixture.inputs))
    close(found.latents[-1], outputs['samples'], 'samples')


@pytest.fixture
def full(full_keys):
    """full(name) -> the full-size checkpoint, on the meta device."""

    def make(name):
        tensors = {k: torch.empty(shape, device='meta') for k, (shape, _) in full_keys(name).items()}
        return StateFile(Path(name), tensors, {})

    return make


def millions(tensors, word):
    return sum(value.numel() for name, value in tensors.items() if word in name) / 1e6


def test_full_size_checkpoint_is_used_up(full):
    file = full('stablesr_full_ckpt')
    check_checkpoint(file)
    with torch.device('meta'):
        network = build_network(network_config(file.tensors))
    keys, inert = network_keys(network.state_dict()), {name for name in file.tensors if '.' not in name}
    assert set(keys.values()) == {name for name in file.tensors if name.startswith((UNET, STRUCTURE))}
    assert len(inert) == 12
    with torch.device('meta'):
        released = StructureEncoder().state_dict()
    structure = network.structure.state_dict()
    assert {k: v.shape for k, v in structure.items()} == {k: v.shape for k, v in released.items()}
    assert millions(file.tensors, '.spade.') == pytest.approx(53.0, abs=0.05)
    assert millions(file.tensors, STRUCTURE) == pytest.approx(52.5, abs=0.05)


@pytest.mark.parametrize('prefix', [UNET, STRUCTURE, VAE, TEXT])
def test_full_size_checkpoint_with_wrong_names(full, prefix):
    file = full('stablesr_full_ckpt')
    name = [name for name in file.tensors if name.startswith(prefix) and name.endswith('.bias')][3]
    file.tensors[prefix + 'extra.weight'] = file.tensors.pop(name)
    with pytest.raises(ValueError) as error:
        check_checkpoint(file)
    assert f'missing: {name}' in str(error.value) and f'unexpected: {prefix}extra.weight' in str(error.value)
