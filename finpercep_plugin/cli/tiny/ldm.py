"""Stable Diffusion 2 of a few million random parameters, in one file of LDM's layout."""

from __future__ import annotations

from typing import Any, Dict

import torch
from torch import nn

from finpercep_plugin.archs.ldm_keys import text_keys, unet_keys, vae_keys
from finpercep_plugin.cli.tiny.sd2 import TEXT_WIDTH, filled
from finpercep_plugin.generators.ldm_files import TEXT, UNET, VAE

__all__ = ['CONTROLNET', 'LAYERS', 'LDM_UNET', 'LDM_VAE', 'ldm_state', 'text_tensors', 'unet_tensors', 'vae_tensors']

# Groups of channels are 32, which the file does not tell; one channel a group on a few pixels would be ill-conditioned.
WIDTHS = [32, 64, 64]
LAYERS = 3  # of the text encoder in the file, one more than are used
WORDS = 49408  # of open_clip's tokenizer
CONTROLNET: Dict[str, Any] = {
    'in_channels': 8,
    'block_out_channels': WIDTHS,
    'down_block_types': ['CrossAttnDownBlock2D'] * 2 + ['DownBlock2D'],
    'layers_per_block': 1,
    'cross_attention_dim': TEXT_WIDTH,
    'attention_head_dim': 1,
    'use_linear_projection': True,
}
LDM_UNET: Dict[str, Any] = {
    **CONTROLNET,
    'in_channels': 4,
    'out_channels': 4,
    'up_block_types': ['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 2,
}
LDM_VAE: Dict[str, Any] = {
    'block_out_channels': [32] * 4,
    'layers_per_block': 1,
    'latent_channels': 4,
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
}


def ldm_state(seed: int = 0) -> Dict[str, torch.Tensor]:
    """The tensors of `v2-1_512-ema-pruned.ckpt` and a few of its constants, at a tiny size, 10 MB.

    Args:
        seed: of the weights.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = filled(lambda: UNet2DConditionModel(**LDM_UNET), seed)
    vae = filled(lambda: AutoencoderKL(**LDM_VAE), seed + 1)
    constants = {'betas': torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 'model_ema.decay': torch.tensor(0.9999)}
    return {**constants, **unet_tensors(unet), **vae_tensors(vae), **text_tensors(seed + 2)}


def unet_tensors(unet: nn.Module) -> Dict[str, torch.Tensor]:
    """Its tensors as the file has them."""
    state = unet.state_dict()
    return {UNET + key: state[name] for name, key in unet_keys(state).items()}


def vae_tensors(vae: nn.Module) -> Dict[str, torch.Tensor]:
    """Its tensors as the file has them: linear layers of attention as 1x1 convolutions."""
    state = vae.state_dict()
    found = {VAE + key: state[name] for name, key in vae_keys(state).items()}
    return {
        key: value[..., None, None] if '.attn_' in key and value.ndim == 2 else value for key, value in found.items()
    }


def text_tensors(seed: int = 0) -> Dict[str, torch.Tensor]:
    """A text encoder as open_clip stores it, with the layer and projection that its "penultimate" output leaves out.

    Args:
        seed: of the weights.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=WORDS, hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=1, max_position_embeddings=77, hidden_act='gelu',
    )  # fmt: skip
    state = filled(lambda: CLIPTextModel(config), seed).state_dict()
    parts: Dict[str, Dict[int, torch.Tensor]] = {}
    for name, (key, third) in text_keys(state).items():
        parts.setdefault(key, {})[third or 0] = state[name]
    found = {TEXT + key: torch.cat([part[i] for i in range(len(part))]) for key, part in parts.items()}
    found[f'{TEXT}text_projection'] = torch.eye(TEXT_WIDTH)
    found[f'{TEXT}logit_scale'] = torch.tensor(4.6)
    return found
