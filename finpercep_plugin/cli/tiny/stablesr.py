"""A tiny StableSR with random weights, in the files that its authors release."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import torch

from finpercep_plugin.archs.cfw_arch import CFWAutoencoder
from finpercep_plugin.cli.tiny.ldm import LDM_VAE, text_tensors, vae_tensors
from finpercep_plugin.cli.tiny.sd2 import TEXT_WIDTH, filled
from finpercep_plugin.diffusion.schedule import alphas_cumprod
from finpercep_plugin.generators.checkpoint import write_weights
from finpercep_plugin.generators.ldm_files import VAE, below
from finpercep_plugin.generators.stablesr_files import build_network, network_keys

__all__ = ['stablesr']

_UNET: Dict[str, Any] = {
    'in_channels': 4,
    'out_channels': 4,
    'block_out_channels': [32, 64],  # 32 groups, which the file does not tell; one attention head
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
    'layers_per_block': 1,
    'cross_attention_dim': TEXT_WIDTH,
    'attention_head_dim': 1,
    'use_linear_projection': True,
}
_STRUCTURE: Dict[str, Any] = {
    'model_channels': 32,
    'out_channels': 32,
    'num_res_blocks': 1,
    'attention_resolutions': [1],
    'channel_mult': [1, 2],
}
_SCHEDULE = (  # nobody reads these: right in name and shape only
    'betas', 'alphas_cumprod_prev', 'sqrt_alphas_cumprod', 'sqrt_one_minus_alphas_cumprod',
    'log_one_minus_alphas_cumprod', 'sqrt_recip_alphas_cumprod', 'sqrt_recipm1_alphas_cumprod', 'posterior_variance',
    'posterior_log_variance_clipped', 'posterior_mean_coef1', 'posterior_mean_coef2',
)  # fmt: skip


def stablesr(folder: Path, seed: int = 0) -> Dict[str, str]:
    """Write `stablesr.ckpt` and `vqgan_cfw.ckpt`, 20 MB in all.

    Args:
        folder: receives them.
        seed: of all weights.

    Returns:
        {'weights', 'cfw': path}: weights and option of the generator.
    """
    from diffusers import AutoencoderKL

    folder = Path(folder)
    network = filled(lambda: build_network({'unet': _UNET, 'structure': _STRUCTURE}), seed).state_dict()
    first_stage = vae_tensors(filled(lambda: AutoencoderKL(**LDM_VAE), seed + 1))
    state = {
        'alphas_cumprod': alphas_cumprod(),
        **{name: torch.zeros(1000) for name in _SCHEDULE},
        **{key: network[name] for name, key in network_keys(network).items()},
        **first_stage,
        **text_tensors(seed + 2),
    }
    write_weights({'epoch': 0, 'global_step': 1, 'state_dict': state}, folder / 'stablesr.ckpt')
    # The first stage with fusion layers, and a tensor of what it was trained with.
    cfw = below({**vae_tensors(filled(lambda: CFWAutoencoder(**LDM_VAE), seed + 3)), **first_stage}, VAE)
    write_weights({'state_dict': {**cfw, 'loss.logvar': torch.zeros(())}}, folder / 'vqgan_cfw.ckpt')
    return {'weights': str(folder / 'stablesr.ckpt'), 'cfw': str(folder / 'vqgan_cfw.ckpt')}
