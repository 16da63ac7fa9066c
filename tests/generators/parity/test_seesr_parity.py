"""SeeSR against its own code: UNet with ControlNet, gradients, sizes of the released networks, whole sampling calls."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('diffusers')
from diffusers import AutoencoderKL  # noqa: E402

from finpercep_plugin.archs.seesr_arch import SeeSRControlNet, SeeSRNetwork, SeeSRUNet  # noqa: E402
from finpercep_plugin.generators.choice import TrainedPart  # noqa: E402
from finpercep_plugin.generators.condition import Condition  # noqa: E402
from finpercep_plugin.generators.seesr import SeeSR  # noqa: E402
from finpercep_plugin.generators.tiling import windows  # noqa: E402
from finpercep_plugin.rollout import rollout  # noqa: E402

pytestmark = pytest.mark.parity

SD2 = {'cross_attention_dim': 1024, 'attention_head_dim': [5, 10, 20, 20], 'use_linear_projection': True}
TOKENS = 'image_encoder_hidden_states'


def _network(parity) -> SeeSRNetwork:
    parts = {}
    for name, cls in [('unet', SeeSRUNet), ('controlnet', SeeSRControlNet)]:
        fixture = parity(f'seesr_{name}')
        parts[name] = cls(**fixture.config)
        parts[name].load_state_dict(fixture.weights())
    return SeeSRNetwork(**parts).eval()


def test_controlnet(parity, close):
    fixture = parity('seesr_controlnet')
    inputs, expected = fixture.inputs, dict(fixture.outputs)
    with torch.no_grad():
        down, mid = _network(parity).controlnet(
            inputs['sample'], inputs['timestep'], inputs['encoder_hidden_states'], inputs['controlnet_cond'],
            fixture.meta['conditioning_scale'], cross_attention_kwargs={TOKENS: inputs[TOKENS]}, return_dict=False,
        )  # fmt: skip
    close(mid, expected.pop('mid'), 'mid')
    assert sorted(expected) == sorted(f'down_{i}' for i in range(len(down)))
    for i, value in enumerate(down):
        close(value, expected[f'down_{i}'], f'down_{i}')


def test_unet_alone(parity, close):
    fixture, unet = parity('seesr_unet'), _network(parity).unet
    inputs = fixture.inputs
    text = inputs['sample'], inputs['timestep'], inputs['encoder_hidden_states']
    tokens = {'cross_attention_kwargs': {TOKENS: inputs[TOKENS]}, 'return_dict': False}
    count = sum(name.startswith('down_residual_') for name in inputs)
    with torch.no_grad():
        close(unet(*text, **tokens)[0], fixture.outputs['eps_no_control'], 'eps_no_control')
        residuals = [inputs[f'down_residual_{i}'] for i in range(count)]
        eps = unet(
            *text, **tokens, down_block_additional_residuals=residuals,
            mid_block_additional_residual=inputs['mid_residual'],
        )[0]  # fmt: skip
    close(eps, fixture.outputs['eps'], 'eps with the given residuals')


@pytest.mark.parametrize('checkpointing', [False, True])
def test_whole_network_and_every_gradient(parity, close, checkpointing):
    fixture, network = parity('seesr_unet'), _network(parity)
    if checkpointing:
        network.enable_gradient_checkpointing()
    inputs = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in fixture.inputs.items()}
    eps = network(
        inputs['sample'], inputs['timestep'], inputs['encoder_hidden_states'], inputs[TOKENS],
        inputs['controlnet_cond'], fixture.meta['conditioning_scale'],
    )  # fmt: skip
    loss = F.mse_loss(eps, inputs['target'])
    loss.backward()
    close(eps, fixture.outputs['eps'], 'eps')
    close(loss.reshape(fixture.outputs['loss'].shape), fixture.outputs['loss'], 'loss')
    assert fixture.grads()
    for name, expected in fixture.grads().items():
        ours = inputs[name] if name in inputs else network.get_parameter(name)
        close(ours.grad, expected, f'gradient of {name}')


@pytest.mark.parametrize('name, cls', [('unet', SeeSRUNet), ('controlnet', SeeSRControlNet)])
def test_full_size_names_and_shapes(full_keys, name, cls):
    with torch.device('meta'):
        network = cls(**SD2)
    ours = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert ours == {key: shape for key, (shape, _) in full_keys(f'seesr_{name}').items()}


@pytest.fixture
def generator(parity, with_betas):
    """generator(fixture) -> a SeeSR with the fixture's networks and options, and the condition of its inputs."""

    def make(fixture):
        meta, inputs = fixture.meta, fixture.inputs
        made = SeeSR(
            '', '', '', '', '', steps=meta['steps'], guidance=meta['guidance_scale'], tile=meta['latent_tiled_size'],
            tile_overlap=meta['latent_tiled_overlap'], conditioning_scale=meta['conditioning_scale'], color_fix='none',
        )  # fmt: skip
        scheduler = fixture.config['scheduler']
        assert scheduler['beta_schedule'] == 'scaled_linear'
        with_betas(made, meta['steps'], *(scheduler[k] for k in ('num_train_timesteps', 'beta_start', 'beta_end')))
        made.network = _network(parity)
        made.part = TrainedPart(made.network, made.released_names)
        made.vae = AutoencoderKL(**fixture.config['vae']).eval()
        stored = any((fixture.folder / name).is_file() for name in ('state_dict.safetensors', 'keys.json'))
        keys = (fixture if stored else parity('seesr_pipeline_plain')).weights()
        made.vae.load_state_dict({k.partition('.')[2]: v for k, v in keys.items() if k.startswith('vae.')})
        lq_up = inputs['lq']  # at the output size
        mean, std = made.posterior(lq_up)
        tensors = {
            'latent': mean + std * inputs['draw1'][: len(lq_up)],
            'image': lq_up,
            'text': inputs['prompt_embeds'],
            'negative_text': inputs['negative_prompt_embeds'],
            'tokens': inputs['ram_encoder_hidden_states'],
        }
        return made, Condition(lq_up[..., ::4, ::4], lq_up, None, tensors)

    return make


@pytest.mark.parametrize('name', ['seesr_pipeline_plain', 'seesr_pipeline_tiled'])
def test_whole_sampling_call(parity, close, generator, name):
    fixture = parity(name)
    with torch.no_grad():
        seesr, cond = generator(fixture)
        assert seesr.steps.tolist() == fixture.outputs['timesteps'].tolist()
        draws = fixture.inputs
        trajectory = rollout(
            seesr, cond, draws['draw0'], guidance=seesr.guidance, eta=seesr.eta, draw=lambda k: draws[f'draw{k + 2}']
        )
        for k, latent in enumerate(trajectory.latents[1:]):
            close(latent, fixture.outputs[f'latents_after_step{k}'], f'latent after step {k}')
        close(seesr.decode(trajectory.latents[-1], cond), fixture.outputs['image_0_1'], 'image')


def test_tiles_are_used(parity, generator):
    fixture = parity('seesr_pipeline_tiled')
    seesr, cond = generator(fixture)
    assert len(windows(*cond.tensors['latent'].shape[-2:], seesr.tile, seesr.tile_overlap)) > 1
    with torch.no_grad():
        out = seesr.predict(fixture.inputs['draw0'], 500, cond)
        seesr.tile = 0
        assert not torch.allclose(out, seesr.predict(fixture.inputs['draw0'], 500, cond), atol=1e-4)
