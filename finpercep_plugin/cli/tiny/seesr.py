"""A tiny SeeSR with random weights, in the folder that its authors release."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import torch

from finpercep_plugin.archs.seesr_arch import SeeSRControlNet, SeeSRUNet
from finpercep_plugin.cli.tiny.ram import write_ram
from finpercep_plugin.cli.tiny.sd2 import filled, sd2_base, write_part
from finpercep_plugin.cli.tiny.sizes import TINY, Sizes

__all__ = ['controlnet_options', 'seesr']


def controlnet_options(sizes: Sizes) -> Dict[str, Any]:
    """Constructor arguments of the ControlNet that belongs to `sizes.unet`."""
    other = ('out_channels', 'sample_size', 'up_block_types')
    shared = {name: value for name, value in sizes.unet.items() if name not in other}
    return {**shared, 'conditioning_embedding_out_channels': list(sizes.conditioning)}


def seesr(folder: Path, seed: int = 0, sizes: Sizes = TINY) -> Dict[str, str]:
    """Write `seesr/` with unet/ and controlnet/, the Stable Diffusion folder `sd2/`, and RAM's files in `ram/`.

    Args:
        folder: receives them.
        seed: of all weights.
        sizes: of the networks.

    Returns:
        {'weights', 'base', 'ram', 'dape', 'tags', 'thresholds': path}: weights and options of the generator.
    """
    folder = Path(folder)
    sd2_base(folder / 'sd2', seed, ('vae', 'text_encoder', 'tokenizer', 'scheduler'), sizes)
    parts = (
        ('unet', SeeSRUNet, 'UNet2DConditionModel', sizes.unet),
        ('controlnet', SeeSRControlNet, 'ControlNetModel', controlnet_options(sizes)),
    )
    for number, (part, kind, name, options) in enumerate(parts):
        network = filled(lambda kind=kind, options=options: kind(**options), seed + 10 + number)
        config = {'_class_name': name, '_diffusers_version': '0.21.0', 'use_image_cross_attention': True, **options}
        write_part(folder / 'seesr' / part, config, network.state_dict(), dtype=sizes.dtype)
    with torch.random.fork_rng(devices=[]):
        ram = write_ram(folder / 'ram', seed=seed, sizes=sizes)
    paths = {'weights': folder / 'seesr', 'base': folder / 'sd2', **ram}
    return {name: str(path) for name, path in paths.items()}
