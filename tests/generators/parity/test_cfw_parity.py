"""StableSR's CFW autoencoder against its own code: features, decodes, gradients, released names."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('diffusers')
from finpercep_plugin.archs.cfw_arch import CFWAutoencoder  # noqa: E402
from finpercep_plugin.archs.ldm_config import vae_config  # noqa: E402
from finpercep_plugin.archs.ldm_keys import fit, vae_keys  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture
def fixture(parity):
    return parity('stablesr_cfw_vae')


@pytest.fixture
def vae(fixture):
    """With the file's tensors, all of which have a place."""
    state = fixture.weights()
    vae = CFWAutoencoder(**vae_config(state))
    own, names = vae.state_dict(), vae_keys(vae.state_dict())
    assert sorted(names.values()) == sorted(state)
    vae.load_state_dict({name: fit(state[key], own[name].shape) for name, key in names.items()}, strict=True)
    return vae


@torch.no_grad()
def test_features_and_decodes(fixture, vae, close):
    inputs, outputs = fixture.inputs, fixture.outputs
    close(vae.encode(inputs['lq']).latent_dist.parameters, outputs['moments'], 'moments')
    found = vae.features(inputs['lq'])
    assert sorted(f'enc_fea_{level - 1}' for level in found) == sorted(k for k in outputs if 'enc_fea' in k)
    for level, value in found.items():
        close(value, outputs[f'enc_fea_{level - 1}'], f'feature of level {level}')
    names = [name for name in outputs if name.startswith('dec_w')]
    assert names
    for name in names:
        close(vae.decode_with(inputs['z'], found, float(name[len('dec_w') :])), outputs[name], name)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_gradients(fixture, vae, close, checkpointing):
    # In float64: the gradient jumps where the argument of a leaky ReLU changes its sign by rounding.
    inputs, outputs, vae = {k: v.double() for k, v in fixture.inputs.items()}, fixture.outputs, vae.double()
    inputs['z'].requires_grad_()
    if checkpointing:
        vae.enable_gradient_checkpointing()
    with torch.no_grad():
        found = vae.features(inputs['lq'])
    loss = F.mse_loss(vae.decode_with(inputs['z'], found, fixture.config['fusion_w']), inputs['target'])
    loss.backward()
    close(loss.reshape(outputs['loss'].shape), outputs['loss'], 'loss')
    names = {key: name for name, key in vae_keys(vae.state_dict()).items()}
    assert fixture.grads()
    for name, expected in fixture.grads().items():
        gradient = (inputs[name] if name in inputs else vae.get_parameter(names[name])).grad
        close(gradient if gradient is None else fit(gradient, expected.shape), expected, f'gradient of {name}')


def test_full_size_names(full_keys):
    state = {key: torch.empty(shape, device='meta') for key, (shape, _) in full_keys('stablesr_cfw_vae').items()}
    with torch.device('meta'):
        vae = CFWAutoencoder(**vae_config(state))
    own, keys = vae.state_dict(), vae_keys(vae.state_dict())
    assert set(keys.values()) == {name for name in state if not name.startswith('loss.')}
    assert {name: fit(state[key], own[name].shape).shape for name, key in keys.items()} == {
        name: value.shape for name, value in own.items()
    }
    fusion = sum(value.numel() for name, value in state.items() if 'fusion' in name)
    assert fusion / 1e6 == pytest.approx(44.4, abs=0.05)
