"""A tiny RAM with random weights, in the files that RAM and SeeSR release."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Dict, Union

import torch
from torch import nn

from finpercep_plugin.archs.ram_arch import RAM
from finpercep_plugin.cli.tiny.sizes import TINY, Sizes
from finpercep_plugin.generators.checkpoint import write_weights
from finpercep_plugin.generators.ram import released_name

__all__ = ['write_ram']

_TAGS = 'animal,beach,bird,building,cat,city,cloud,dog,flower,grass,mountain,person,river,sky,tree,window'.split(',')
_RANK = 8


def write_ram(folder: Union[str, Path], width: int = 512, seed: int = 0, sizes: Sizes = TINY) -> Dict[str, Path]:
    """Write `ram_swin_large_14m.pth`, `DAPE.pth`, `ram_tag_list.txt` and `ram_tag_list_threshold.txt`.

    The tiny network sees 48 x 48 pixels and gives 1 + 36 tokens, in less than 1 MB. Its file also has, as the released one has, constants and
    parts that tagging does not read, and calls the tagging head `vision_multi`.

    Args:
        folder: made if it is not there.
        width: of the image tokens; SeeSR's UNet reads 512.
        seed: of the weights.
        sizes: of the network.

    Returns:
        {'ram', 'dape', 'tags', 'thresholds': path}.
    """
    folder = Path(folder)
    names = {'ram': 'ram_swin_large_14m.pth', 'dape': 'DAPE.pth'}
    names.update(tags='ram_tag_list.txt', thresholds='ram_tag_list_threshold.txt')
    paths = {part: folder / name for part, name in names.items()}
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # its own start values are not used
        network = RAM(sizes.image, width=width, classes=len(_TAGS), **sizes.ram)
    state = {released_name(name): _random(name, value, rng) for name, value in network.state_dict().items()}
    model = {**state, **_constants(network), **_captioning(state)}
    write_weights({'model': {key.replace('tagging_head', 'vision_multi'): model[key] for key in model}}, paths['ram'])
    write_weights(_adapters(state, rng), paths['dape'])
    paths['tags'].write_text('\n'.join(_TAGS), encoding='utf-8')
    paths['thresholds'].write_text(''.join('0.7\n' for _ in _TAGS), encoding='utf-8')
    return paths


def _random(name: str, value: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Normal by 1 / sqrt(inputs); norms about 1; biases small; labels and logits large, so that tags differ."""
    noise = torch.randn(value.shape, generator=rng)
    if name in ('label_embed', 'fc.weight'):
        return noise
    if value.ndim > 1:
        return noise / math.sqrt(value[0].numel())
    return 1 + 0.1 * noise if 'norm' in name.lower() and name.endswith('weight') else 0.1 * noise


def _constants(network: nn.Module) -> Dict[str, torch.Tensor]:
    return {released_name(name): buffer for name, buffer in network.named_buffers()}


def _captioning(state: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    tied = {key.replace('tagging_head', 'tag_encoder'): value for key, value in state.items() if 'tagging_head' in key}
    return {**tied, 'text_decoder.bert.embeddings.LayerNorm.weight': torch.ones(32)}


def _adapters(state: Dict[str, torch.Tensor], rng: torch.Generator) -> Dict[str, torch.Tensor]:
    adapters = {}
    for name, weight in state.items():
        parts = 2 if name.endswith('attn.qkv.weight') else 1
        if parts == 2 or name.endswith(('crossattention.self.query.weight', 'crossattention.self.key.weight')):
            module, rows, columns = name[: -len('.weight')], len(weight), weight.shape[1]
            rows = rows // 3 * 2 if parts == 2 else rows
            adapters[f'{module}.lora_A'] = torch.randn(parts * _RANK, columns, generator=rng) / math.sqrt(columns)
            adapters[f'{module}.lora_B'] = torch.randn(rows, _RANK, generator=rng)
    return adapters
