"""A tiny OSEDiff with random weights, in the file that its authors release."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, Mapping

import torch
from torch import nn

from finpercep_plugin.archs.osediff_arch import UNET_LISTS, VAE_LISTS, add_adapters, module_lists
from finpercep_plugin.cli.tiny.ram import write_ram
from finpercep_plugin.cli.tiny.sd2 import filled, sd2_base
from finpercep_plugin.cli.tiny.sizes import TINY, Sizes
from finpercep_plugin.generators.checkpoint import write_weights

__all__ = ['osediff']

RANK = 4


def osediff(folder: Path, seed: int = 0, sizes: Sizes = TINY) -> Dict[str, str]:
    """Write `osediff.pkl`, the Stable Diffusion folder `sd2/` that it belongs to, and RAM's files in `ram/`.

    Args:
        folder: receives them.
        seed: of all weights.
        sizes: of the networks.

    Returns:
        {'weights', 'base', 'ram', 'dape', 'tags', 'thresholds': path}: weights and options of the generator.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = Path(folder)
    sd2_base(folder / 'sd2', seed, sizes=sizes)
    unet = filled(
        lambda: UNet2DConditionModel(**sizes.unet), seed + 2
    )  # that of sd2_base, whose conv_in the file repeats
    vae = filled(lambda: AutoencoderKL(**sizes.vae), seed)
    lists, rng = module_lists(unet, vae), torch.Generator().manual_seed(seed + 3)
    data: Dict[str, Any] = {**lists, 'rank_unet': RANK, 'rank_vae': RANK}
    data['state_dict_unet'] = _adapters(unet, lists, UNET_LISTS, rng)
    data['state_dict_vae'] = _adapters(vae, lists, VAE_LISTS, rng)
    write_weights(data, folder / 'osediff.pkl')
    with torch.random.fork_rng(devices=[]):  # building its network draws from the global generator
        ram = write_ram(folder / 'ram', seed=seed, sizes=sizes)
    paths = {'weights': folder / 'osediff.pkl', 'base': folder / 'sd2', **ram}
    return {name: str(path) for name, path in paths.items()}


def _adapters(
    network: nn.Module, lists: Mapping[str, Any], adapters: Mapping[str, str], rng: torch.Generator
) -> Dict[str, torch.Tensor]:
    """The tensors of the file: random LoRA, none of it 0, and conv_in of the UNet."""
    add_adapters(network, {adapter: lists[name] for name, adapter in adapters.items()}, RANK)
    state = {}
    for name, value in network.state_dict().items():
        if '.lora_' in name:
            state[name] = torch.randn(value.shape, generator=rng) * 0.3 / math.sqrt(value[0].numel())
        elif name.startswith('conv_in.'):
            state[name] = value
    return state
