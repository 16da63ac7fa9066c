"""A tiny DiffBIR with random weights, in the files that it is released in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Dict

import torch

from finpercep_plugin.archs.diffbir_arch import IRControlNet
from finpercep_plugin.archs.ldm_keys import controlnet_keys
from finpercep_plugin.cli.tiny.ldm import CONTROLNET, ldm_state
from finpercep_plugin.cli.tiny.sd2 import filled
from finpercep_plugin.generators.checkpoint import write_weights

__all__ = ['diffbir', 'swinir']


def diffbir(folder: Path, seed: int = 0) -> Dict[str, str]:
    """Write `v2.pth` (the IRControlNet), `sd21.ckpt` and the cleaner `swinir.pth`, 15 MB in all.

    Args:
        folder: receives them.
        seed: of all weights.

    Returns:
        {'weights', 'base', 'cleaner': path}: weights and options of the generator.
    """
    folder = Path(folder)
    paths = {'weights': folder / 'v2.pth', 'base': folder / 'sd21.ckpt', 'cleaner': folder / 'swinir.pth'}
    state = filled(lambda: IRControlNet(**CONTROLNET), seed + 3).state_dict()
    write_weights({key: state[name] for name, key in controlnet_keys(state).items()}, paths['weights'])
    write_weights({'global_step': 0, 'state_dict': ldm_state(seed)}, paths['base'])
    write_weights(swinir(seed + 4), paths['cleaner'])
    return {name: str(path) for name, path in paths.items()}


def swinir(seed: int = 0, unshuffle: int = 8) -> Dict[str, torch.Tensor]:
    """DiffBIR's SwinIR of scale 1, which works on blocks of 8 x 8 pixels; random, so its picture is no clean one.

    Args:
        seed: of the weights.
        unshuffle: edge of the blocks, 2, 4 or 8; the network's own scale.
    """
    from spandrel.architectures.SwinIR import SwinIR

    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        network = SwinIR(
            img_size=64, embed_dim=12, depths=[2], num_heads=[2], window_size=8, mlp_ratio=2.0, upscale=unshuffle,
            upsampler='nearest+conv', start_unshuffle=unshuffle,
        )  # fmt: skip
    state = {}
    for name, value in network.state_dict().items():
        learned = value.is_floating_point() and 'attn_mask' not in name
        noise = torch.randn(value.shape, generator=rng) if learned else value
        if learned and value.ndim > 1:
            noise = noise / math.sqrt(value[0].numel())
        elif learned:
            noise = 0.1 * noise + (1.0 if 'norm' in name and name.endswith('weight') else 0.0)
        state[name.replace('conv_first.', 'conv_first.1.')] = noise
    return state
