"""The ViT that FinPercep-RM reads an image with: an open_clip vision tower, features of chosen blocks at any image size (METHOD.md §1)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ['Adapter', 'ClipEncoder', 'SmallViT', 'build_small_vit', 'load_clip', 'pad_to_multiple', 'resize_positions']

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ANTONYMS = ('Good photo.', 'Bad photo.')


@dataclasses.dataclass(frozen=True)
class SmallViT:
    """Size of the from-scratch preset.

    Attributes:
        size: image side in pixels that the position embedding is made for; other sizes are interpolated.
        patch: patch side in pixels, even where there is a stem.
        width: token width.
        depth: number of blocks.
        heads: attention heads.
        stem: width of a `ConvStem` in front of the patch embedding, whose output is f_1; 0 for none.
    """

    size: int = 96
    patch: int = 8
    width: int = 96
    depth: int = 3
    heads: int = 4
    stem: int = 16


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Replicate-pad (B, C, H, W) at the right and the bottom to multiples of `multiple`.

    >>> pad_to_multiple(torch.zeros(1, 3, 15, 28), 14).shape
    torch.Size([1, 3, 28, 28])
    """
    bottom, right = -image.shape[-2] % multiple, -image.shape[-1] % multiple
    return F.pad(image, (0, right, 0, bottom), mode='replicate') if bottom or right else image


