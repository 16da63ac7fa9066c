"""RAM, the image tagger that SeeSR and OSEDiff take tags and image tokens from: timm's Swin, BERT's cross-attention."""

from __future__ import annotations

from typing import Sequence, Tuple

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertIntermediate, BertOutput, BertSelfOutput

__all__ = ['RAM']


class RAM(nn.Module):
    """Recognize Anything Model (Zhang et al., arXiv:2306.03514), its tagging part; the defaults are Swin-L at 384.

    A Swin transformer gives N = (image_size / 32)^2 tokens (32 for four stages of patches of 4) and their mean, all
    projected to `width`. Each tag's label embedding is a query that attends to them and ends in one logit. There is no
    self-attention among tags (Query2Label). Parameter names are those of the released file, apart from
    `visual_encoder.layers.*.downsample`, which timm counts from the other side.

    Args:
        image_size: side of the square input in pixels.
        patch_size: of Swin.
        embed_dim: Swin's first width; it doubles with each stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: of Swin's attention, in tokens.
        mlp_ratio: of Swin's blocks.
        width: of the projected image tokens and of the label embeddings.
        hidden_size: of the tagging head.
        head_layers: its layers.
        head_heads: its attention heads.
        intermediate_size: of its feed-forward layers.
        classes: tags.

    Raises:
        ValueError: head_heads does not divide hidden_size.

    >>> net = RAM(48, embed_dim=8, depths=(1, 1), num_heads=(2, 2), window_size=6, width=6, hidden_size=8,
    ...           head_layers=1, head_heads=2, intermediate_size=16, classes=5).eval()
    >>> [tuple(x.shape) for x in net(torch.zeros(2, 3, 48, 48))]
    [(2, 37, 6), (2, 5)]
    """

    def __init__(
        self,
        image_size: int = 384,
        patch_size: int = 4,
        embed_dim: int = 192,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (6, 12, 24, 48),
        window_size: int = 12,
        mlp_ratio: float = 4.0,
        width: int = 512,
        hidden_size: int = 768,
        head_layers: int = 2,
        head_heads: int = 4,
        intermediate_size: int = 3072,
        classes: int = 4585,
    ):
        super().__init__()
        if hidden_size % head_heads:
            raise ValueError(f'head_heads must divide hidden_size {hidden_size}, got {head_heads}')
        self.image_size = image_size
        self.visual_encoder = SwinTransformer(
            img_size=image_size,
            patch_size=patch_size,
            num_classes=0,
            embed_dim=embed_dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            drop_path_rate=0.0,
            weight_init='skip',
        )
        self.image_proj = nn.Linear(self.visual_encoder.num_features, width)
        self.label_embed = nn.Parameter(torch.zeros(classes, width))
        self.wordvec_proj = nn.Linear(width, hidden_size)
        layers = (_TagLayer(width, hidden_size, head_heads, intermediate_size) for _ in range(head_layers))
        self.tagging_head = nn.ModuleDict({'encoder': nn.ModuleDict({'layer': nn.ModuleList(layers)})})
        self.fc = nn.Linear(hidden_size, 1)

    def forward(self, image: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Tokens and tags of an image.

        Args:
            image: (B, 3, image_size, image_size), RGB, normalised by ImageNet's mean and deviation.

        Returns:
            image tokens (B, 1 + N, width), the first of which is their mean before projection; logits (B, classes).
        """
        embeds = self.embed(image)
        return embeds, self.tag(embeds)

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """The first output of `forward`."""
        tokens = self.visual_encoder.forward_features(image).flatten(1, 2)
        return self.image_proj(torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1))

    def tag(self, embeds: torch.Tensor) -> torch.Tensor:
        """The second output of `forward`, from the first."""
        labels = F.relu(self.wordvec_proj(self.label_embed)).expand(len(embeds), -1, -1)
        for layer in self.tagging_head['encoder']['layer']:
            labels = layer(labels, embeds)
        return self.fc(labels).squeeze(-1)


class _TagLayer(nn.Module):
    """A BERT layer without self-attention, whose cross-attention reads tokens of another width than its own."""

    def __init__(self, width: int, hidden_size: int, heads: int, intermediate_size: int):
        super().__init__()
        config = BertConfig(
            hidden_size=hidden_size,
            num_attention_heads=heads,
            intermediate_size=intermediate_size,
            hidden_act='gelu',
            layer_norm_eps=1e-12,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        attention = _CrossAttention(hidden_size, width, heads)
        self.crossattention = nn.ModuleDict({'self': attention, 'output': BertSelfOutput(config)})
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config)

    def forward(self, labels: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        """labels: (B, classes, hidden), embeds: (B, tokens, width) -> (B, classes, hidden)."""
        attended = self.crossattention['self'](labels, embeds)
        attended = self.crossattention['output'](attended, labels)
        return self.output(self.intermediate(attended), attended)


class _CrossAttention(nn.Module):
    def __init__(self, hidden_size: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(width, hidden_size)
        self.value = nn.Linear(width, hidden_size)

    def forward(self, labels: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, labels), (self.key, embeds), (self.value, embeds))
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
