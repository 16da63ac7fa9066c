"""The released generators with networks of the released sizes and no weights, to count with on torch's meta device."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ['SD35_MEDIUM', 'released']

SD35_MEDIUM: dict[str, Any] = {
    'sample_size': 128,
    'patch_size': 2,
    'in_channels': 16,
    'num_layers': 24,
    'attention_head_dim': 64,
    'num_attention_heads': 24,
    'joint_attention_dim': 4096,
    'caption_projection_dim': 1536,
    'pooled_projection_dim': 2048,
    'out_channels': 16,
    'pos_embed_max_size': 384,
    'dual_attention_layers': list(range(13)),
    'qk_norm': 'rms_norm',
}


def released(name: str) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """A generator with the networks of its release, and the shapes of what its network sees beside latents and pictures."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from finpercep_plugin.archs.osediff_arch import module_lists
    from finpercep_plugin.cli.tiny.seesr import controlnet_options
    from finpercep_plugin.cli.tiny.sizes import FULL
    from finpercep_plugin.registry import GENERATORS as REGISTERED

    kind, text, vae = REGISTERED.get(name), {'text': (77, 1024)}, dict(FULL.vae)
    if name == 'SeeSR':
        generator = kind(base='', ram='', dape='', tags='', thresholds='')
        config: dict[str, Any] = {'unet': FULL.unet, 'controlnet': controlnet_options(FULL)}
        text['tokens'] = (145, 512)
    elif name == 'OSEDiff':
        generator = kind(base='')
        lists = module_lists(UNet2DConditionModel(**FULL.unet), AutoencoderKL(**vae))
        config = {'unet': FULL.unet, 'vae': vae, 'rank_unet': 4, 'rank_vae': 4, **lists}
    elif name == 'StableSR':
        generator, config = kind(), {'unet': FULL.unet, 'structure': {'out_channels': 256}}
    elif name == 'DiffBIR':
        generator = kind(base='')
        control = {k: v for k, v in controlnet_options(FULL).items() if k != 'conditioning_embedding_out_channels'}
        config = {'unet': FULL.unet, 'controlnet': {**control, 'in_channels': 8}}
    else:
        generator = kind(base='')
        config = {'variant': 'v1', 'transformer': SD35_MEDIUM}
        vae |= {'latent_channels': 16, 'scaling_factor': 1.5305, 'shift_factor': 0.0609}
        vae |= {'use_quant_conv': False, 'use_post_quant_conv': False}
        text = {'text': (77 + 256, 4096), 'pooled': (2048,), 'control_scale': ()}
    generator.network, generator.vae = generator.build_network(config), AutoencoderKL(**vae)
    return generator, text
