import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from finpercep_plugin.archs.ldm_config import controlnet_config, text_config, unet_config, vae_config
from finpercep_plugin.archs.ldm_keys import (
    controlnet_keys,
    fit,
    text_inert,
    text_keys,
    text_state,
    unet_keys,
    vae_keys,
)

pytestmark = pytest.mark.parity


def below(state, prefix):
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


@pytest.fixture
def full(full_keys):
    """full(name) -> {released name: meta tensor} of a full-size network."""
    return lambda name: {k: torch.empty(shape, device='meta') for k, (shape, _) in full_keys(name).items()}


@pytest.fixture
def full_stablesr(full):
    return full('stablesr_full_ckpt')


def assert_consumed(module, state, keys):
    """Every tensor of the file has a place in the module, and the other way round, with shapes that fit."""
    own = module.state_dict()
    found = keys(own)
    assert sorted(found.values()) == sorted(state)
    other = {
        name: own[name].shape
        for name, key in found.items()
        if fit(state[key], own[name].shape).shape != own[name].shape
    }
    assert not other
    assert module.num_parameters() >= sum(value.numel() for value in state.values())
    return found


def test_text_encoder(parity, close):
    fixture = parity('openclip_text')
    state = below(fixture.weights(), 'model.')
    text = fixture.config['clip']['text_cfg']
    model = CLIPTextModel(CLIPTextConfig(**text_config(state, text['width'] // text['heads']))).eval()
    assert model.config.num_hidden_layers == text['layers'] - 1
    model.load_state_dict(text_state(state, model.state_dict()), strict=True)
    with torch.no_grad():
        found = model(fixture.inputs['token_ids']).last_hidden_state
    close(found, fixture.outputs['c_txt'], 'c_txt')


def test_full_size_text_encoder(full_stablesr):
    state = below(full_stablesr, 'cond_stage_model.model.')
    with torch.device('meta'):
        own = CLIPTextModel(CLIPTextConfig(**text_config(state))).state_dict()
    found = text_state(state, own)
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in own.items()}
    used = {key for key, _ in text_keys(own).values()}
    assert used.isdisjoint(text_inert(state)) and used.union(text_inert(state)) == set(state)


def test_full_size_vae(full_stablesr):
    state = below(full_stablesr, 'first_stage_model.')
    with torch.device('meta'):
        module = AutoencoderKL(**vae_config(state))
    assert_consumed(module, state, vae_keys)


def test_full_size_unet_of_stablesr(full_stablesr):
    state = below(full_stablesr, 'model.diffusion_model.')
    state = {name: value for name, value in state.items() if '.spade.' not in name}
    with torch.device('meta'):
        module = UNet2DConditionModel(**unet_config(state))
    assert_consumed(module, state, unet_keys)


def test_full_size_unet_of_diffbir(full):
    state = full('diffbir_unet')
    with torch.device('meta'):
        module = UNet2DConditionModel(**unet_config(state))
    assert_consumed(module, state, unet_keys)


def test_full_size_controlnet_of_diffbir(full):
    state = full('diffbir_controlnet')
    with torch.device('meta'):
        module = ControlNetModel(**controlnet_config(state))
    found = assert_consumed(module, state, controlnet_keys)
    rest = [name for name in module.state_dict() if name not in found]
    assert rest and all(name.startswith('controlnet_cond_embedding.') for name in rest)
