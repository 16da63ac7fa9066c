"""Tags and image tokens of a degraded image by RAM, with the DAPE adapters of SeeSR, which OSEDiff uses too."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import nn

from finpercep_plugin.archs.ram_arch import RAM
from finpercep_plugin.generators.checkpoint import check_keys
from finpercep_plugin.generators.released import find_file, read_file

__all__ = ['Tagger', 'build_ram', 'ram_sizes', 'read_tags', 'read_thresholds', 'released_name']

State = Mapping[str, torch.Tensor]
_MEAN, _SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_SHIPS = 'it is not in the checkpoint, but in the RAM and SeeSR repositories as ram/data/'
_INERT = re.compile(
    r'(tag_encoder|text_decoder)\.'  # RAM's captioning
    r'|visual_encoder\..*\.(relative_position_index|attn_mask)$'  # constants, which the network makes itself
    r'|tagging_head\.embeddings\.|tagging_head\.encoder\.layer\.\d+\.attention\.'  # RAM deletes these before loading
)
_SWIN = re.compile(r'visual_encoder\.layers\.(\d+)\.blocks\.(\d+)\.')
_HEAD = re.compile(r'tagging_head\.encoder\.layer\.(\d+)\.')


class Tagger(nn.Module):
    """A frozen RAM with its list of tags. It stays in eval mode.

    If its weights are made bfloat16, call it under autocast.

    Args:
        network: a RAM.
        tags: their words, in the order of the network's logits.
        thresholds: (classes,), the probability above which each tag is given; None: `threshold` for all.
        threshold: RAM's own default.

    Raises:
        ValueError: as many tags or thresholds as the network has classes are needed.
    """

    def __init__(
        self,
        network: RAM,
        tags: Sequence[str],
        thresholds: Optional[torch.Tensor] = None,
        threshold: float = 0.68,
    ):
        super().__init__()
        classes = len(network.label_embed)
        if thresholds is None:
            thresholds = torch.full((classes,), threshold)
        if len(tags) != classes or thresholds.shape != (classes,):
            raise ValueError(
                f'the network has {classes} classes, but {len(tags)} tags and {len(thresholds)} thresholds'
            )
        self.network = network.requires_grad_(False).eval()
        self.tags, self.thresholds = list(tags), thresholds.float()  # no buffer: must stay float32

    @classmethod
    def from_files(
        cls,
        ram: Union[str, Path],
        dape: Optional[Union[str, Path]],
        tags: Union[str, Path],
        thresholds: Optional[Union[str, Path]] = None,
        head_heads: int = 4,
    ) -> Tagger:
        """The tagger of the released files; sizes are those of the tensors, so that smaller files open as well.

        Args:
            ram: `ram_swin_large_14m.pth`, {'model': ...}; a path, or a file on the hub ('org/name/file').
            dape: `DAPE.pth`, the `lora_*` tensors; None: RAM without adapters.
            tags: `ram_tag_list.txt`, a tag a line.
            thresholds: `ram_tag_list_threshold.txt`, a number a line; None: 0.68 for all.
            head_heads: attention heads of the tagging head, which no tensor tells.

        Raises:
            FileNotFoundError: which file, and where it was looked for.
            ValueError: every missing, unexpected and misshapen key of both weight files, in one error; or other
                numbers of tags or thresholds.
        """
        words = read_tags(tags)
        limits = None if thresholds is None else read_thresholds(thresholds)
        data = read_file(ram, 'RAM')
        if not isinstance(data.get('model'), dict):
            raise ValueError(f"RAM: {ram} has no dict 'model'; found {sorted(map(str, data))[:10]}")
        lora = None if dape is None else read_file(dape, 'DAPE')
        network = build_ram(data['model'], lora, head_heads=head_heads, ram_name=str(ram), dape_name=str(dape))
        if len(words) != len(network.label_embed):
            raise ValueError(f'{tags} has {len(words)} tags, but {ram} was trained with {len(network.label_embed)}')
        if limits is not None and len(limits) != len(words):
            raise ValueError(f'{thresholds} has {len(limits)} thresholds for {len(words)} tags')
        return cls(network, words, limits)

    def train(self, mode: bool = True) -> Tagger:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> Tuple[List[str], torch.Tensor]:
        """Tags and tokens of images of any size. SeeSR gives it lq itself, OSEDiff the upscaled lq.

        Args:
            image: (B, 3, H, W), RGB, [0, 1].

        Returns:
            B texts 'tag, tag, ...', in the order of the list, '' where no tag fits; tokens (B, 1 + N, width), float32
            (SeeSR's image condition, (B, 145, 512) at full size).
        """
        embeds, logits = self.network(self.prepared(image.to(self.network.label_embed.device)))
        return self.texts(logits), embeds.float()

    def prepared(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W), [0, 1] -> the network's input; not antialiased, as in training.

        Raises:
            ValueError: not a batch of RGB images.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f'RAM needs images (B, 3, H, W), got {tuple(image.shape)}')
        side = self.network.image_size
        image = F.interpolate(image.float(), (side, side), mode='bilinear', align_corners=False, antialias=False)
        mean, sd = (image.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _SD))
        return (image - mean) / sd

    def texts(self, logits: torch.Tensor) -> List[str]:
        """(B, classes) -> B texts of the tags whose probability is above their threshold."""
        chosen = logits.detach().float().sigmoid().cpu() > self.thresholds
        return [', '.join(self.tags[index] for index in row.nonzero().flatten().tolist()) for row in chosen]


def read_tags(path: Union[str, Path]) -> List[str]:
    """The tags of a file, one a line.

    Raises:
        FileNotFoundError: no such file; says where it comes from.
    """
    return find_file(path, f'list of tags ({_SHIPS}ram_tag_list.txt)').read_text(encoding='utf-8').splitlines()


def read_thresholds(path: Union[str, Path]) -> torch.Tensor:
    """The thresholds of a file, a number a line, (classes,).

    Raises:
        FileNotFoundError: no such file; says where it comes from.
        ValueError: a line is no number.
    """
    file = find_file(path, f'thresholds of tags ({_SHIPS}ram_tag_list_threshold.txt)')
    try:
        return torch.tensor([float(word) for word in file.read_text(encoding='utf-8').split()])
    except ValueError as error:
        raise ValueError(f'thresholds of tags: {file.absolute()}: {error}') from error


def build_ram(
    ram: State,
    dape: Optional[State] = None,
    head_heads: int = 4,
    image_size: Optional[int] = None,
    alpha: float = 1.0,
    ram_name: str = 'RAM',
    dape_name: str = 'DAPE',
) -> RAM:
    """A frozen RAM with DAPE merged into it.

    Args:
        ram: {released name: tensor}; 'vision_multi' in a name means 'tagging_head'. Not read: `tag_encoder.*` and
            `text_decoder.*` (captioning), the embeddings and self-attention of the tagging head (RAM deletes them), and
            the constants `relative_position_index` and `attn_mask`.
        dape: {released name: tensor}, adapters of every Swin qkv and of query and key of the tagging head. Those of
            `text_decoder` and `tag_encoder` are not read, but for the layers of `tag_encoder` that RAM ties to the
            tagging head: merging adds theirs to the shared weights too (SeeSR's training leaves them at zero).
        head_heads: attention heads of the tagging head.
        image_size: side of the network's input; None: see `ram_sizes`.
        alpha: of the adapters; their sum is scaled by alpha / rank.
        ram_name, dape_name: the files, for messages.

    Raises:
        ValueError: every missing, unexpected and misshapen key of both, in one error.
    """
    ram = {key.replace('vision_multi', 'tagging_head'): value for key, value in ram.items()}
    sizes = ram_sizes(ram, head_heads, image_size)
    with torch.device('meta'):
        wanted = {released_name(name): value for name, value in RAM(**sizes).state_dict().items()}
    state = {key: value for key, value in ram.items() if not _INERT.match(key)}
    checks = [(wanted, state, ram_name)]
    if dape is not None:
        adapters = _adapters(wanted, dape)
        checks.append((adapters, {k: v for k, v in dape.items() if k in adapters or not _INERT.match(k)}, dape_name))
    _check_all(checks)
    if dape is not None:
        state.update(_merged(state, dape, alpha))
    network = RAM(**sizes)
    network.load_state_dict({name: state[released_name(name)] for name in network.state_dict()})
    return network.requires_grad_(False).eval()


def ram_sizes(state: State, head_heads: int = 4, image_size: Optional[int] = None) -> Dict[str, Any]:
    """The arguments of `RAM` that fit a released state dict; where a tensor is missing, those of the released one.

    Heads of Swin and its window are the sides of `relative_position_bias_table`. The image size, if not given, follows
    from the number of windows in the first stage's `attn_mask`, and where the file has none, from the rule that the
    last stage is a single window. Heads of the tagging head are in no tensor's shape.
    """

    def side(name: str, axis: int, default: int) -> int:
        return state[name].shape[axis] if name in state and axis < state[name].ndim else default

    blocks = [tuple(map(int, match.groups())) for match in map(_SWIN.match, state) if match]
    stages = range(1 + max((stage for stage, _ in blocks), default=3))
    swin, first = 'visual_encoder.layers.{}.blocks.0', 'visual_encoder.layers.0.blocks'
    patch = side('visual_encoder.patch_embed.proj.weight', -1, 4)
    dim = side('visual_encoder.patch_embed.proj.weight', 0, 192)
    table = f'{swin}.attn.relative_position_bias_table'
    window = (math.isqrt(side(table.format(0), 0, 529)) + 1) // 2
    windows = math.isqrt(side(f'{first}.1.attn_mask', 0, 0)) or 2 ** (len(stages) - 1)
    return dict(
        image_size=image_size or windows * window * patch,
        patch_size=patch,
        embed_dim=dim,
        depths=[1 + max((b for s, b in blocks if s == stage), default=(1, 1, 17, 1)[stage % 4]) for stage in stages],
        num_heads=[side(table.format(stage), 1, dim * 2**stage // 32) for stage in stages],
        window_size=window,
        mlp_ratio=side(f'{first}.0.mlp.fc1.weight', 0, 4 * dim) / dim,
        width=side('label_embed', 1, 512),
        hidden_size=side('wordvec_proj.weight', 0, 768),
        head_layers=1 + max((int(match[1]) for match in map(_HEAD.match, state) if match), default=1),
        head_heads=head_heads,
        intermediate_size=side('tagging_head.encoder.layer.0.intermediate.dense.weight', 0, 3072),
        classes=side('label_embed', 0, 4585),
    )


def released_name(name: str) -> str:
    """Our parameter name -> the released one: timm puts a stage's downsampling at the start of the next.

    >>> released_name('visual_encoder.layers.1.downsample.norm.weight')
    'visual_encoder.layers.0.downsample.norm.weight'
    """
    return re.sub(r'layers\.(\d+)\.downsample', lambda match: f'layers.{int(match[1]) - 1}.downsample', name)


def _modules(name: str) -> List[str]:
    """The modules whose adapters change weight `name`, the first being its own; none if it has none."""
    module = name[: -len('.weight')]
    if re.fullmatch(r'visual_encoder\..*\.attn\.qkv\.weight', name):
        return [module]
    if re.fullmatch(r'tagging_head\..*\.crossattention\.self\.(query|key)\.weight', name):
        return [module, module.replace('tagging_head', 'tag_encoder')]
    return []


def _adapters(wanted: State, dape: State) -> Dict[str, torch.Tensor]:
    """{name: tensor of its shape} of the adapters that DAPE should have, and of those tied to them that it has."""
    rank = next((value.shape[-1] for key, value in dape.items() if key.endswith('lora_B')), 8)
    found = {}
    for name, weight in wanted.items():
        for place, module in enumerate(_modules(name)):
            (rows, columns), parts = weight.shape, 1
            if module.endswith('qkv'):  # one adapter for q, one for v, none for k
                rows, parts = rows // 3 * 2, 2
            shapes = {f'{module}.lora_A': (parts * rank, columns), f'{module}.lora_B': (rows, rank)}
            if place == 0 or any(key in dape for key in shapes):
                found.update({key: torch.empty(shape, device='meta') for key, shape in shapes.items()})
    return found


def _merged(state: State, dape: State, alpha: float) -> Dict[str, torch.Tensor]:
    """{name: weight + alpha / rank * B A} of the weights that have an adapter, float32."""
    merged = {}
    for name, weight in state.items():
        for module in _modules(name):
            if f'{module}.lora_A' not in dape:
                continue
            down, up = dape[f'{module}.lora_A'].float(), dape[f'{module}.lora_B'].float()
            if module.endswith('qkv'):
                query, value = (b @ a for a, b in zip(down.chunk(2), up.chunk(2)))
                delta = torch.cat([query, torch.zeros_like(query), value])
            else:
                delta = up @ down
            merged[name] = merged.get(name, weight.float()) + alpha / up.shape[1] * delta
    return merged


def _check_all(checks: Sequence[Tuple[State, State, str]]) -> None:
    problems = []
    for wanted, found, source in checks:
        try:
            check_keys(wanted, found, source)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError('\n'.join(problems))
