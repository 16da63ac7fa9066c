"""DiffBIR against its own code: ControlNet, controlled UNet, sampler, training loss, VAE, released names."""

import pytest
import torch

pytest.importorskip('diffusers')
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402

from finpercep_plugin.archs.diffbir_arch import DiffBIRNetwork, IRControlNet  # noqa: E402
from finpercep_plugin.archs.ldm_config import controlnet_config, unet_config, vae_config  # noqa: E402
from finpercep_plugin.archs.ldm_keys import controlnet_keys, fit, unet_keys, vae_keys  # noqa: E402
from finpercep_plugin.generators.choice import TrainedPart  # noqa: E402
from finpercep_plugin.generators.condition import Condition  # noqa: E402
from finpercep_plugin.generators.diffbir import DiffBIR  # noqa: E402
from finpercep_plugin.rollout import rollout  # noqa: E402

pytestmark = pytest.mark.parity
DIFFUSION = ['diffbir_diffusion_eps', 'diffbir_diffusion_v_zsnr']


def loaded(module, state, keys):
    """The module with the file's tensors, all of which have a place; {name in the file: parameter}."""
    own = module.state_dict()
    names = keys(own)
    assert sorted(names.values()) == sorted(state)
    module.load_state_dict({name: fit(state[key], own[name].shape) for name, key in names.items()}, strict=True)
    parameters = dict(module.named_parameters())
    return {key: parameters[name] for name, key in names.items()}


def sizes(config, kind):
    """Arguments of the stock class for what the public code's constructor was called with."""
    levels = len(config['channel_mult'])
    attends = [2**level in config['attention_resolutions'] for level in range(levels)]
    widths = [config['model_channels'] * times for times in config['channel_mult']]
    found = {
        'in_channels': config['in_channels'] + config.get('hint_channels', 0),
        'block_out_channels': widths,
        'layers_per_block': config['num_res_blocks'],
        'down_block_types': [('CrossAttnDown' if has else 'Down') + 'Block2D' for has in attends],
        'cross_attention_dim': config['context_dim'],
        'attention_head_dim': [width // config['num_head_channels'] for width in widths],
        'transformer_layers_per_block': config['transformer_depth'],
        'use_linear_projection': config['use_linear_in_transformer'],
    }
    if kind == 'unet':
        found['out_channels'] = config['out_channels']
        found['up_block_types'] = [('CrossAttnUp' if has else 'Up') + 'Block2D' for has in reversed(attends)]
    return found


def made(fixture, shapes):
    """{name: tensor} that the folder's det_weights.py makes for {name: shape}."""
    return {name: fixture.det_weights.det_weights(name, shape) for name, shape in shapes.items()}


def in_file(module, keys):
    """{name in the file: shape there} of a module's tensors."""
    own = module.state_dict()
    shapes = {key: tuple(own[name].shape) for name, key in keys(own).items()}
    return {
        key: (*s, 1, 1) if '.attn_' in key and key.endswith('weight') and len(s) == 2 else s
        for key, s in shapes.items()
    }


@pytest.fixture
def control(parity):
    """(fixture, network, {part.released name: parameter})."""
    fixture = parity('diffbir_controlnet')
    state, unet_state = fixture.weights(), fixture.weights('unet_keys.json')
    heads = {part: fixture.config[part]['num_head_channels'] for part in ('controlnet', 'unet')}
    controlnet = IRControlNet(**controlnet_config(state, heads['controlnet']))
    unet = UNet2DConditionModel(**unet_config(unet_state, heads['unet']))
    parameters = {f'controlnet.{key}': value for key, value in loaded(controlnet, state, controlnet_keys).items()}
    parameters.update({f'unet.{key}': value for key, value in loaded(unet, unet_state, unet_keys).items()})
    return fixture, DiffBIRNetwork(unet, controlnet).eval(), parameters


def generator(fixture):
    """A DiffBIR whose networks are the fixture's, and its options."""
    config = fixture.config
    options = {'parameterization': config['diffusion'].get('parameterization', 'eps')}
    options.update(zero_snr=config['diffusion'].get('zero_snr', False), steps=fixture.meta['steps'], tile=0)
    model = DiffBIR('sd.ckpt', guidance=fixture.meta['cfg_scale'], **options)
    network = model.build_network({part: sizes(config[part], part) for part in ('unet', 'controlnet')})
    loaded(network.unet, made(fixture, in_file(network.unet, unet_keys)), unet_keys)
    loaded(network.controlnet, made(fixture, in_file(network.controlnet, controlnet_keys)), controlnet_keys)
    model.network, model.part = network.eval(), TrainedPart(network, model.released_names)
    vae = config['vae']
    levels = len(vae['ch_mult'])
    model.vae = AutoencoderKL(
        block_out_channels=[vae['ch'] * times for times in vae['ch_mult']],
        layers_per_block=vae['num_res_blocks'],
        latent_channels=vae['z_channels'],
        down_block_types=['DownEncoderBlock2D'] * levels,
        up_block_types=['UpDecoderBlock2D'] * levels,
    )
    loaded(model.vae, made(fixture, in_file(model.vae, vae_keys)), vae_keys)
    return model


def condition(inputs):
    image = torch.zeros(len(inputs['hint']), 3, 8, 8)
    names = {'latent': 'hint', 'text': 'context', 'negative_text': 'neg'}
    return Condition(image, image, None, {ours: inputs[theirs] for ours, theirs in names.items()})


@pytest.mark.parametrize('checkpointing', [False, True])
def test_controlnet(control, close, checkpointing):
    fixture, network, parameters = control
    if checkpointing:
        network.unet.enable_gradient_checkpointing()
        network.controlnet.enable_gradient_checkpointing()
    outputs = fixture.outputs
    inputs = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in fixture.inputs.items()}
    skips, middle = network.controlnet.control(inputs['x'], inputs['timesteps'], inputs['hint'], inputs['context'])
    assert len(skips) + 1 == sum(name.startswith('control_') for name in outputs)
    for i, residual in enumerate([*skips, middle]):
        close(residual, outputs[f'control_{i}'], f'control_{i}')
    eps = network(inputs['x'], inputs['timesteps'], inputs['hint'], inputs['context'])
    close(eps, outputs['eps'], 'eps')
    loss = (eps - inputs['target']).square().mean()
    close(loss.reshape(outputs['loss'].shape), outputs['loss'], 'loss')
    loss.backward()
    assert fixture.grads()
    for name, expected in fixture.grads().items():
        gradient = (inputs[name] if name in inputs else parameters[name]).grad
        close(gradient if gradient is None else fit(gradient, expected.shape), expected, f'grad:{name}')


