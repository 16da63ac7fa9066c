"""Sizes of random checkpoints of Stable Diffusion 2 generators: a few hundred thousand parameters, or as released."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

import torch

__all__ = ['FULL', 'TINY', 'Sizes']


@dataclass(frozen=True)
class Sizes:
    """Constructor arguments of the networks.

    Attributes:
        unet, vae: of diffusers' classes.
        text: of transformers' CLIPTextConfig.
        conditioning: widths of the ControlNet's embedding of the picture.
        ram: of `archs.ram_arch.RAM`.
        image: side in pixels that RAM sees.
        dtype: that weights are stored in; None: float32.
    """

    unet: Dict[str, Any]
    vae: Dict[str, Any]
    text: Dict[str, Any]
    conditioning: Tuple[int, ...]
    ram: Dict[str, Any]
    image: int
    dtype: Optional[torch.dtype] = None


def _unet(widths: Tuple[int, ...], heads: Tuple[int, ...], text: int, layers: int, groups: int) -> Dict[str, Any]:
    return {
        'in_channels': 4,
        'out_channels': 4,
        'sample_size': 8 if layers == 1 else 64,
        'block_out_channels': list(widths),
        'down_block_types': ['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'],
        'up_block_types': ['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3,
        'layers_per_block': layers,
        'norm_num_groups': groups,
        'cross_attention_dim': text,
        'attention_head_dim': list(heads),
        'use_linear_projection': True,
    }


def _vae(widths: Tuple[int, ...], layers: int, groups: int) -> Dict[str, Any]:
    return {
        'in_channels': 3,
        'out_channels': 3,
        'down_block_types': ['DownEncoderBlock2D'] * 4,
        'up_block_types': ['UpDecoderBlock2D'] * 4,
        'block_out_channels': list(widths),
        'layers_per_block': layers,
        'latent_channels': 4,
        'norm_num_groups': groups,
        'sample_size': 64 if layers == 1 else 768,
        'scaling_factor': 0.18215,
    }


TINY = Sizes(
    unet=_unet((16, 24, 24, 24), (2, 3, 3, 3), 16, 1, 4),
    vae=_vae((8, 8, 16, 16), 1, 4),
    text={'hidden_size': 16, 'intermediate_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2},
    conditioning=(4, 8, 12, 16),
    ram={
        'embed_dim': 16,
        'depths': (2, 2),
        'num_heads': (2, 4),
        'window_size': 6,
        'hidden_size': 32,
        'intermediate_size': 64,
    },
    image=48,
)
FULL = Sizes(
    unet=_unet((320, 640, 1280, 1280), (5, 10, 20, 20), 1024, 2, 32),
    vae=_vae((128, 256, 512, 512), 2, 32),
    text={'hidden_size': 1024, 'intermediate_size': 4096, 'num_hidden_layers': 23, 'num_attention_heads': 16},
    conditioning=(16, 32, 96, 256),
    ram={
        'embed_dim': 192,
        'depths': (2, 2, 18, 2),
        'num_heads': (6, 12, 24, 48),
        'window_size': 12,
        'hidden_size': 768,
        'intermediate_size': 3072,
    },
    image=384,
    dtype=torch.float16,
)
