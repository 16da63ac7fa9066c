"""A SeeSR of its released structure at a size that a benchmark can afford, random weights, and its reward model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Setup

__all__ = [
    'HALF',
    'QUARTER',
    'describe',
    'forget',
    'load_reward',
    'load_seesr',
    'picture_side',
    'pictures',
    'sizes',
    'write',
]


QUARTER = 0.25
"""Of the widths: 1/16 of the weights; with pictures of half the side also 1/16 of the activations."""
HALF = 0.5
"""1/4 of the weights; with pictures of half the side 1/8 of the activations."""


def _scaled(share: float) -> Any:
    """The released networks with a share of every width, the same layers. The tagger sees 192 px."""
    from finpercep_plugin.cli.tiny.sizes import FULL

    def of(width: int) -> int:
        return int(share * width)

    unet = {
        **FULL.unet,
        'block_out_channels': list(map(of, FULL.unet['block_out_channels'])),
        'cross_attention_dim': of(1024),
        'norm_num_groups': 16,
        'attention_head_dim': [5, 10, 20, 20],
    }
    vae = {**FULL.vae, 'block_out_channels': list(map(of, FULL.vae['block_out_channels'])), 'norm_num_groups': 8}
    text = {**FULL.text, 'hidden_size': of(1024), 'intermediate_size': of(4096), 'num_attention_heads': of(16)}
    ram = {
        **FULL.ram,
        'embed_dim': of(192),
        'num_heads': (2, 4, 8, 16),
        'window_size': 6,
        'hidden_size': of(768),
        'intermediate_size': of(3072),
    }
    conditioning = tuple(map(of, (32, 64, 128, 256)))
    return dataclasses.replace(
        FULL, unet=unet, vae=vae, text=text, ram=ram, conditioning=conditioning, image=192, dtype=None
    )


def sizes(setup: Setup, share: float = QUARTER) -> Any:
    """Of the networks: tiny where quick, released on a GPU, a share of the widths on a CPU."""
    from finpercep_plugin.cli.tiny.sizes import FULL, TINY

    return TINY if setup.quick else FULL if setup.device != 'cpu' else _scaled(share)


def picture_side(setup: Setup) -> int:
    """Of sr, in pixels."""
    return 128 if setup.quick else 512 if setup.device != 'cpu' else 256


def write(folder: Path, setup: Setup, share: float = QUARTER) -> dict[str, str]:
    """Checkpoints in the released layout, and `rm`, an RM_2 of the same proportion.

    Args:
        folder: for them.
        setup: of the benchmark.
        share: of the released widths, on a CPU.

    Returns:
        {option of the generator, 'weights' or 'rm': path}.
    """
    from finpercep_plugin.archs.clip_encoder import SmallViT
    from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
    from finpercep_plugin.cli.tiny.seesr import seesr

    made = seesr(folder, setup.seed, sizes(setup, share))
    torch.manual_seed(setup.seed)
    if setup.quick:
        rm = FinPercepRM(
            backbone='small', vit=SmallViT(size=64, patch=8, width=32, depth=4, heads=2, stem=0), decoder_width=16
        )
    elif setup.device != 'cpu':
        rm = FinPercepRM()
    else:
        width, heads, decoder, adapter = (int(share * full) for full in (1024, 16, 128, 64))
        vit = SmallViT(size=224, patch=14, width=width, depth=24, heads=heads, stem=0)
        rm = FinPercepRM(backbone='small', vit=vit, decoder_width=decoder, adapter_width=adapter, score_head='residual')
    with torch.no_grad():  # growth starts from zero layers
        for parameter in rm.parameters():
            parameter += 0.001 * torch.randn(parameter.shape)
    torch.save(rm.file(), folder / 'rm_2.pth')
    return {**made, 'rm': str(folder / 'rm_2.pth')}


def load_seesr(
    files: dict[str, str],
    setup: Setup,
    bf16: bool = False,
    reference: bool = False,
    channels_last: bool = False,
    **options: Any,
) -> Any:
    """The generator, what it trains as released, with frozen weights in bfloat16 if wanted.

    Args:
        files: of `write`.
        setup: for the device.
        bf16: call it under autocast then.
        reference: keep what its reference policy needs.
        channels_last: as of the `generator:` section.
        options: of `SeeSR`.
    """
    from finpercep_plugin.generators.seesr import SeeSR
    from finpercep_plugin.models.precision import cast_frozen

    own = {name: files[name] for name in ('base', 'ram', 'dape', 'tags', 'thresholds')}
    generator = SeeSR(**own, **options)
    generator.load(files['weights'])
    if channels_last:
        generator.channels_last()
    generator.to(setup.device)
    generator.trainable('released', reference=reference)
    if bf16:
        cast_frozen(generator)
    return generator.train()


def forget(generator: Any) -> None:
    """Make the next lq a new one, its text too."""
    generator.memory.clear()
    generator.text.memory.clear()


def load_reward(files: dict[str, str], setup: Setup, bf16: bool = False, checkpointing: bool = False) -> Any:
    """FinPercep-RM_2 as a reward."""
    from finpercep_plugin.models.precision import cast_frozen
    from finpercep_plugin.rewards.finpercep_reward import FinPercepReward

    reward = FinPercepReward(rm=files['rm'], checkpointing=checkpointing)
    reward.load([2], setup.device)
    reward.stage = 2
    for encoder in reward.encoders if bf16 else ():
        cast_frozen(encoder)
    return reward


def pictures(setup: Setup, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """lq (count, 3, side / 4, side / 4) and gt (count, 3, side, side), smooth random pictures in [0, 1]."""
    rng = torch.Generator().manual_seed(setup.seed)
    gt = torch.nn.functional.interpolate(
        torch.rand(count, 3, 16, 16, generator=rng), size=(side, side), mode='bicubic'
    ).clamp(0, 1)
    lq = torch.nn.functional.interpolate(gt, scale_factor=0.25, mode='area')
    return lq.to(setup.device), gt.to(setup.device)


def describe(generator: Any, reward: Any, side: int) -> str:
    """Sizes, for the page."""
    millions = [sum(p.numel() for p in module.parameters()) / 1e6 for module in (generator, generator.network, reward)]
    return f'SeeSR of {millions[0]:.0f} M parameters ({millions[1]:.0f} M in UNet and ControlNet), RM_2 of {millions[2]:.0f} M, {side} px'