def resize_positions(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """A ViT's position embedding (1 + g * g, C) for another patch grid (bicubic; the class token's row is kept).

    Returns:
        (1 + grid[0] * grid[1], C); the same tensor where the grid is the native one.
    """
    side = round((len(embedding) - 1) ** 0.5)
    if grid == (side, side):
        return embedding
    patches = embedding[1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=grid, mode='bicubic', align_corners=False)
    return torch.cat([embedding[:1], patches.flatten(2).transpose(1, 2)[0].to(embedding.dtype)])


class Adapter(nn.Module):
    """Residual bottleneck after a transformer block (Houlsby et al. 2019), zero at birth through its last layer only."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.change(tokens)

    def change(self, tokens: Tensor) -> Tensor:
        """What the adapter adds to these tokens."""
        return self.up(F.gelu(self.down(self.norm(tokens))))


class ClipEncoder(nn.Module):
    """Features of chosen blocks of an open_clip `VisionTransformer`.

    Args:
        visual: the vision tower (its class token and projection are kept: CLIP-IQA needs them).
        layers: 1-based numbers of the blocks whose outputs are features.
        stem: network in front of `visual.conv1`; its output is then the first feature.

    Attributes:
        patch: patch side in pixels.
        channels: channels of each feature, finest first.
        ladder: the adapters form a path of their own, see `add_adapters`.
        checkpointing: recompute the blocks in the backward pass instead of keeping what is inside them.
    """

    def __init__(self, visual: nn.Module, layers: Sequence[int], stem: ConvStem | None = None):
        super().__init__()
        depth = len(visual.transformer.resblocks)
        if not layers or min(layers) < 1 or max(layers) > depth or list(layers) != sorted(set(layers)):
            raise ValueError(f'layers: expected ascending 1-based block numbers up to {depth}, got {tuple(layers)}')
        self.visual, self.stem, self.layers = visual, stem, tuple(layers)
        self.patch = visual.conv1.kernel_size[0] * (1 if stem is None else stem.stride)
        self.width = visual.positional_embedding.shape[1]
        self.channels = ([] if stem is None else [stem.channels]) + [self.width] * len(layers)
        self.adapters, self.ladder, self.checkpointing = nn.ModuleList(), False, False
        self.register_buffer('mean', torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(CLIP_STD).view(1, 3, 1, 1), persistent=False)

    def add_adapters(self, hidden: int, ladder: bool = False) -> None:
        """An `Adapter` of this hidden width after every block.

        Args:
            hidden: width.
            ladder: what they add is summed up beside the blocks and added to the features alone: the blocks go on without
                it (ladder side-tuning, Sung et al. 2022), so that one pass gives the features with and without.
        """
        self.adapters = nn.ModuleList(Adapter(self.width, hidden) for _ in self.visual.transformer.resblocks)
        self.ladder = ladder

    def forward(self, image: Tensor, adapters: bool = True) -> tuple[list[Tensor], Tensor]:
        """
        Args:
            image: (B, 3, H, W), RGB, [0, 1], H and W multiples of `patch`.
            adapters: False runs the encoder as it was before `add_adapters`.

        Returns:
            features: [(B, C_i, h, w)], the grid h = H / patch, but H / 4 for the stem's.
            embedding: (B, D), the projected class token; of a ladder, that of the blocks, which it does not change.
        """
        features, _, embedding = self.run(image, adapters)
        return features, embedding

    def run(self, image: Tensor, adapters: bool = True) -> tuple[list[Tensor], Tensor, Tensor]:
        """As `forward`; between its two results the last feature without what a ladder adds, (B, C, h, w)."""
        x = (image - self.mean) / self.std
        features = []
        if self.stem is not None:
            x = self.stem(x)
            features.append(x)
        tokens, grid = self._embed(x)
        adapted = adapters and len(self.adapters) > 0
        ladder = torch.zeros_like(tokens) if adapted and self.ladder else None
        for number, block in enumerate(self.visual.transformer.resblocks, 1):
            tokens = self._block(block, tokens)
            if ladder is not None:
                ladder = ladder + self.adapters[number - 1].change(tokens + ladder)
            elif adapted:
                tokens = self.adapters[number - 1](tokens)
            if number in self.layers:
                features.append(_picture(tokens if ladder is None else tokens + ladder, grid))
        last = features[-1] if ladder is None else _picture(tokens, grid)
        embedding = self.visual.ln_post(tokens[:, 0])
        return features, last, embedding if self.visual.proj is None else embedding @ self.visual.proj

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Class token and patches with their positions, (B, 1 + h * w, C), and the grid (h, w)."""
        x = self.visual.conv1(x)
        grid = (x.shape[-2], x.shape[-1])
        tokens = x.flatten(2).transpose(1, 2)
        classes = self.visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        tokens = torch.cat([classes, tokens], dim=1)
        tokens = tokens + resize_positions(self.visual.positional_embedding, grid).to(tokens.dtype)
        return self.visual.ln_pre(tokens), grid

    def _block(self, block: nn.Module, tokens: Tensor) -> Tensor:
        # Up to open_clip 2.24 the blocks take (length, batch, channels).
        swapped = not getattr(self.visual.transformer, 'batch_first', False)
        tokens = tokens.transpose(0, 1) if swapped else tokens
        kept = not (self.checkpointing and torch.is_grad_enabled())
        tokens = block(tokens) if kept else checkpoint(block, tokens, use_reentrant=False)
        return tokens.transpose(0, 1) if swapped else tokens


def _picture(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, 1 + h * w, C) -> (B, C, h, w), without the class token."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


def build_small_vit(size: SmallViT) -> ClipEncoder:
    """The from-scratch preset: open_clip's own VisionTransformer at a small size, features {stem, depth / 3, 2 depth / 3, depth}.

    Raises:
        ValueError: a patch that the stem's stride does not divide.
    """
    from open_clip.transformer import VisionTransformer

    if size.stem and size.patch % ConvStem.stride:
        raise ValueError(f'vit.patch: expected a multiple of {ConvStem.stride} behind a stem, got {size.patch}')

    visual = VisionTransformer(
        image_size=size.size,
        patch_size=size.patch,
        width=size.width,
        layers=size.depth,
        heads=size.heads,
        mlp_ratio=4.0,
        output_dim=size.width,
    )
    thirds = sorted({max(1, round(size.depth * i / 3)) for i in (1, 2, 3)})
    if not size.stem:
        return ClipEncoder(visual, sorted({1, *thirds}))
    stem = ConvStem(size.stem)
    visual.conv1 = nn.Conv2d(stem.channels, size.width, size.patch // 4, stride=size.patch // 4, bias=False)
    return ClipEncoder(visual, thirds, stem)


class ConvStem(nn.Module):
    """Convolutions down to stride 4 in front of a small ViT, which learn local texture in far fewer steps than its patch embedding.

    Args:
        width: channels at full size; doubled at each halving.
    """

    stride = 4

    def __init__(self, width: int):
        super().__init__()
        self.channels = 4 * width

        def block(inside: int, outside: int, stride: int) -> nn.Sequential:
            convolution = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
            return nn.Sequential(convolution, nn.GroupNorm(max(1, outside // 8), outside), nn.GELU())

        self.down = nn.Sequential(
            block(3, width, 1),
            block(width, 2 * width, 2),
            block(2 * width, 2 * width, 1),
            block(2 * width, 4 * width, 2),
        )
        self.mix = nn.Sequential(block(4 * width, 4 * width, 1), block(4 * width, 4 * width, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 4 width, H / 4, W / 4)."""
        x = self.down(image)
        return x + self.mix(x)


def load_clip(name: str, pretrained: str | None, layers: Sequence[int]) -> tuple[ClipEncoder, Tensor]:
    """An open_clip vision tower and the text embeddings of CLIP-IQA's antonyms.

    Args:
        name: open_clip model; for OpenAI weights one that ends in '-quickgelu'.
        pretrained: open_clip tag ('openai') or a local weight file; None leaves random weights, to be loaded over.
        layers: see `ClipEncoder`.

    Returns:
        the encoder; (2, D) unit text embeddings of 'Good photo.' and 'Bad photo.'.

    Raises:
        ValueError: no such model, one that is no plain ViT, or OpenAI weights for a model that would run them with the wrong activation.
        FileNotFoundError: the weights are neither at the path nor to be had from the hub.
    """
    import open_clip

    if name not in open_clip.list_models():
        raise ValueError(f'backbone: open_clip has no model {name!r}; `open_clip.list_models()` lists them')
    if pretrained and Path(pretrained).suffix and not Path(pretrained).is_file():
        raise FileNotFoundError(f'pretrained: weights of {name} not found at {Path(pretrained).absolute()}')
    if pretrained == 'openai' and not name.endswith('-quickgelu'):
        raise ValueError(f'backbone: OpenAI weights need the quick GELU they were trained with: use {name}-quickgelu')
    try:
        model = open_clip.create_model(name, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f'pretrained: {pretrained!r} weights of {name} could not be loaded ({type(error).__name__}: {error}); '
            'give the path of a downloaded open_clip weight file instead'
        ) from error
    if not hasattr(model.visual, 'conv1') or not hasattr(model.visual, 'positional_embedding'):
        raise ValueError(f'backbone: {name} is not a plain ViT ({type(model.visual).__name__}); use a ViT-* model')
    with torch.no_grad():
        text = F.normalize(model.encode_text(open_clip.get_tokenizer(name)(list(ANTONYMS))).float(), dim=-1)
    return ClipEncoder(model.visual, layers), text