@pytest.fixture
def with_networks(with_betas):
    """with_networks(fixture) -> `generator(fixture)` on the fixture's schedule."""

    def make(fixture):
        config = fixture.config['diffusion']
        betas = (config[name] for name in ('timesteps', 'linear_start', 'linear_end'))
        return with_betas(generator(fixture), fixture.meta['steps'], *betas, zero_snr=config.get('zero_snr', False))

    return make


@pytest.mark.parametrize('name', DIFFUSION)
class TestDiffusion:
    def test_sampler(self, parity, close, name, with_networks):
        fixture = parity(name)
        model, outputs = with_networks(fixture), fixture.outputs
        close(model.schedule.alphas, outputs['alphas_cumprod'], 'alphas_cumprod')
        close(model.schedule.alphas.sqrt(), outputs['sqrt_alphas_cumprod'], 'sqrt_alphas_cumprod')
        assert model.steps.flip(0).tolist() == outputs['timesteps'].tolist()
        cond, noise = condition(fixture.inputs), fixture.inputs['x_T']
        found = rollout(model, cond, noise, guidance=model.guidance, draw=lambda i: fixture.inputs[f'draw{i}'])
        close(found.latents[-1], outputs['samples'], 'samples')

    def test_training_loss(self, parity, close, name, monkeypatch, with_networks):
        fixture = parity(name)
        model, inputs = with_networks(fixture), fixture.inputs
        monkeypatch.setattr(model, 'encode', lambda image, cond: image)
        loss = model.pretrain_loss(inputs['x0'], condition(inputs), inputs['noise'], inputs['t']).mean()
        close(loss.reshape(fixture.outputs['train_loss'].shape), fixture.outputs['train_loss'], 'train_loss')

    def test_vae(self, parity, close, name):
        fixture = parity(name)
        model, outputs = generator(fixture), fixture.outputs
        latent, _ = model.posterior(fixture.inputs['cond_img'])
        close(latent, outputs['vae_mode_latent'], 'vae_mode_latent')
        image = model.pixels(outputs['vae_mode_latent'], condition(fixture.inputs))
        close(2 * image - 1, outputs['vae_decoded'], 'vae_decoded')


def test_full_size_networks_are_used_up(full_keys):
    def meta(name):
        return {key: torch.empty(shape, device='meta') for key, (shape, _) in full_keys(name).items()}

    states = {'unet': meta('diffbir_unet'), 'controlnet': meta('diffbir_controlnet')}
    config = {'unet': unet_config(states['unet']), 'controlnet': controlnet_config(states['controlnet'])}
    with torch.device('meta'):
        network = DiffBIR('sd.ckpt').build_network(config)
    for part, keys in (('unet', unet_keys), ('controlnet', controlnet_keys)):
        own = getattr(network, part).state_dict()
        names = keys(own)
        assert names.keys() == own.keys()
        assert {key: own[name].shape for name, key in names.items()} == {k: v.shape for k, v in states[part].items()}
    parameters = sum(value.numel() for value in network.controlnet.parameters())
    assert round(parameters / 1e6, 1) == 363.2


def test_the_vae_is_that_of_a_checkpoint(parity):
    model = generator(parity(DIFFUSION[0]))
    config = vae_config({key: torch.empty(s) for key, s in in_file(model.vae, vae_keys).items()})
    assert {name: list(model.vae.config[name]) if isinstance(value, list) else model.vae.config[name]
            for name, value in config.items()} == config  # fmt: skip
