"""StableSR against its own code: structure encoder, SPADE UNet, CFW decoder, sampler, canvas, released names."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('diffusers')
from diffusers import UNet2DConditionModel  # noqa: E402

from finpercep_plugin.archs.cfw_arch import CFWAutoencoder  # noqa: E402
from finpercep_plugin.archs.ldm_config import unet_config, vae_config  # noqa: E402
from finpercep_plugin.archs.ldm_keys import fit, unet_keys, vae_keys  # noqa: E402
from finpercep_plugin.archs.stablesr_arch import StableSRNetwork, StructureEncoder, add_spade  # noqa: E402
from finpercep_plugin.generators.choice import TrainedPart  # noqa: E402
from finpercep_plugin.generators.condition import Condition  # noqa: E402
from finpercep_plugin.generators.ldm_files import TEXT, UNET, VAE, StateFile  # noqa: E402
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
        close(ours.grad, expected, f'gradient of {name}')


@pytest.mark.parametrize('checkpointing', [False, True])
def test_cfw(parity, close, checkpointing):
    fixture = parity('stablesr_cfw_vae')
    state, inputs, outputs = fixture.weights(), with_gradient(fixture.inputs), fixture.outputs
    vae = CFWAutoencoder(**vae_config(state))
    names = loaded(vae, state, vae_keys)
    if checkpointing:
        vae.enable_gradient_checkpointing()
    with torch.no_grad():
        close(vae.encode(inputs['lq']).latent_dist.parameters, outputs['moments'], 'moments')
        found = vae.features(inputs['lq'])
        assert sorted(f'enc_fea_{level - 1}' for level in found) == sorted(k for k in outputs if 'enc_fea' in k)
        for level, value in found.items():
            close(value, outputs[f'enc_fea_{level - 1}'], f'feature of level {level}')
        for name in (k for k in outputs if k.startswith('dec_w')):
            close(vae.decode_with(inputs['z'], found, float(name[len('dec_w') :])), outputs[name], name)
    loss = F.mse_loss(vae.decode_with(inputs['z'], found, fixture.config['fusion_w']), inputs['target'])
    loss.backward()
    close(one(loss, outputs['loss']), outputs['loss'], 'loss')
    assert fixture.grads()
    for name, expected in fixture.grads().items():
        ours = inputs[name] if name in inputs else vae.get_parameter(names[name])
        close(ours.grad, expected, f'gradient of {name}')


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


@pytest.mark.parametrize('name', ['stablesr_diffusion_eps', 'stablesr_diffusion_v'])
class TestDiffusion:
    def test_sampler(self, parity, close, name):
        fixture = parity(name)
        outputs, steps = fixture.outputs, fixture.meta['steps']
        model, _ = generator(parity, parameterization=fixture.config['parameterization'], steps=steps)
        close(model.schedule.alphas, outputs['alphas_cumprod_1000'], 'alphas_cumprod')
        assert model.steps.flip(0).tolist() == outputs['ori_timesteps'].tolist()
        found = rollout(model, condition(fixture.inputs), fixture.inputs['x_T'], draw=draws(fixture.inputs))
        latents = {steps - 1 - i: latent for i, latent in enumerate(found.latents[1:])}
        assert sorted(f'latents_i{i}' for i in latents) == sorted(k for k in outputs if k.startswith('latents_i'))
        for i, latent in latents.items():
            close(latent, outputs[f'latents_i{i}'], f'latents_i{i}')
        close(found.latents[-1], outputs['samples'], 'samples')

    def test_guidance(self, parity, close, name):
        fixture = parity(name)
        model, _ = generator(parity, parameterization=fixture.config['parameterization'])
        (key,) = [k for k in fixture.outputs if k.startswith('cfg')]
        guidance, _, i = key[len('cfg') :].partition('_step_i')
        steps = fixture.outputs['ori_timesteps'].flip(0)[-1 - int(i) :]
        found = rollout(
            model,
            condition(fixture.inputs),
            fixture.inputs['x_T'],
            1,
            steps,
            float(guidance),
            draw=draws(fixture.inputs),
        )
        close(found.latents[-1], fixture.outputs[key], key)

    @pytest.mark.parametrize('checkpointing', [False, True])
    def test_training_loss_and_gradients(self, parity, close, name, checkpointing, monkeypatch):
        fixture = parity(name)
        inputs, outputs = fixture.inputs, fixture.outputs
        model, names = generator(parity, parameterization=fixture.config['parameterization'])
        if checkpointing:
            model.network.enable_gradient_checkpointing()
        monkeypatch.setattr(model, 'encode', lambda image, cond: image)
        loss = model.pretrain_loss(inputs['z_gt'], condition(inputs), inputs['noise'], inputs['timesteps']).mean()
        close(one(loss, outputs['train_loss']), outputs['train_loss'], 'train_loss')
        loss.backward()
        assert fixture.grads()
        for key, expected in fixture.grads().items():
            close(model.network.get_parameter(names[key]).grad, expected, f'gradient of {key}')


def test_canvas(parity, close):
    fixture = parity('stablesr_canvas')
    config, outputs = fixture.config, fixture.outputs
    model, _ = generator(
        parity, tile=config['tile_size'], tile_overlap=config['tile_overlap'], steps=config['steps'],
        parameterization=config['parameterization'],
    )  # fmt: skip
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


def test_full_size_cfw_is_used_up(full):
    state = full('stablesr_cfw_vae').tensors
    with torch.device('meta'):
        vae = CFWAutoencoder(**vae_config(state))
    own, keys = vae.state_dict(), vae_keys(vae.state_dict())
    assert set(keys.values()) == {name for name in state if not name.startswith('loss.')}
    assert {name: fit(state[key], own[name].shape).shape for name, key in keys.items()} == {
        name: value.shape for name, value in own.items()
    }
    assert millions(state, 'fusion') == pytest.approx(44.4, abs=0.05)
