import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from finpercep_plugin.archs.ldm_config import controlnet_config, text_config, unet_config, vae_config
from finpercep_plugin.archs.ldm_keys import controlnet_keys, text_keys, unet_keys, vae_keys

UNET = {
    'in_channels': 5,
    'block_out_channels': [32, 64, 96],
    'layers_per_block': 2,
    'down_block_types': ['CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'],
    'cross_attention_dim': 24,
    'attention_head_dim': [2, 4, 6],
    'transformer_layers_per_block': 1,
    'use_linear_projection': True,
}


def file_of(module, keys):
    """The module's tensors as an LDM file has them."""
    state = module.state_dict()
    return {key: state[name] for name, key in keys(state).items()}


def test_the_config_of_a_unet_is_found_again():
    up = ['UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D']
    wanted = {**UNET, 'out_channels': 3, 'up_block_types': up}
    with torch.device('meta'):
        state = file_of(UNet2DConditionModel(**wanted), unet_keys)
    assert unet_config(state, head_channels=16) == wanted


def test_convolutions_before_and_after_attention_are_seen():
    wanted = {**UNET, 'use_linear_projection': False, 'up_block_types': ['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 2}
    with torch.device('meta'):
        state = file_of(UNet2DConditionModel(**wanted), unet_keys)
    assert unet_config(state, head_channels=16)['use_linear_projection'] is False


def test_the_config_of_a_controlnet_is_found_again():
    with torch.device('meta'):
        state = file_of(ControlNetModel(**UNET), controlnet_keys)
    assert controlnet_config(state, head_channels=16) == UNET


def test_the_config_of_a_vae_is_found_again():
    wanted = {
        'in_channels': 3, 'out_channels': 3, 'latent_channels': 6, 'block_out_channels': [32, 32, 64],
        'layers_per_block': 2, 'down_block_types': ['DownEncoderBlock2D'] * 3,
        'up_block_types': ['UpDecoderBlock2D'] * 3,
    }  # fmt: skip
    with torch.device('meta'):
        state = file_of(AutoencoderKL(**wanted), vae_keys)
    assert vae_config(state) == wanted


def test_the_text_config_has_one_layer_fewer():
    sizes = {'vocab_size': 20, 'hidden_size': 32, 'intermediate_size': 48, 'max_position_embeddings': 7}
    with torch.device('meta'):
        model = CLIPTextModel(CLIPTextConfig(**sizes, num_hidden_layers=3, num_attention_heads=2))
    state = {}
    for name, (key, _) in text_keys(model.state_dict()).items():
        state[key] = model.state_dict()[name]
    wanted = {**sizes, 'projection_dim': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'hidden_act': 'gelu'}
    assert text_config(state, head_channels=16) == wanted


@pytest.mark.parametrize('function', [unet_config, controlnet_config, vae_config, text_config])
def test_a_file_of_something_else(function):
    with pytest.raises(ValueError, match=r'no tensor .* in the checkpoint; its names begin with'):
        function({'conv_first.weight': torch.zeros(1)})
