"""DiT4SR against its own code, both released variants: network, gradients, training loss, sampler, full-size names."""

import re

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.archs.dit4sr_arch import DiT4SRNetwork, DiT4SRTransformer, is_inert  # noqa: E402
from finpercep_plugin.generators.choice import TrainedPart  # noqa: E402
from finpercep_plugin.generators.condition import Condition  # noqa: E402
from finpercep_plugin.generators.dit4sr import DiT4SR, trained_timesteps  # noqa: E402
from finpercep_plugin.rollout import rollout  # noqa: E402

pytestmark = pytest.mark.parity

VARIANTS = pytest.mark.parametrize('variant', ['v1', 'r1'])
SCALE = (
    1.2  # the released code has it as a constant, so that the training numbers of these folders are made with it too
)
SD35_MEDIUM = {
    'sample_size': 128, 'patch_size': 2, 'in_channels': 16, 'out_channels': 16, 'num_layers': 24,
    'attention_head_dim': 64, 'num_attention_heads': 24, 'joint_attention_dim': 4096, 'caption_projection_dim': 1536,
    'pooled_projection_dim': 2048, 'pos_embed_max_size': 384, 'dual_attention_layers': list(range(13)),
    'qk_norm': 'rms_norm',
}  # fmt: skip


def _fixture(parity, variant):
    fixture = parity(f'dit4sr_{variant}')
    network = DiT4SRTransformer(variant, **fixture.config)
    positions = {'pos_embed.pos_embed': network.pos_embed.pos_embed}  # where the folder leaves it to the module
    network.load_state_dict({**positions, **{k: v for k, v in fixture.weights().items() if not is_inert(k)}})
    return fixture, network


def _sampler(meta):
    """Options of the generator, from the description of the run."""
    found = re.search(r'shift=([\d.]+)\), (\d+) steps, CFG ([\d.]+)', meta['sampler'])
    assert found, meta['sampler']
    return {'shift': float(found[1]), 'steps': int(found[2]), 'guidance': float(found[3])}


@VARIANTS
def test_positions_are_those_of_the_file(parity, close, variant):
    fixture = parity(f'dit4sr_{variant}')
    stored = fixture.weights().get('pos_embed.pos_embed')
    if stored is None:
        pytest.skip('the folder leaves them to the module')
    close(DiT4SRTransformer(variant, **fixture.config).pos_embed.pos_embed, stored, 'pos_embed', rtol=1e-3)  # fp16 file


@VARIANTS
@pytest.mark.parametrize('checkpointing', [False, True])
def test_network_and_every_gradient(parity, close, variant, checkpointing):
    fixture, network = _fixture(parity, variant)
    if checkpointing:
        network.enable_gradient_checkpointing()
    inputs = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in fixture.inputs.items()}
    out = network(inputs['x'], inputs['timestep'], inputs['ctx'], inputs['pooled'], inputs['lr'], SCALE)
    loss = F.mse_loss(out, inputs['target'])
    loss.backward()
    close(out, fixture.outputs['out'], 'out')
    close(loss.reshape(fixture.outputs['loss'].shape), fixture.outputs['loss'], 'loss')
    assert fixture.grads()
    for name, expected in fixture.grads().items():
        ours = inputs[name] if name in inputs else network.get_parameter(name)
        close(ours.grad, expected, f'gradient of {name}')


def _generator(parity, variant):
    """(fixture, a DiT4SR with its network and options)."""
    fixture, network = _fixture(parity, variant)
    options = dict(control_scale=SCALE, train_control_scale=SCALE, tile=0, checkpointing=False)
    generator = DiT4SR('none', variant, **options, **_sampler(fixture.meta))
    generator.network = DiT4SRNetwork(network)
    generator.part = TrainedPart(generator.network)
    return fixture, generator


def _condition(inputs, count):
    """Of the first `count` samples; one negative text is all samples'."""
    names = {'text': 'ctx', 'pooled': 'pooled', 'latent': 'lr', 'negative_text': 'neg', 'negative_pooled': 'neg_pooled'}
    tensors = {name: inputs[key][:count].expand(count, *inputs[key].shape[1:]) for name, key in names.items()}
    image = torch.zeros(count, 3, 8, 8)
    return Condition(image, image, tensors={**tensors, 'control_scale': torch.full((count,), SCALE)})


@VARIANTS
def test_training_loss(parity, close, variant, monkeypatch):
    fixture, generator = _generator(parity, variant)
    inputs, expected = fixture.inputs, fixture.outputs
    t = trained_timesteps(inputs['idx'], generator.schedule.shift)
    close(t, expected['train_timesteps'], 'train_timesteps')
    close(generator.schedule.level(t, inputs['z']).flatten(), expected['train_sigmas'], 'train_sigmas')
    monkeypatch.setattr(generator, 'encode', lambda image, cond: image)
    with torch.no_grad():
        loss = generator.pretrain_loss(inputs['z'], _condition(inputs, len(t)), inputs['noise'], t).mean()
    close(loss.reshape(expected['train_loss'].shape), expected['train_loss'], 'train_loss')


@VARIANTS
def test_sampler(parity, close, variant):
    fixture, generator = _generator(parity, variant)
    close(generator.steps, fixture.outputs['sample_timesteps'], 'sample_timesteps')
    inputs = fixture.inputs
    cond = _condition(inputs, len(inputs['x_T']))
    latents = rollout(generator, cond, inputs['x_T'], guidance=generator.guidance).latents[1:]
    assert sum(name.startswith('latents_step') for name in fixture.outputs) == len(latents)
    for i, ours in enumerate(latents):
        close(ours, fixture.outputs[f'latents_step{i}'], f'latents_step{i}')


@VARIANTS
def test_full_size_names_and_shapes(full_keys, variant):
    with torch.device('meta'):
        network = DiT4SRTransformer(variant, **SD35_MEDIUM)
    ours = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    released = {key: shape for key, (shape, _) in full_keys('dit4sr_transformer').items()}
    inert = [key for key in released if is_inert(key)]
    assert len(inert) == 130
    assert ours == {key: shape for key, shape in released.items() if key not in inert}
    control = sum(value.numel() for key, value in network.named_parameters() if 'control' in key)
    assert round(control / 1e6, 1) == 350.9
