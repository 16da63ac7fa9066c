"""Configs of stock modules, inferred from the shapes in an LDM checkpoint: small and full-size ones open with one code.

What shapes do not tell is an argument, with what the released checkpoints have as its default. Names: `ldm_keys`.
"""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import torch

from finpercep_plugin.archs.ldm_keys import RESBLOCK, State, count

__all__ = ['controlnet_config', 'text_config', 'unet_config', 'vae_config']


def unet_config(state: State, head_channels: int = 64) -> Dict[str, Any]:
    """Arguments of the UNet2DConditionModel that an LDM UNet's tensors belong to.

    Args:
        state: of the file, without `model.diffusion_model.`.
        head_channels: width of an attention head, which the shapes do not tell (Stable Diffusion 2: 64).

    Raises:
        ValueError: the tensors are not those of such a UNet.
    """
    common, attends = _unet_common(state, head_channels)
    return {
        **common,
        'out_channels': len(_need(state, 'out.2.weight')),
        'up_block_types': ['CrossAttnUpBlock2D' if has else 'UpBlock2D' for has in reversed(attends)],
    }


def controlnet_config(state: State, head_channels: int = 64) -> Dict[str, Any]:
    """Arguments of the ControlNetModel that an LDM ControlNet's tensors belong to; see `unet_config`."""
    _need(state, 'zero_convs.0.0.weight')
    return _unet_common(state, head_channels)[0]


def vae_config(state: State) -> Dict[str, Any]:
    """Arguments of the AutoencoderKL that an LDM autoencoder's tensors belong to.

    Args:
        state: of the file, without `first_stage_model.`.

    Raises:
        ValueError: the tensors are not those of an autoencoder.
    """
    levels = count(state, r'encoder\.down\.(\d+)\.')
    widths = [len(_need(state, f'encoder.down.{level}.block.0.conv1.weight')) for level in range(levels)]
    return {
        'in_channels': _need(state, 'encoder.conv_in.weight').shape[1],
        'out_channels': len(_need(state, 'decoder.conv_out.weight')),
        'latent_channels': len(_need(state, 'post_quant_conv.weight')),
        'block_out_channels': widths,
        'layers_per_block': count(state, r'encoder\.down\.0\.block\.(\d+)\.'),
        'down_block_types': ['DownEncoderBlock2D'] * levels,
        'up_block_types': ['UpDecoderBlock2D'] * levels,
    }


def text_config(state: State, head_channels: int = 64) -> Dict[str, Any]:
    """Arguments of the CLIPTextConfig whose last hidden state is open_clip's "penultimate" embedding.

    That is the output of the last layer but one after the final layer norm: a stock model of one layer fewer.

    Args:
        state: of the file, without `cond_stage_model.model.`.
        head_channels: width of an attention head, which the shapes do not tell (ViT-H/14: 64).

    Raises:
        ValueError: the tensors are not those of a text encoder.
    """
    words, width = _need(state, 'token_embedding.weight').shape
    return {
        'vocab_size': words,
        'hidden_size': width,
        'projection_dim': width,
        'intermediate_size': len(_need(state, 'transformer.resblocks.0.mlp.c_fc.weight')),
        'num_hidden_layers': count(state, RESBLOCK) - 1,
        'num_attention_heads': max(1, width // head_channels),
        'max_position_embeddings': len(_need(state, 'positional_embedding')),
        'hidden_act': 'gelu',
    }


def _unet_common(state: State, head_channels: int) -> Tuple[Dict[str, Any], List[bool]]:
    """What UNet and ControlNet configs share, and which levels have attention."""
    blocks = count(state, r'input_blocks\.(\d+)\.')
    ends = [at for at in range(blocks) if f'input_blocks.{at}.0.op.weight' in state]
    each = (ends[0] if ends else blocks) - 1
    firsts = [1 + level * (each + 1) for level in range(len(ends) + 1)]
    widths = [len(_need(state, f'input_blocks.{at}.0.in_layers.2.weight')) for at in firsts]
    attends = [f'input_blocks.{at}.1.norm.weight' in state for at in firsts]
    text = _need(state, 'middle_block.1.transformer_blocks.0.attn2.to_k.weight').shape[1]
    config = {
        'in_channels': _need(state, 'input_blocks.0.0.weight').shape[1],
        'block_out_channels': widths,
        'layers_per_block': each,
        'down_block_types': ['CrossAttnDownBlock2D' if has else 'DownBlock2D' for has in attends],
        'cross_attention_dim': text,
        'attention_head_dim': [max(1, width // head_channels) for width in widths],  # diffusers: number of heads
        'transformer_layers_per_block': count(state, r'middle_block\.1\.transformer_blocks\.(\d+)\.'),
        'use_linear_projection': _need(state, 'middle_block.1.proj_in.weight').ndim == 2,
    }
    return config, attends


def _need(state: State, name: str) -> torch.Tensor:
    if name not in state:
        raise ValueError(f'no tensor {name} in the checkpoint; its names begin with {sorted(state)[:3]}')
    return state[name]
